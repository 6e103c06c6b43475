"""What the ledger keeps of each fragment in flight, and the words in which it speaks of them."""

from __future__ import annotations

from enum import Enum, auto
from typing import Generic, TypeVar

__all__ = ["Admission", "Entry", "Output", "State", "Verdict"]

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
        "deliveries",
        "fragment_id",
        "hand_outs",
        "known_outputs",
        "owed",
        "reason",
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
        self, fragment_id: str, signature: object, delivery: DeliveryT, work: WorkT
    ) -> None:
        self.fragment_id = fragment_id
        self.signature = signature
        self.deliveries = [delivery]
        self.work = work
        self.state = State.WAITING
        self.verdict: Verdict | None = None
        self.reason = ""
        """Why it is a dead letter, once anything made it one."""
        self.hand_outs = 0
        """How often it has been handed out in this life."""
        self.attempts = 0
        """How many deaths of the transformation are to be blamed on it."""
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
        self._pending = 0
        self.known_outputs: set[str] = set()
        """The IDs of its outputs that are confirmed."""

    def __repr__(self) -> str:
        return f"<Entry {self.fragment_id[:8]} {self.state.name} pending={self._pending} verdict={self.verdict}>"

    @property
    def pending(self) -> int:
        """How many of its outputs are not safe yet."""
        return self._pending


class Output(Generic[DeliveryT, WorkT]):
    """One result on its way to its queue; `entries` wait for it."""

    __slots__ = ("entries", "output_id", "repeated")

    def __init__(
        self, output_id: str, entries: list[Entry[DeliveryT, WorkT]], *, repeated: bool
    ) -> None:
        self.output_id = output_id
        self.entries = entries
        self.repeated = repeated
        """Whether an output of this ID is pending or confirmed already, so that this one must not be published."""

    @property
    def late(self) -> bool:
        """Whether none of its predecessors is in flight: no acknowledgement protects it."""
        return not self.entries
