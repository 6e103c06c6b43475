"""What travels through the channels from stage to stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from iterum_sidecar.entries import Entry, Output
    from iterum_sidecar.ledger import Ledger
    from iterum_sidecar.messages import RemoteFragment, Result
    from iterum_sidecar.roster import Roster
    from iterum_sidecar.telemetry.stage_times import Stage
    from iterum_sidecar.volume import TakenFile, Volume, Workspace
    from iterum_sidecar.volume_budget import Share

__all__ = [
    "FragmentCargo",
    "FragmentEntry",
    "FragmentLedger",
    "FragmentOutput",
    "FragmentRoster",
    "Gathering",
    "HandoutNews",
    "IntakeNews",
    "News",
    "OutputCargo",
    "Parcel",
    "Parting",
]


@dataclass(slots=True, eq=False)
class FragmentCargo:
    """What the stages know of a fragment in flight; the `work` of its ledger entry."""

    message: RemoteFragment | None
    """None for a delivery that is no fragment."""
    workspace: Workspace | None = None
    share: Share | None = None
    """What its files hold of the volume's budget, from its download on."""
    results: list[TakenFile] = field(default_factory=list)
    """The results that came of its present hand-out, whose own paths are to be removed."""
    stage: Stage = "download"
    since: float = 0.0
    """When it came to its stage, and in `began` when it was let in (`telemetry/stage_times.py`)."""
    began: float = 0.0

    def remove_files(self, volume: Volume) -> None:
        """Remove its files from the volume. Calling it again changes nothing."""
        if self.workspace is None or self.message is None:
            return
        names = [file.name for file in self.message.files]
        volume.remove_workspace(self.workspace, names, self.share.held if self.share else 0)
        self.workspace = None


# A delivery is whatever the broker in use makes of it.
FragmentEntry: TypeAlias = "Entry[Any, FragmentCargo]"
FragmentOutput: TypeAlias = "Output[Any, FragmentCargo]"
FragmentLedger: TypeAlias = "Ledger[Any, FragmentCargo]"
FragmentRoster: TypeAlias = "Roster[Any, FragmentCargo]"


@dataclass(slots=True, eq=False)
class OutputCargo:
    """A result of the transformation on its way to the store."""

    output: FragmentOutput
    message: Result
    files: list[TakenFile]
    queue: str
    target_queue: str | None
    since: float
    """When it was taken."""


@dataclass(slots=True, eq=False)
class Parcel:
    """A stored output on its way to its queue; `body` is its remote description."""

    output: FragmentOutput
    queue: str
    body: bytes
    since: float
    """When it was stored."""


@dataclass(slots=True, eq=False)
class Parting:
    """An input connection of the transformation has closed."""

    held: list[tuple[FragmentEntry, int]]
    """The entries, each with the number of the hand-out that has ended by this."""
    death: bool
    """Whether it came unasked, and after a fragment had been read."""
    hung_for: float = 0.0
    """The seconds after which it was given up because it hung, with all that hung with it; 0 if it was not."""


@dataclass(slots=True, frozen=True)
class Gathering:
    """The transformation has said how many fragments it holds at a time, all connections together; `batch` is what one gathers."""

    fragments: int
    batch: int


class News(Enum):
    """What intake is told about the world behind it."""

    FINISHED = auto()
    """All earlier steps are finished."""
    STARVED = auto()
    """A connection of the transformation waits for more fragments than the window allows."""
    ALL_STARVED = auto()
    """All of them that hold something do."""
    IDLE = auto()
    """Nothing is in flight."""


# What collect tells handout, and what intake is told by all.
HandoutNews: TypeAlias = "FragmentEntry | Gathering"
IntakeNews: TypeAlias = "News | Gathering"
