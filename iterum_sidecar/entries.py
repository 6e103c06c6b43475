"""What the ledger keeps of each fragment in flight, and the words in which it speaks of them."""

from __future__ import annotations

from enum import Enum, StrEnum, auto
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Admission", "DeadLetterKind", "Entry", "Output", "Run", "State", "Verdict"]

DeliveryT = TypeVar("DeliveryT")
WorkT = TypeVar("WorkT")


class State(Enum):
    """Where an entry stands on its way."""

    WAITING = auto()
    """Admitted; its files are on their way."""
    READY = auto()
    """Its files are there; it may be handed out."""
    OUT = auto()
    """A connection of the transformation holds it."""
    DONE = auto()
    """The transformation has finished with it."""
    LEFT = auto()
    """Its hand-out ended without a done that counts; results of that hand-out may be pending."""
    CLOSED = auto()
    """Its verdict has been carried out."""


class Verdict(Enum):
    """What is to be done with an entry for which nothing is left to wait for."""

    ACKNOWLEDGE = auto()
    DEAD_LETTER = auto()
    STRIKE = auto()
    """Publish it again with its count of attempts, then acknowledge it."""
    GIVE_BACK = auto()
    """Return it to its queue."""
    AGAIN = auto()
    """Hand it out again."""


class DeadLetterKind(StrEnum):
    """What made a fragment a dead letter, for those who count them; an entry's `reason` says it in full."""

    UNREADABLE = auto()
    """The message is no description of a fragment."""
    CONFLICT = auto()
    """Another fragment of the same ID, with other files, was in flight, or was settled before."""
    INPUT_MISSING = auto()
    """An object that it names, or its bucket, is not there."""
    INPUT_REFUSED = auto()
    """A file of it cannot be fetched for another reason: it is barred, or its name is too long for the volume."""
    RESULT_REFUSED = auto()
    """A result that came of it cannot be taken, or not be stored."""
    TRANSFORMATION_FAILED = auto()
    """The transformation said that it failed on it."""
    TRANSFORMATION_DIED = auto()
    """The transformation died on it, as often as is allowed."""
    TIMED_OUT = auto()
    """The transformation did not finish it in the time that is set, as often as is allowed."""
    BREACH = auto()
    """The last of as many attempts was lost to something from the transformation that cannot be read."""


class Run(Enum):
    """What is known of the work on a fragment that an output connection has begun to tell of and not ended with a done (`fencing.py`)."""

    COUNTS = auto()
    STALE = auto()
    """It began before the hand-out that is out did."""
    STRAY = auto()
    """A result of it has been dropped."""


class Admission(Enum):
    """What the arrival of a delivery means."""

    NEW = auto()
    JOINED = auto()
    """The same fragment is in flight: this delivery settles together with the first."""
    SETTLED = auto()
    """The fragment was settled before: acknowledge at once."""
    CONFLICT = auto()
    """Another fragment of this ID is in flight."""


class Entry(Generic[DeliveryT, WorkT]):
    """One fragment in flight. `work` is the stages' own; the ledger does not look at it."""

    __slots__ = (
        "_pending",
        "attempts",
        "attempts_before",
        "deliveries",
        "doubted_by",
        "doubts",
        "editions",
        "fenced",
        "fragment_id",
        "hand_outs",
        "kind",
        "known_outputs",
        "lost_to",
        "owed",
        "reason",
        "runs",
        "signature",
        "state",
        "striking",
        "suspect",
        "unsaved",
        "verdict",
        "void",
        "work",
    )

    def __init__(
        self, fragment_id: str, signature: Hashable, delivery: DeliveryT, work: WorkT
    ) -> None:
        self.fragment_id = fragment_id
        self.signature = signature
        self.deliveries = [delivery]
        self.editions: list[Hashable] = []
        """Which message of its ID each delivery is of."""
        self.work = work
        self.state = State.WAITING
        self.verdict: Verdict | None = None
        self.reason = ""
        """Why it is a dead letter, once anything made it one; `condemn` sets it."""
        self.kind: DeadLetterKind | None = None
        self.hand_outs = 0
        """How often it has been handed out in this life."""
        self.attempts = 0
        """How many deaths of the transformation are to be blamed on it."""
        self.attempts_before = 0
        """How many of them its messages have brought along; the most, if they differ."""
        self.lost_to: DeadLetterKind | None = None
        """What the last of these attempts was lost to."""
        self.unsaved = False
        """Whether `attempts` is more than the message in its queue says."""
        self.suspect = False
        """Whether it must be handed out alone, because it may have caused a death."""
        self.striking = False
        """Whether its hand-out was ended by a death, so that its count of attempts must be saved in the queue."""
        self.void = False
        """Whether the done of its hand-out does not count."""
        self.owed = 0
        """How many further dones do not count."""
        self.runs: dict[Hashable, Run] = {}
        """By output connection: those that have sent a result of it and no done since."""
        self.fenced = False
        """Whether only one output connection may speak of its hand-out, because it was handed out before."""
        self.doubted_by: frozenset[Hashable] = frozenset()
        """The output connections by which a done has come since its hand-out that did not count, so that another may never come."""
        self.doubts = 0
        """How many of its hand-outs were given up for that."""
        self._pending = 0
        self.known_outputs: set[str] = set()
        """The IDs of its outputs that are confirmed."""

    def __repr__(self) -> str:
        return f"<Entry {self.fragment_id[:8]} {self.state.name} pending={self._pending} verdict={self.verdict}>"

    def condemn(self, reason: str, kind: DeadLetterKind) -> None:
        """Note what makes it a dead letter; the first that is noted stays."""
        if not self.reason:
            self.reason = reason
            self.kind = kind

    @property
    def doubted(self) -> bool:
        """Whether the done that ends its hand-out may never come."""
        return bool(self.doubted_by)

    @property
    def pending(self) -> int:
        """How many of its outputs are not safe yet."""
        return self._pending


class Output(Generic[DeliveryT, WorkT]):
    """One result on its way to its queue; `entries` wait for it."""

    __slots__ = ("entries", "output_id", "repeated", "stray")

    def __init__(
        self,
        output_id: str,
        entries: list[Entry[DeliveryT, WorkT]],
        *,
        repeated: bool = False,
        stray: bool = False,
    ) -> None:
        self.output_id = output_id
        self.entries = entries
        self.repeated = repeated
        """Whether an output of this ID is pending or confirmed already, so that this one must not be published."""
        self.stray = stray
        """Whether it is of a hand-out that is over, so that it has no ID and must not be published (`fencing.py`)."""

    @property
    def late(self) -> bool:
        """Whether none of its predecessors is in flight: no acknowledgement protects it."""
        return not self.entries and not self.stray
