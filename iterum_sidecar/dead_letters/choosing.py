"""Which dead letters are meant: the words of the command line held against each letter, and what to say where they fit none."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from iterum_sidecar.dead_letters.errors import NotDone
from iterum_sidecar.dead_letters.letter import DIGEST_MARK
from iterum_sidecar.local.progress import count, printable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from iterum_sidecar.dead_letters.letter import Letter

__all__ = ["Choosing", "Selection", "by_kind", "what_stays"]

#: So many letters of one beginning are named where only one may be meant.
_MOST_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Selection:
    """What the command line says of the letters that are meant: all of it must fit. `ids` are IDs or digests, or beginnings of them."""

    ids: tuple[str, ...] = ()
    kinds: frozenset[str] = frozenset()
    reason: str = ""
    after: datetime | None = None
    before: datetime | None = None
    limit: int | None = None
    """At most so many, in the order of the queue."""
    everything: bool = False

    @property
    def is_said(self) -> bool:
        """Whether it says at all which are meant; a limit alone does not."""
        return self.everything or self.narrows

    @property
    def narrows(self) -> bool:
        """Whether a letter may not be meant."""
        return bool(self.ids or self.kinds or self.reason or self.after or self.before)


class Choosing:
    """Goes through the letters of a queue one by one, and counts; `seen` and `fitting` are by kind."""

    def __init__(self, selection: Selection, queue: str) -> None:
        self._selection = selection
        self._queue = queue
        self._reason = selection.reason.casefold()
        self._named: dict[str, set[str]] = {each: set() for each in selection.ids}
        self.seen: Counter[str] = Counter()
        self.fitting: Counter[str] = Counter()
        self.chosen = 0
        self.has_no_queue = False
        """Whether there is not even a queue for dead letters."""
        self.most_deliveries = 0
        """How often one of them had been delivered before, by the count of a quorum queue."""

    @property
    def can_be_taken_back(self) -> bool:
        """Whether a letter that was chosen may turn out not to be meant, so that all have to be looked at first."""
        return bool(self._selection.ids)

    def takes(self, letter: Letter) -> bool:
        """Tell whether a letter is meant."""
        self.seen[letter.kind] += 1
        self.most_deliveries = max(self.most_deliveries, letter.deliveries)
        if not self._fits(letter):
            return False
        self.fitting[letter.kind] += 1
        limit = self._selection.limit
        if limit is not None and self.chosen >= limit:
            return False
        self.chosen += 1
        return True

    def _fits(self, letter: Letter) -> bool:
        selection = self._selection
        if selection.kinds and letter.kind not in selection.kinds:
            return False
        if self._reason and self._reason not in letter.reason.casefold():
            return False
        moment = letter.moment
        if selection.after and (moment is None or moment < selection.after):
            return False
        if selection.before and (moment is None or moment >= selection.before):
            return False
        return not selection.ids or self._is_named(letter)

    def _is_named(self, letter: Letter) -> bool:
        fits = False
        for each, names in self._named.items():
            name = letter.digest if each.startswith(DIGEST_MARK) else letter.fragment_id
            if name.startswith(each):
                fits = True
                if len(names) <= _MOST_NAMED:
                    names.add(name)
        return fits

    def conclude(self) -> None:
        """Hold what was chosen against what was asked for, once all letters have been looked at.

        Raises:
            NotDone: nothing fits, or the beginning of an ID fits several.
        """
        for beginning, names in self._named.items():
            if len(names) > 1:
                some = sorted(names)[:_MOST_NAMED]
                more = ", and more" if len(names) > _MOST_NAMED else ""
                raise NotDone(
                    f"{beginning} is the beginning of several: {', '.join(some)}{more}; give more of it"
                )
        if not self.chosen:
            total = self.seen.total()
            if not total:
                raise NotDone(f"no dead letters in {printable(self._queue)}")
            raise NotDone(
                f"none of {count(total, 'dead letter')} in {printable(self._queue)} fits; there are {by_kind(self.seen)}"
            )

    @property
    def is_ambiguous(self) -> bool:
        """Whether the beginning of an ID has fitted several already, so that nothing will come of it."""
        return any(len(names) > 1 for names in self._named.values())

    @property
    def missing(self) -> list[str]:
        """The IDs that were asked for and fit no letter."""
        return [each for each, names in self._named.items() if not names]


def what_stays(gone: int, seen: int, queue: str) -> str:
    """Return how many of a queue's letters are still there."""
    if gone == seen:
        return f"none is left in {printable(queue)}"
    return f"{seen - gone:,} of {seen:,} {'stays' if seen - gone == 1 else 'stay'} in {printable(queue)}"


def by_kind(kinds: Counter[str]) -> str:
    """Return how many there are of each kind, the most first."""
    counted: Iterable[tuple[str, int]] = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number:,} {printable(kind)}" for kind, number in counted)
