"""Waiting for a service that is away: with backoff, told once a minute, and not for ever unless that is wished."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.exit_codes import ServiceLost
from iterum_sidecar.telemetry.logs import get_log

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Backoff", "Patience"]

_log = get_log(__name__)

#: Seconds between attempts are drawn between the shortest and a bound, which is half a second at first and four at most: with the
#: attempt itself, work goes on within 5 s of a service's return.
SHORTEST_DELAY = 0.05
FIRST_BOUND = 0.5
LONGEST_DELAY = 4.0
#: A service may ask for a longer pause, and gets one of so many seconds at most: its return is to be noticed.
LONGEST_RETRY_AFTER = 30.0
#: Seconds for which a service must have been there to count as well; what fails before that goes on with the delay it had.
STEADY_AFTER = 30.0
#: Seconds between two lines about the same wait, unless there is something else to be done about it by now.
SAY_EVERY = 60.0
#: Seconds after which the wait for a part alone is told of: one object that is refused in passing is no outage.
SAY_OF_PART_AFTER = 2.0


class Backoff:
    """Delays whose bound doubles, each drawn anew from nothing up to the bound ("full jitter"): those that failed in one moment do not come back in one."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self._draw = draw
        self._bound = FIRST_BOUND

    def next(self, retry_after: float | None = None) -> float:
        """Return the seconds to wait; `retry_after` is what the service has asked for, if it has."""
        delay = max(self._draw() * self._bound, SHORTEST_DELAY)
        self._bound = min(self._bound * 2, LONGEST_DELAY)
        return max(delay, min(retry_after or 0.0, LONGEST_RETRY_AFTER))

    def reset(self) -> None:
        """Begin anew."""
        self._bound = FIRST_BOUND


class Patience:
    """The wait for one service, shared by all that wait for it: one of them tries after each delay, and when it succeeds all go on.

    `timeout` is in seconds from the first failure; 0 waits for ever. `if_it_lasts` says what to do where a failure does not say it.
    """

    def __init__(
        self,
        service: str,
        timeout: float,
        draw: Callable[[], float] = random.random,
        *,
        if_it_lasts: str = "see that it runs and can be reached from here",
    ) -> None:
        self._service = service
        self._if_it_lasts = if_it_lasts
        self._timeout = timeout
        self._draw = draw
        self._backoff = Backoff(draw)
        self._turn = trio.Lock()
        self._waiting: set[trio.CancelScope] = set()
        self._since: float | None = None
        self._over_at = -math.inf
        self._end = ""
        self._whole = self
        self._parts: list[Patience] = []
        # What follows is the whole's business: one voice speaks for all parts.
        self._away_since: float | None = None
        self._back_at = self._said_at = -math.inf
        self._advised: set[str] = set()
        """What to do, as has been said since the service is away."""
        self.failures = 0
        """How many attempts have failed and were waited for."""
        self.waits = 0
        """How often the service has gone away, or was not there at the start."""

    @property
    def is_waiting(self) -> bool:
        """Whether the service, or a part of it, has not answered since it last failed."""
        return self._since is not None or any(part.is_waiting for part in self._parts)

    def part(self) -> Patience:
        """Return the wait for something of this service that may fail alone. It ends by its own `over`; it is told of and counted here."""
        part = Patience(self._service, self._timeout, self._draw)
        part._whole = self
        self._parts.append(part)
        return part

    async def wait(
        self, reason: str, *, retry_after: float | None = None, if_it_lasts: str = ""
    ) -> bool:
        """Wait until it is time to try again, or until `over`: then another has succeeded, and the answer is False.

        `reason` says what failed, `if_it_lasts` what to do about that, and `retry_after` are the seconds that the service asks for.

        Raises:
            ServiceLost: the timeout has passed since the first failure.
        """
        now = trio.current_time()
        if self._since is None:
            self._since = now
            if now - self._over_at > STEADY_AFTER:
                self._backoff.reset()
        waited = now - self._since
        self._whole._note_failure(now)
        if self._timeout and waited >= self._timeout:
            # All that give up say the same, so that it is told once.
            self._end = self._end or (
                f"gave up on {self._service} after {waited:.0f} s (SIDECAR_SERVICE_TIMEOUT); what is in flight goes back to"
                f" the queue: {reason}"
            )
            raise ServiceLost(self._end)
        if self._whole is self or waited >= SAY_OF_PART_AFTER:
            self._whole._tell(now, waited, reason, if_it_lasts)
        with trio.CancelScope() as scope:
            if self._timeout:
                scope.deadline = now + self._timeout - waited
            self._waiting.add(scope)
            try:
                # A lock is fair: whoever has tried in vain waits behind the others.
                async with self._turn:
                    await trio.sleep(self._backoff.next(retry_after))
            finally:
                self._waiting.discard(scope)
        return not scope.cancelled_caught or trio.current_time() >= scope.deadline

    def over(self) -> None:
        """The service answers: all that wait go on. The next failure begins a wait of its own."""
        if self._since is None:
            return
        self._since = None
        self._over_at = trio.current_time()
        self._whole._note_end(self._over_at)
        for scope in self._waiting:
            scope.cancel(f"{self._service} is back")

    def _note_failure(self, now: float) -> None:
        self.failures += 1
        if self._away_since is None:
            self._away_since = now
            self.waits += 1
            if now - self._back_at > STEADY_AFTER:
                self._said_at = -math.inf

    def _note_end(self, now: float) -> None:
        if self.is_waiting or self._away_since is None:
            return
        if self._advised:
            _log.info(f"{self._service} is back", waited_seconds=round(now - self._away_since, 1))
        self._advised.clear()
        self._away_since = None
        self._back_at = now

    def _tell(self, now: float, waited: float, reason: str, if_it_lasts: str) -> None:
        if_it_lasts = if_it_lasts or self._if_it_lasts
        if not self._advised:
            # If it comes and goes, the last line says that it is back.
            silent_for = STEADY_AFTER
        else:
            silent_for = SAY_EVERY if if_it_lasts in self._advised else LONGEST_DELAY
        if now - self._said_at < silent_for:
            return
        self._said_at = now
        self._advised.add(if_it_lasts)
        until = f", for {self._timeout:g} s (SIDECAR_SERVICE_TIMEOUT)" if self._timeout else ""
        _log.warning(
            f"waiting for {self._service}",
            reason=reason,
            waited_seconds=round(waited),
            meanwhile=f"asking again every few seconds{until}; nothing is lost",
            if_it_lasts=if_it_lasts,
        )
