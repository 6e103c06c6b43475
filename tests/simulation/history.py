"""What happened in one run, in order; and the moments at which faults strike.

Every event is a moment, numbered from 1. A fault that is due at a moment strikes while the event happens, in the middle of the
call that made it, so that no instant between two of them is out of reach.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Event", "History", "TooManyEvents"]

#: No run has so many events, unless something turns in a circle without ever waiting.
MOST_EVENTS = 3_000


class TooManyEvents(BaseException):
    """Something turns in a circle."""


class Event(NamedTuple):
    """One event: the simulated time in seconds, what happened, to or by whom, with what, and anything else."""

    time: float
    kind: str
    who: str
    what: str = ""
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.time:10.3f}  {self.kind:<16} {self.who:<10} {self.what:<14} {self.detail}".rstrip()


class History:
    """The events of one run."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.said: list[tuple[int, str]] = []
        """What the sidecars logged: after how many events, and the line."""
        self.struck: Counter[str] = Counter()
        """How many faults of each kind have struck."""
        self.last_trouble = 0.0
        """When something went wrong last, or what had gone wrong was over."""
        self._due: dict[int, list[Callable[[], None]]] = {}

    def record(self, kind: str, who: str, what: str = "", detail: str = "") -> None:
        """Note an event, and let strike what is due at this moment."""
        events = self.events
        events.append(Event(trio.current_time(), kind, who, what, detail))
        strikes = self._due.pop(len(events), None)
        if strikes is not None:
            for strike in strikes:
                strike()
        if len(events) > MOST_EVENTS:
            raise TooManyEvents

    def at(self, moment: int, strike: Callable[[], None]) -> None:
        """Let something strike at a moment that has not come."""
        self._due.setdefault(moment, []).append(strike)

    def trouble(self, until: float = 0.0) -> None:
        """Something has gone wrong now; it goes on until then."""
        self.last_trouble = max(self.last_trouble, trio.current_time(), until)

    def lines(self) -> list[str]:
        """Return the events as text, the sidecars' own lines between them."""
        lines = []
        said = iter([*self.said, (len(self.events) + 1, "")])
        number, line = next(said)
        for index, event in enumerate(self.events):
            while number <= index:
                lines.append(f"{'':10}  | {line}")
                number, line = next(said)
            lines.append(str(event))
        while line:
            lines.append(f"{'':10}  | {line}")
            number, line = next(said)
        return lines
