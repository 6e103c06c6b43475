"""How results are told apart that agree in all that their identities are made of: by their ordinals.

An ordinal begins again whenever a predecessor is handed out anew, so that work done twice has the same identities. Results that come
late, when all of their predecessors are settled, count on from where those before them ended.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LATE_KINDS", "Kind", "Ordinals"]

#: How many kinds of late results keep their ordinals; a late result is one whose predecessors are all settled.
LATE_KINDS = 4096

#: What results agree in that are told apart by an ordinal: predecessors, output channel, names of the files.
Kind: TypeAlias = tuple[tuple[str, ...], str | None, tuple[str, ...]]


class Ordinals:
    """The ordinals of the results of one ledger."""

    def __init__(self) -> None:
        self._next: dict[Kind, int] = {}
        self._kinds_of: dict[str, list[Kind]] = {}
        self._late: OrderedDict[Kind, int] = OrderedDict()

    def take(self, kind: Kind, in_flight: Sequence[str]) -> int:
        """Return the ordinal of a result of this kind; `in_flight` are those of its predecessors that wait for it."""
        if not in_flight:
            ordinal = self._late.pop(kind, 0)
            self._keep_late(kind, ordinal + 1)
            return ordinal
        ordinal = self._next.get(kind, 0)
        if ordinal == 0:
            for fragment_id in in_flight:
                self._kinds_of.setdefault(fragment_id, []).append(kind)
        self._next[kind] = ordinal + 1
        return ordinal

    def keep(self, fragment_id: str) -> None:
        """A predecessor is settled: what comes of it, or of the others with it, counts on."""
        for kind in self._kinds_of.pop(fragment_id, ()):
            if not any(each in self._kinds_of for each in kind[0]):
                self._keep_late(kind, self._next.pop(kind, 0))

    def leave(self, fragment_id: str) -> None:
        """A predecessor is gone otherwise: what comes of it begins again, unless others that are here are predecessors too."""
        for kind in self._kinds_of.pop(fragment_id, ()):
            if not any(kind in self._kinds_of.get(each, ()) for each in kind[0]):
                self._next.pop(kind, None)

    def forget(self, fragment_id: str) -> None:
        """A predecessor is handed out anew: what comes of it begins again."""
        for kind in self._kinds_of.pop(fragment_id, ()):
            self._next.pop(kind, None)

    def _keep_late(self, kind: Kind, ordinal: int) -> None:
        self._late[kind] = ordinal
        if len(self._late) > LATE_KINDS:
            self._late.popitem(last=False)
