"""When a pair of connections is tried again, and when no more; without any I/O."""

from __future__ import annotations

import errno
import sys

__all__ = ["FIRST_LIMIT", "RETURN_LIMIT", "Attempts", "GivenUp"]

#: Seconds that a sidecar may come later than its step: it may have an image to pull.
FIRST_LIMIT = 15 * 60.0
#: Seconds that a sidecar which has gone may take to come back.
RETURN_LIMIT = 60.0
#: Seconds before the first attempt that follows one that failed, and the longest that this is doubled to.
_FIRST_DELAYS = (0.01, 0.25)
_RETURN_DELAYS = (0.05, 1.0)
#: Seconds of waiting after which the log is told.
_SAY_AFTER = 5.0

#: What connect() fails with while the sidecar is not ready yet (connect(2), unix(7)); EACCES until it has opened its
#: socket to all users, ENOENT also while the volume is not there.
_PASSING = frozenset({
    errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN, errno.EACCES, errno.EPERM, errno.EINTR, errno.ECONNRESET,
    errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM,
})  # fmt: skip


class GivenUp(Exception):
    """The step cannot go on for want of a sidecar; the text is for its log."""


class Attempts:
    """The attempts of one pair of connections. Times are seconds of a monotonic clock."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._limit = FIRST_LIMIT
        self._delay, self._longest = _FIRST_DELAYS
        self._connected_at: float | None = None
        self._told = False

    def connected(self, now: float) -> None:
        """Both connections are there."""
        self._connected_at = now

    def refused(self, path: str, error: OSError, now: float) -> float:
        """A connection cannot be made: return the seconds to wait before the next attempt.

        Raises:
            GivenUp: it will not come, or has not come in time.
        """
        reason = error.strerror or str(error)
        if error.errno not in _PASSING:
            raise GivenUp(f"cannot connect to the sidecar's socket {path}: {reason}")
        waited = now - self._since
        if waited >= self._limit:
            raise GivenUp(
                f"no sidecar answered at {path} within {self._limit:.0f} s: {reason}; is it running, and may this user"
                " connect?"
            )
        if waited >= _SAY_AFTER and not self._told:
            self._told = True
            print(f"waiting for the sidecar at {path}: {reason}", file=sys.stderr, flush=True)
        return self._next_delay()

    def lost(self, now: float, *, heard: bool) -> float:
        """The sidecar has closed a connection without a word of the end: return the seconds to wait.

        `heard` tells whether anything was received on it.

        Raises:
            GivenUp: this has gone on for too long.
        """
        lasted = 0.0 if self._connected_at is None else now - self._connected_at
        if heard or lasted >= RETURN_LIMIT or self._limit != RETURN_LIMIT:
            self._since = now
            self._limit = RETURN_LIMIT
            self._delay, self._longest = _RETURN_DELAYS
            self._told = False
            print(
                "the sidecar has closed the connection; connecting again",
                file=sys.stderr,
                flush=True,
            )
        elif now - self._since >= self._limit:
            raise GivenUp(
                f"the sidecar has closed every connection for {self._limit:.0f} s, and said nothing on them"
            )
        return self._next_delay()

    def _next_delay(self) -> float:
        delay = self._delay
        self._delay = min(delay * 2, self._longest)
        return delay
