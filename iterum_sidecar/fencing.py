"""Whose word counts for a fragment that was handed out before: what processes that were given up go on sending is kept out.

A process whose input connection closed may live on, and send results and dones of the hand-out that it has lost: while its
fragment waits, while it is with another process, or when it is settled long since. Nothing in a frame tells which hand-out it is of. But
an output and the done of its predecessors travel on one connection (contract, section 2), so what comes of a fragment by one output
connection between two dones of it is one *run* of the work, and a run counts as a whole or not at all:

- Of the first hand-out every run counts, as if there were no others.
- Of a later one that run counts from which the first result came, or a done without any. What comes of it by other connections is stray.
- A run that began before the hand-out did, or of which a result was stray, never counts; its done ends the run and nothing else.
- A done without a result does not count while a run is open of which a result was stray: it may be that run's, by another connection.
  Nor does it if a done came by its connection since the hand-out that did not count: a step that has been handed a fragment twice says
  two dones of it, and the second may be of what was dropped too.

Plain data like the ledger, which asks it. A connection is known by its `source`, whatever that is, as long as each has another.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum, auto
from typing import TYPE_CHECKING, Generic, TypeVar

from iterum_sidecar.entries import Entry, Run, State

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

__all__ = ["GIVEN_UP_REMEMBERED", "Fence"]

#: How many fragments that were handed out more than once are known after their end, when late results of them may still come.
GIVEN_UP_REMEMBERED = 100_000

DeliveryT = TypeVar("DeliveryT")
WorkT = TypeVar("WorkT")


# The names of an Enum's members are looked up slowly, and every result and every done comes through here.
_OUT, _DONE = State.OUT, State.DONE
_RUN_COUNTS, _RUN_IS_STALE, _RUN_IS_STRAY = Run.COUNTS, Run.STALE, Run.STRAY


class _Standing(Enum):
    """What a result is to one of its predecessors."""

    COUNTS = auto()
    """It is of a run that counts: to drop it would be a loss."""
    MAY_COUNT = auto()
    """Nothing has been heard of this hand-out, so its run may become the one that counts."""
    STRAY = auto()
    """It is of a run that does not count: the fragment is made again, or has been."""
    NONE = auto()
    """The fragment was settled in its first hand-out, or was never here."""


_COUNTS, _MAY_COUNT, _STRAY, _NONE = _Standing


class Fence(Generic[DeliveryT, WorkT]):
    """The runs of the fragments of one ledger."""

    def __init__(self) -> None:
        self._given_up: OrderedDict[str, dict[Hashable, Run]] = OrderedDict()
        """The open runs, by source, of fragments of which a hand-out has ended without a done."""

    def begin(self, entry: Entry[DeliveryT, WorkT]) -> None:
        """A hand-out begins: what still comes of runs that are open does not count."""
        known = self._given_up.get(entry.fragment_id)
        entry.fenced = known is not None or entry.hand_outs > 1 or entry.attempts > 0
        entry.doubted_by = frozenset()
        if known is not None:
            entry.runs = known
        for source, run in entry.runs.items():
            entry.runs[source] = _RUN_IS_STALE if run is _RUN_COUNTS else run
        if entry.fenced:
            self._remember(entry)

    def end(self, entry: Entry[DeliveryT, WorkT]) -> None:
        """A hand-out has ended without a done that counts: whoever had it may go on sending."""
        self._remember(entry)

    def hear_result(
        self,
        fragment_ids: Iterable[str],
        entries: Mapping[str, Entry[DeliveryT, WorkT]],
        source: Hashable,
    ) -> list[Entry[DeliveryT, WorkT]] | None:
        """A result of these fragments has come: return the entries that are to wait for it, or None if it is stray.

        It is not stray as long as one of them counts on it. Those that do not are made again, and do not wait.
        """
        standings = []
        counts = stray = False
        for fragment_id in fragment_ids:
            entry = entries.get(fragment_id)
            standing = self._standing(fragment_id, entry, source)
            counts = counts or standing is _COUNTS
            stray = stray or standing is _STRAY
            standings.append((fragment_id, entry, standing))
        dropped = stray and not counts
        waiting: list[Entry[DeliveryT, WorkT]] = []
        for fragment_id, entry, standing in standings:
            if standing is _NONE:
                continue
            heard = not dropped and standing is not _STRAY
            if heard and entry is not None:
                waiting.append(entry)
            self._runs(fragment_id, entry)[source] = _RUN_COUNTS if heard else _RUN_IS_STRAY
        return None if dropped else waiting

    def hear_done(
        self, fragment_id: str, entry: Entry[DeliveryT, WorkT] | None, source: Hashable
    ) -> bool:
        """A done has come, which ends a run: tell whether it is one that counts, of the hand-out that is out now."""
        run = self._runs(fragment_id, entry).pop(source, None)
        if entry is None or entry.state is not _OUT:
            return False
        if run is _RUN_COUNTS:
            return True
        is_first = run is None and source not in entry.doubted_by
        if is_first and (
            not entry.fenced or all(each is _RUN_IS_STALE for each in entry.runs.values())
        ):
            return True
        entry.doubted_by |= {source}
        return False

    def _standing(
        self, fragment_id: str, entry: Entry[DeliveryT, WorkT] | None, source: Hashable
    ) -> _Standing:
        if entry is None or (entry.state is _DONE and entry.verdict is not None):
            return _STRAY if fragment_id in self._given_up else _NONE
        if entry.state is not _OUT and entry.state is not _DONE:
            return _STRAY
        run = entry.runs.get(source)
        if run is _RUN_COUNTS or (run is None and not entry.fenced):
            return _COUNTS
        is_first = run is None and _RUN_COUNTS not in entry.runs.values()
        return _MAY_COUNT if is_first and entry.state is _OUT else _STRAY

    def _runs(self, fragment_id: str, entry: Entry[DeliveryT, WorkT] | None) -> dict[Hashable, Run]:
        """Return the open runs of a fragment. An entry that was never handed out has those of its ID's earlier life."""
        known = self._given_up.get(fragment_id)
        if known is not None:
            return known
        return {} if entry is None else entry.runs

    def _remember(self, entry: Entry[DeliveryT, WorkT]) -> None:
        self._given_up[entry.fragment_id] = entry.runs
        self._given_up.move_to_end(entry.fragment_id)
        if len(self._given_up) > GIVEN_UP_REMEMBERED:
            self._given_up.popitem(last=False)
