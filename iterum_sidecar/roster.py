"""Who of the transformation's connections holds what, and who gets the next fragment.

Plain data like the ledger: no I/O, no task; the time is told by whoever asks. A connection holds one fragment
at a time, which is what makes a step safe that writes every result to one path (contract, section 7). The depth is
raised only for a step that gathers: it has finished none for a second, and *waits for input*, which `stages/handout.py` finds out.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from iterum_sidecar.messages import MOST_GATHERED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from iterum_sidecar.entries import Entry

__all__ = ["STARVED_AFTER", "Roster", "Seat"]

#: Seconds without a hand-out or a done, everything read, after which a step is starved (design, the window).
STARVED_AFTER = 1.0
#: The same for a step that has said that it gathers: whether it waits for input is what has to be found out, no more.
GATHERER_STARVED_AFTER = 0.1
#: Seconds without a done after which a suspect on its last attempt waits no longer until nothing else is out: what is out hangs, or is long.
ISOLATION_PATIENCE = 60.0
#: The highest depth; the window of fragments in flight ends there too.
MAX_DEPTH = 4096

DeliveryT = TypeVar("DeliveryT")
WorkT = TypeVar("WorkT")


@dataclass(eq=False, slots=True)
class Seat(Generic[DeliveryT, WorkT]):
    """One input connection of the transformation, as far as handing out is concerned."""

    depth: int
    held: list[Entry[DeliveryT, WorkT]] = field(default_factory=list)
    alone: bool = False
    """Whether it holds a suspect, beside which it gets nothing."""
    gathers: bool = False
    """Whether starvation has shown that it needs several at once; suspects are then no exception."""
    moved_at: float = 0.0
    """When it was handed or finished something, the last time."""
    finished_at: float = 0.0
    """When it finished something, or came."""
    doubted_at: float = -math.inf
    """When another connection hung, perhaps of the same process, the last time."""
    told_kill: bool = False
    """Whether it has been told that nothing more comes."""
    listed: bool = True
    """Whether it is in the roster's row of seats that may have room."""

    @property
    def is_doubtful(self) -> bool:
        """Whether it may be of a process that hangs already, so that what it holds now is not to blame: it has finished nothing since."""
        return self.finished_at <= self.doubted_at

    def has_room(self) -> bool:
        """Whether it may be handed a fragment now."""
        return not self.alone and len(self.held) < self.depth


Fits: TypeAlias = "Callable[[Seat[DeliveryT, WorkT], Entry[DeliveryT, WorkT]], bool]"


class Roster(Generic[DeliveryT, WorkT]):
    """The seats, the fragments that are ready for them, and the rules between the two."""

    def __init__(self, depth: int, attempts: int = 3) -> None:
        """Give each connection `depth` fragments at a time; `attempts` is how many a fragment has."""
        self._depth = depth
        self._attempts = attempts
        self._seats: list[Seat[DeliveryT, WorkT]] = []
        self._ready: deque[Entry[DeliveryT, WorkT]] = deque()
        self._suspects: deque[Entry[DeliveryT, WorkT]] = deque()
        self._vacant: deque[Seat[DeliveryT, WorkT]] = deque()
        self._suspect_out: Entry[DeliveryT, WorkT] | None = None
        self._seat_of: dict[Entry[DeliveryT, WorkT], Seat[DeliveryT, WorkT]] = {}
        self._moved_at = 0.0
        self.ever_sat = False
        """Whether there has been any connection."""
        self.given_up = 0
        """How many connections were closed because they hung."""
        self.gathered = 0
        """How many fragments each connection holds at a time, as the step has said; 0 if it has not."""
        self.closed = False
        """Whether nothing more is handed out."""
        self.told_kill = False
        """Whether the transformation has been told that nothing more comes."""
        self.kills_said = 0
        """To how many connections that was said."""

    # -- what happens

    def sit(self, now: float = 0.0) -> Seat[DeliveryT, WorkT]:
        """A connection has come."""
        self.ever_sat = True
        seat: Seat[DeliveryT, WorkT] = Seat(self._depth, moved_at=now, finished_at=now)
        self._seats.append(seat)
        self._vacant.append(seat)
        return seat

    def leave(self, seat: Seat[DeliveryT, WorkT]) -> list[Entry[DeliveryT, WorkT]]:
        """A connection has gone; returns what it held."""
        self._seats.remove(seat)
        if seat.listed:
            self._vacant.remove(seat)
            seat.listed = False
        seat.depth = 0
        held, seat.held = seat.held, []
        for entry in held:
            del self._seat_of[entry]
        return held

    def doubt(self, now: float) -> None:
        """A connection has hung, and whether the others are of the same process is not known."""
        for seat in self._seats:
            seat.doubted_at = now

    def judged(self, entry: Entry[DeliveryT, WorkT]) -> None:
        """What a connection held that has gone has been judged: no other suspect is out that could have died of the same."""
        self._clear_suspect(entry)

    def add(self, entry: Entry[DeliveryT, WorkT]) -> None:
        """An entry is ready to be handed out."""
        (self._suspects if entry.suspect else self._ready).append(entry)

    def done(self, entry: Entry[DeliveryT, WorkT], now: float) -> None:
        """The hand-out of an entry has ended with a done; its seat has room again."""
        self._clear_suspect(entry)
        seat = self._seat_of.pop(entry, None)
        if seat is None:
            return
        seat.held.remove(entry)
        seat.alone = False
        self._moved_at = seat.moved_at = seat.finished_at = now
        self._list(seat)

    def assign(
        self, now: float, fits: Fits[DeliveryT, WorkT] = lambda _seat, _entry: True
    ) -> Iterator[tuple[Seat[DeliveryT, WorkT], Entry[DeliveryT, WorkT]]]:
        """Yield each (seat, entry) that is to be handed out now; the seat holds the entry from then on.

        `fits` tells whether a connection can be given an entry at all.
        """
        vacant = self._vacant
        fruitless = 0
        while (self._ready or self._suspects) and fruitless < len(vacant) and not self.closed:
            seat = vacant[0]
            if not seat.has_room():
                vacant.popleft().listed = False
                continue
            vacant.rotate(-1)
            entry = self._next_for(seat, now, fits)
            if entry is None:
                fruitless += 1
                continue
            fruitless = 0
            seat.held.append(entry)
            self._seat_of[entry] = seat
            self._moved_at = seat.moved_at = now
            yield seat, entry

    def take_back(self) -> list[Entry[DeliveryT, WorkT]]:
        """Hand out nothing more; returns what was ready and will not be handed out."""
        self.closed = True
        left = [*self._suspects, *self._ready]
        self._suspects.clear()
        self._ready.clear()
        return left

    # -- what is so

    @property
    def seats(self) -> int:
        """How many connections there are."""
        return len(self._seats)

    @property
    def has_told_seats(self) -> bool:
        """Whether a connection is there that has been told that nothing more comes."""
        return any(seat.told_kill for seat in self._seats)

    @property
    def held(self) -> int:
        """How many entries the transformation holds."""
        return len(self._seat_of)

    @property
    def waiting(self) -> int:
        """How many entries are ready and not handed out."""
        return len(self._ready) + len(self._suspects)

    def next_waiting(self) -> list[Entry[DeliveryT, WorkT]]:
        """The entries of which one is the next to be handed out: the first suspect, and the first that is none."""
        return [row[0] for row in (self._suspects, self._ready) if row]

    def unsure_held(self) -> list[Entry[DeliveryT, WorkT]]:
        """The entries whose done may never come, because their hand-out is void or doubted."""
        return [entry for entry in self._seat_of if entry.void or entry.doubted]

    def idle_for(self, now: float) -> float:
        """Seconds since anything was handed out or done."""
        return now - self._moved_at

    # -- starvation

    def is_starved(self, now: float, unread: int) -> bool:
        """Whether the step has read everything, holds something, and for a second (a tenth, if it gathers) has finished none.

        `unread` is the number of bytes of whole frames that were sent to it and not read, on all connections.
        """
        enough = GATHERER_STARVED_AFTER if self.gathered else STARVED_AFTER
        return bool(self._seat_of) and unread == 0 and self.idle_for(now) >= enough

    def deepen(self, seat: Seat[DeliveryT, WorkT]) -> None:
        """A connection waits for input and finishes nothing: it gathers, so its depth doubles, and suspects are no exception there."""
        seat.depth = max(seat.depth, min(seat.depth * 2, MAX_DEPTH))
        seat.alone = False
        seat.gathers = True
        self._suspect_out = None
        self._list(seat)

    def gather(self, depth: int) -> None:
        """The step has said that each of its connections, those to come too, wants to hold `depth` fragments at a time."""
        self.gathered = max(self.gathered, depth)
        self._depth = max(self._depth, min(depth, MOST_GATHERED))
        for seat in self._seats:
            if seat.depth < self._depth:
                seat.depth = self._depth
                self._list(seat)

    def _next_for(
        self, seat: Seat[DeliveryT, WorkT], now: float, fits: Fits[DeliveryT, WorkT]
    ) -> Entry[DeliveryT, WorkT] | None:
        suspect = False
        if self._suspects and seat.gathers:
            row = self._suspects
        elif self._suspect_out is not None and self._goes_alone(self._suspect_out):
            return None
        elif self._suspects and self._suspect_out is None:
            if seat.held:
                return None  # it empties, and then holds the suspect alone
            if seat.is_doubtful and any(self._is_free_and_sound(each) for each in self._vacant):
                return None  # what hangs there would tell nothing of the suspect
            if self._goes_alone(self._suspects[0]) and self._is_busy(now):
                return None  # all empty, and then nothing else is out
            row, suspect = self._suspects, True
        else:
            row = self._ready
        if not row or not fits(seat, row[0]):
            return None
        entry = row.popleft()
        if suspect:
            self._suspect_out = entry
            seat.alone = True
        return entry

    def _is_free_and_sound(self, seat: Seat[DeliveryT, WorkT]) -> bool:
        return not seat.held and not seat.is_doubtful

    def _goes_alone(self, suspect: Entry[DeliveryT, WorkT]) -> bool:
        """Whether a suspect is on its last attempt, and goes out when nothing else is: of what else is out, something may be poison too.

        A step that gathers would wait for more for ever.
        """
        is_last = suspect.attempts + 1 >= self._attempts
        return is_last and not self.gathered and not any(seat.gathers for seat in self._seats)

    def _is_busy(self, now: float) -> bool:
        return bool(self._seat_of) and self.idle_for(now) < ISOLATION_PATIENCE

    def _list(self, seat: Seat[DeliveryT, WorkT]) -> None:
        if not seat.listed:
            seat.listed = True
            self._vacant.append(seat)

    def _clear_suspect(self, entry: Entry[DeliveryT, WorkT]) -> None:
        if entry is self._suspect_out:
            self._suspect_out = None
