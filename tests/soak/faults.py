"""What may go wrong in a soak, and when: a plan that a seed decides.

The same seed gives the same plan. What comes of it is another matter: real processes are never twice at the same place
when a fault meets them.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import random
import threading
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["PODS", "Fault", "FaultLog", "Kind", "finishing_at", "plan_of"]

PODS: Final = ("a", "b")
#: Seconds between two faults, and between those of a burst.
GAP, BURST_GAP = (1.0, 5.0), (0.0, 0.3)
BURST, BURST_CHANCE = (2, 4), 0.12
#: The share of the time in which the sidecar of the first pod is not ended by a fault, so that one life is long enough to leak.
SPARED: Final = (0.15, 0.8)
#: Seconds at the end in which upstream is finished and faults go on.
FINISHING_SECONDS: Final = 20.0
#: Seconds within which a deadline has told of what is silent.
NOTICED_SECONDS: Final = 35.0
#: Bytes that pass before a connection is reset in the middle of a body.
FEWEST_BYTES, MOST_BYTES = 50, 200_000


class Kind(enum.Enum):
    """What goes wrong: whom it meets, what the table calls it, for how many seconds, and how often it is in the deck."""

    target: str
    label: str
    seconds: tuple[float, float]
    cards: int

    def __new__(
        cls, target: str, label: str, cards: int, seconds: tuple[float, float] = (0.0, 0.0)
    ) -> Self:
        kind = object.__new__(cls)
        kind._value_ = f"{target}: {label}"
        kind.target, kind.label, kind.cards, kind.seconds = target, label, cards, seconds
        return kind

    LINE_CUT = "line", "connections to the broker reset", 3
    LINE_REFUSED = "line", "connections to the broker refused for 1 to 8 s", 2, (1.0, 8.0)
    LINE_FROZEN = "line", "connections to the broker frozen for 1 to 5 s", 2, (1.0, 5.0)
    LINE_SLOW = "line", "each piece to and from the broker 0.2 s late for 2 to 6 s", 2, (2.0, 6.0)
    LINE_SHORT = "line", "connections to the broker reset in the middle of a frame", 2, (1.0, 3.0)
    LINE_SILENT = "line", "all to and from the broker lost for 1 to 4 s, unnoticed", 2, (1.0, 4.0)
    NODE_KILLED = "node", "broker killed, and started again", 1, (0.0, 2.0)
    NODE_RESTARTED = "node", "broker stopped in order, and started again", 1
    NODE_FROZEN = "node", "broker's process stopped for 1 to 5 s", 1, (1.0, 5.0)
    NODE_CLOSES = "node", "broker closes all connections (320)", 1
    NODE_FULL = "node", "broker takes no messages for 2 to 6 s (memory alarm)", 1, (2.0, 6.0)
    STORE_CUT = "store", "connections to the store reset", 2
    STORE_REFUSED = "store", "connections to the store refused for 1 to 8 s", 2, (1.0, 8.0)
    STORE_FROZEN = "store", "connections to the store frozen for 1 to 5 s", 1, (1.0, 5.0)
    STORE_SHORT = "store", "connections to the store reset in the middle of bodies", 2, (1.0, 4.0)
    STORE_SILENT = "store", "all to and from the store lost for 1 to 4 s, unnoticed", 2, (1.0, 4.0)
    STORE_LIES = "store", "one answer of the store in three wrong for 3 to 8 s", 5, (3.0, 8.0)
    STEP_KILLED = "pod", "step killed", 3
    STEP_STOPPED = "pod", "step stopped for 3 s", 2, (3.0, 3.0)
    STEP_GARBAGE = "pod", "step sends a frame that is none", 2
    STEP_HALF = "pod", "step dies in the middle of a frame", 1
    STEP_HANGS = "pod", "step hangs on a fragment for 30 s, and goes on", 1
    SIDECAR_KILLED = "pod", "sidecar killed", 1
    POD_KILLED = "pod", "sidecar and step killed", 1
    SIDECAR_TOLD = "pod", "sidecar told to stop (SIGTERM), and started again", 1
    SIDECAR_STOPPED = "pod", "sidecar's process stopped for 1 to 4 s", 1, (1.0, 4.0)
    MANAGER_AWAY = "manager", "manager away for 2 to 10 s", 1, (2.0, 10.0)

    @property
    def is_noticed_late(self) -> bool:
        """Whether only a deadline tells of it: connections that lost something stay silent, and so does a step that hangs."""
        return self in {Kind.LINE_SILENT, Kind.STORE_SILENT, Kind.STEP_HANGS}

    @property
    def ends_a_sidecar(self) -> bool:
        """Whether a life of a sidecar ends by it."""
        return self in {Kind.SIDECAR_KILLED, Kind.POD_KILLED, Kind.SIDECAR_TOLD}


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault of a plan."""

    at: float
    """Seconds from the beginning."""
    kind: Kind
    pod: str
    """Whose line or process it meets; empty where both share the target."""
    seconds: float
    """How long it lasts."""
    number: int
    """A number of its own: of bytes, or a seed."""

    @property
    def target(self) -> str:
        """Whom it meets; two faults of one target follow each other."""
        return f"{self.kind.target} {self.pod}".strip()


class FaultLog:
    """A file with a line for each fault that begins or ends, to be read beside the logs of the sidecars."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()

    def note(self, fault: Fault, what: str) -> None:
        """Write what becomes of a fault now."""
        now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        planned = f"{fault.at:7.1f} s {fault.target:8} {fault.kind.label}, {fault.seconds:.1f} s"
        with self._lock, self._file.open("a", encoding="utf-8") as file:
            file.write(f"{now} {what:6} {planned}\n")


def finishing_at(seconds: float) -> float:
    """Return when upstream is finished in a soak of so many seconds."""
    return max(seconds - FINISHING_SECONDS, seconds * 0.8)


def plan_of(seed: int, seconds: float) -> list[Fault]:
    """Return the faults of a soak of so many seconds, in their order."""
    draw = random.Random(f"soak {seed}")
    deck = _cards(draw)
    plan = []
    for at in _moments(draw, seconds):
        kind = next(deck)
        fault = Fault(
            at=at,
            kind=kind,
            pod=draw.choice(PODS) if kind.target in {"line", "pod"} else "",
            seconds=draw.uniform(*kind.seconds),
            number=draw.randint(FEWEST_BYTES, MOST_BYTES),
        )
        if kind.ends_a_sidecar and SPARED[0] <= at / seconds <= SPARED[1]:
            fault = dataclasses.replace(fault, pod=PODS[1])
        if at < _last_at(kind, seconds):
            plan.append(fault)
    return plan


def _last_at(kind: Kind, seconds: float) -> float:
    """Return when a kind happens no more."""
    if kind.target == "node":
        # What a broker has not written when it dies is there again, and nobody may be left to take it.
        return finishing_at(seconds)
    return seconds - NOTICED_SECONDS if kind.is_noticed_late else seconds


def _cards(draw: random.Random) -> Iterator[Kind]:
    """Draw kinds from one shuffled deck after another, so that none is missing for long."""
    while True:
        deck = [kind for kind in Kind for _ in range(kind.cards)]
        draw.shuffle(deck)
        yield from deck


def _moments(draw: random.Random, seconds: float) -> Iterator[float]:
    now = draw.uniform(*GAP)
    while now < seconds:
        yield now
        if draw.random() < BURST_CHANCE:
            for _ in range(draw.randint(*BURST)):
                now += draw.uniform(*BURST_GAP)
                if now < seconds:
                    yield now
        now += draw.uniform(*GAP)
