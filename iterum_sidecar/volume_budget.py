"""How many bytes of input files may be on the volume at a time, and who waits for room.

A *share* is what one fragment has of it, from before its download to its settling; a *room* is what one file has of that.
Who comes first is first: a share that waits is overtaken by none that was opened after it. There is always one that goes on:

- The eldest of those that download is let in whatever its size once nothing is held by a share past its download. Several
  that are half downloaded never wait for each other.
- A transformation that holds all that is here and waits for more (`allow_more`) gets one more fragment, then two, four, as long
  as it finishes none. What it has needed is the limit from then on.

Nothing here asks for the time, and no file is touched: what is free on the volume is told by a callable.
"""

from __future__ import annotations

import math
from bisect import insort
from typing import TYPE_CHECKING, NamedTuple, final

import trio

from iterum_sidecar.telemetry.logs import get_log

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MustGiveWay", "NoRoom", "Room", "Share", "VolumeBudget"]

_log = get_log(__name__)


class NoRoom(Exception):
    """A file is not let onto the volume now; `Room.wait` returns when it is."""


class MustGiveWay(Exception):
    """The disk is full, and what the fragment has of it keeps an elder one from being whole."""


class _Waiter(NamedTuple):
    share: Share
    size: int
    answered: trio.Event


@final
class VolumeBudget:
    """The budget of one volume; sizes are in bytes.

    `limit` is the operator's: 0 is no bound, and None half of what is free now. `available` tells what is free on the volume,
    None where nobody knows.
    """

    def __init__(self, limit: int | None, available: Callable[[], int | None]) -> None:
        self._available = available
        self._most = float(limit or math.inf)
        self.limit = self._most
        """How many bytes may be held; it has grown where a step needed more, and shrunk where the disk took less."""
        self.held = 0
        """How many bytes are held by all shares, of which some may still be on their way."""
        self._held_past = 0
        self._downloading: dict[Share, None] = {}
        self._opened = 0
        self._waiting: list[_Waiter] = []
        self._leave = 0
        """How many more shares may exceed the limit, for a step that starves."""
        self._next_leave = 1
        self.blocked_by: Share | None = None
        """The share that has waited for the disk, and lets nobody else take what comes free there."""
        self._starves = False
        self._told = False
        if limit is None:
            self.limit = self._half_of_what_is_free()

    @property
    def is_holding_up(self) -> bool:
        """Whether a fragment waits for room."""
        return bool(self._waiting)

    @property
    def will_shrink(self) -> bool:
        """Whether something that is held is worked on, and not with a step that waits for more."""
        return self._held_past > 0 and not self._starves

    def open(self) -> Share:
        """Return a share for a fragment whose download begins now."""
        self._opened += 1
        share = Share(self, self._opened)
        self._downloading[share] = None
        return share

    def allow_more(self) -> bool:
        """A step starves: let more fragments in than the limit says, if any waits for room; otherwise return False."""
        if self.blocked_by is not None:
            self._starves = True
            return True  # the disk is full
        if not self._waiting:
            return False
        self._leave += self._next_leave
        self._next_leave *= 2
        self._serve()
        _log.info(
            "the volume's budget grows: the transformation gathers",
            budget_bytes=_shown(self.limit),
        )
        return True

    # -- for the shares

    def _admits(self, share: Share, size: int) -> bool:
        waiting = self._waiting
        is_overtaking = bool(waiting) and waiting[0].share.number < share.number
        return not is_overtaking and self._has_room(share, size)

    def _has_room(self, share: Share, size: int) -> bool:
        if self.blocked_by is not None and self.blocked_by is not share:
            return False
        if share.exempt or self.held + size <= self.limit:
            return True
        return self._held_past == 0 and share.is_eldest

    def _add(self, share: Share, size: int) -> None:
        self.held += size
        share.held += size
        if share.exempt:
            self.limit = max(self.limit, self.held)

    def _remove(self, share: Share, size: int) -> None:
        self.held -= size
        share.held -= size
        if not share.is_downloading:
            self._held_past -= size
            # Something was finished, so nothing starves any more.
            self._leave, self._next_leave, self._starves = 0, 1, False
        if self._waiting:
            self._serve()

    def _end_download(self, share: Share) -> None:
        del self._downloading[share]
        self._held_past += share.held
        if self.blocked_by is share:
            self.blocked_by = None
        if self._waiting:
            self._serve()

    async def _wait(self, share: Share, size: int) -> None:
        """Return when so many bytes more are the share's."""
        if self._is_in_the_way(share):
            raise MustGiveWay
        waiter = _Waiter(share, size, trio.Event())
        insort(self._waiting, waiter, key=lambda each: each.share.number)
        self._serve()
        try:
            if not self._told and not waiter.answered.is_set():
                self._told = True
                _log.info(
                    "fragments wait for room on the volume (SIDECAR_VOLUME_BUDGET); this is said once",
                    budget_bytes=_shown(self.limit),
                    held_bytes=self.held,
                )
            await waiter.answered.wait()
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                self._serve()
        if self._is_in_the_way(share):
            raise MustGiveWay

    def _serve(self) -> None:
        """Give room to those that wait, in their order, until one of them has none."""
        if self.limit < self._most:
            self.limit = max(self.limit, min(self._most, self._half_of_what_is_free()))
        while self._waiting:
            share, size, answered = self._waiting[0]
            if not self._has_room(share, size):
                if not self._leave or self.blocked_by is not None:
                    return
                self._leave -= 1
                share.exempt = True
            del self._waiting[0]
            self._add(share, size)
            answered.set()

    def _is_in_the_way(self, share: Share) -> bool:
        blocked_by = self.blocked_by
        return blocked_by is not None and blocked_by is not share and share.held > 0

    def _half_of_what_is_free(self) -> float:
        # What is reserved by downloads counts as free as long as it is not written, so it is not added.
        available = self._available()
        return math.inf if available is None else (self._held_past + available) // 2


@final
class Share:
    """What one fragment holds of the budget."""

    __slots__ = ("_budget", "exempt", "held", "is_downloading", "number")

    def __init__(self, budget: VolumeBudget, number: int) -> None:
        self._budget = budget
        self.number = number
        self.held = 0
        self.is_downloading = True
        self.exempt = False
        """Whether the limit does not hold for it, since a step starves."""

    @property
    def is_eldest(self) -> bool:
        """Whether no other that downloads was opened before it."""
        return self is next(iter(self._budget._downloading), None)

    def room(self) -> Room:
        """Return the room of one of its files, which is nothing as yet."""
        return Room(self)

    def downloaded(self) -> None:
        """Its files are on the volume, and stay there until `release`."""
        if self.is_downloading:
            self.is_downloading = False
            self._budget._end_download(self)

    def release(self) -> None:
        """Its files are gone from the volume. Calling it again changes nothing."""
        self.downloaded()
        if self.held:
            self._budget._remove(self, self.held)

    def give_way(self) -> None:
        """The disk is full and its files are gone from it: the others keep what they have, and nobody gets more than that for now."""
        budget = self._budget
        self.exempt = False
        budget.limit = min(budget.limit, budget.held - self.held)
        budget._remove(self, self.held)

    def block(self) -> None:
        """It waits for the disk, which is full: until the end of its download all that comes free there is for it alone."""
        self._budget.blocked_by = self
        for waiter in self._budget._waiting:
            if self._budget._is_in_the_way(waiter.share):
                waiter.answered.set()


@final
class Room:
    """What one file of a share has; `admit` is what a store is given (`stores/port.py`)."""

    __slots__ = ("_wanted", "share", "size")

    def __init__(self, share: Share) -> None:
        self.share = share
        self._wanted = 0
        self.size = 0

    def admit(self, size: int) -> None:
        """Take room for a file of this size, in place of what it had.

        Raises:
            NoRoom: there is none, and nothing has changed.
        """
        budget, more = self.share._budget, size - self.size
        # Most files of most steps are decided by the first of these, for next to nothing.
        hindered = budget.held + more > budget.limit or budget._waiting or budget.blocked_by
        if hindered and more > 0 and not budget._admits(self.share, more):
            self._wanted = size
            raise NoRoom
        self.is_written(size)

    @property
    def wanted(self) -> int:
        """The size that it has, or waits for."""
        return max(self._wanted, self.size)

    async def wait(self) -> None:
        """Return when there is room for the size that `admit` has refused; it is kept for this file.

        Raises:
            MustGiveWay: all that the fragment has is wanted by an elder one; `Share.give_way` is due.
        """
        await self.share._budget._wait(self.share, self._wanted - self.size)
        self.size, self._wanted = self._wanted, 0

    def is_written(self, size: int) -> None:
        """The file has this size, whether that was admitted or not."""
        more = size - self.size
        if more > 0:
            self.share._budget._add(self.share, more)
        elif more < 0:
            self.share._budget._remove(self.share, -more)
        self.size, self._wanted = size, 0


def _shown(limit: float) -> int | None:
    return None if limit == math.inf else int(limit)
