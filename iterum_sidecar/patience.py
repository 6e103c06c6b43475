"""Waiting for a service that is away: with backoff, told once a minute, and not for ever unless that is wished."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.exit_codes import ServiceLost
from iterum_sidecar.telemetry.logs import get_log

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Patience"]

_log = get_log(__name__)

#: Seconds between attempts: half a second at first, at most five, so that work goes on within 5 s of a service's return.
FIRST_DELAY = 0.5
LONGEST_DELAY = 5.0
#: Seconds between two lines about the same wait.
SAY_EVERY = 60.0


class Patience:
    """The wait for one service, shared by all that wait for it.

    `timeout` is in seconds from the first failure; 0 waits for ever.
    """

    def __init__(
        self, service: str, timeout: float, draw: Callable[[], float] = random.random
    ) -> None:
        self._service = service
        self._timeout = timeout
        self._draw = draw
        self._since: float | None = None
        self._said = -SAY_EVERY
        self._delay = FIRST_DELAY
        self.failures = 0
        """How many attempts have failed and were waited for."""
        self.waits = 0
        """How often the service has gone away, or was not there at the start."""

    @property
    def is_waiting(self) -> bool:
        """Whether the service has not answered since it last failed."""
        return self._since is not None

    async def wait(self, reason: str) -> None:
        """Wait until it is time to try again; `reason` says what failed.

        Raises:
            ServiceLost: the timeout has passed since the first failure.
        """
        now = trio.current_time()
        self.failures += 1
        if self._since is None:
            self._since = now
            self.waits += 1
        waited = now - self._since
        if self._timeout and waited >= self._timeout:
            raise ServiceLost(
                f"gave up on {self._service} after {waited:.0f} s (SIDECAR_SERVICE_TIMEOUT): {reason}"
            )
        if now - self._said >= SAY_EVERY:
            self._said = now
            _log.warning(
                f"waiting for {self._service}", reason=reason, waited_seconds=round(waited)
            )
        # Half of the delay is fixed and half drawn: many sidecars do not come back in one moment.
        delay = self._delay * (0.5 + self._draw() / 2)
        self._delay = min(self._delay * 2, LONGEST_DELAY)
        await trio.sleep(min(delay, self._timeout - waited) if self._timeout else delay)

    def over(self) -> None:
        """The service answers; the next failure begins a wait of its own."""
        if self._since is None:
            return
        _log.info(
            f"{self._service} is back", waited_seconds=round(trio.current_time() - self._since, 1)
        )
        self._since = None
        self._said = -SAY_EVERY
        self._delay = FIRST_DELAY
