"""One task that watches over the deadlines of all exchanges.

A cancel scope for each answer that is waited for costs a twentieth of what a request for a small object does, and next to none of them ever
ends anything. Here a deadline is a number in a dict, and somebody looks when the first of them is due.
"""

from __future__ import annotations

import math
from typing import Protocol, final

import trio

__all__ = ["DeadlineWatch", "Watched"]


class Watched(Protocol):
    """Something that is given up when its time is over."""

    def expire(self) -> None:
        """End what is waited for; whoever waits is woken."""
        ...


@final
class DeadlineWatch:
    """Calls `expire` of everything that is still being waited for at its deadline, as long as `keep` runs."""

    def __init__(self) -> None:
        self._deadlines: dict[Watched, float] = {}
        self._rest = trio.CancelScope()
        self.is_kept = False
        """Whether anybody watches; whoever waits while nobody does must see to its own deadline."""

    def begin(self, watched: Watched, deadline: float) -> None:
        """Watch over something from now on; `deadline` is a time of Trio's clock."""
        self._deadlines[watched] = deadline
        if deadline < self._rest.deadline:
            self._rest.deadline = deadline

    def end(self, watched: Watched) -> None:
        """What was waited for has come, or nobody waits any more."""
        self._deadlines.pop(watched, None)

    async def keep(self) -> None:
        """Watch until cancelled."""
        self.is_kept = True
        try:
            while True:
                with trio.CancelScope(deadline=self._first()) as self._rest:
                    await trio.sleep_forever()
                now = trio.current_time()
                for watched, deadline in tuple(self._deadlines.items()):
                    if deadline <= now:
                        self.end(watched)
                        watched.expire()
        finally:
            self.is_kept = False

    def _first(self) -> float:
        return min(self._deadlines.values(), default=math.inf)
