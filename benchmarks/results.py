"""What the benchmarks write down, and the little arithmetic on it: medians, noise, ratios to the floor."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta, Struct

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["FLOOR", "BadResults", "Figures", "Machine", "Results", "Row", "Value", "read_results"]

#: The contender that all others of its stage or load are held against.
FLOOR = "floor"

Positive = Annotated[float, Meta(gt=0)]


class BadResults(Exception):
    """A file does not hold results; the message is one line and names the file."""


class Figures(Struct, frozen=True, forbid_unknown_fields=True):
    """What one run took: seconds of CPU (user and system), seconds, and bytes of memory at its peak."""

    operations: Annotated[int, Meta(gt=0)]
    cpu: Positive
    wall: Positive
    memory: Annotated[int, Meta(gt=0)]

    @property
    def cpu_each(self) -> float:
        """Seconds of CPU for an operation."""
        return self.cpu / self.operations


class Value(Struct, frozen=True):
    """A median, half the range of what it is the median of (None of a single figure: nobody knows), and of how many that is."""

    median: float
    noise: float | None
    count: int

    @classmethod
    def of(cls, figures: Iterable[float]) -> Value:
        """Return the median of at least one figure, with its noise."""
        known = list(figures)
        noise = (max(known) - min(known)) / 2 if len(known) > 1 else None
        return cls(statistics.median(known), noise, len(known))

    @property
    def share(self) -> float | None:
        """The noise as a share of the median."""
        return None if self.noise is None else self.noise / self.median


class Row(Struct, forbid_unknown_fields=True):
    """All runs of one contender in one stage, or of one command under one load; and whatever was not as it should be."""

    part: Literal["journey", "stage"]
    name: str
    contender: str
    runs: list[Figures]
    faults: list[str] = []

    @property
    def key(self) -> tuple[str, str, str]:
        """What is equal for the same row of two results."""
        return self.part, self.name, self.contender

    @property
    def cpu(self) -> Value | None:
        """Seconds of CPU for an operation; None where no run came to its end."""
        return Value.of(run.cpu_each for run in self.runs) if self.runs else None

    @property
    def rate(self) -> Value | None:
        """Operations a second."""
        return Value.of(run.operations / run.wall for run in self.runs) if self.runs else None

    @property
    def memory(self) -> Value | None:
        """Bytes at the peak."""
        return Value.of(run.memory for run in self.runs) if self.runs else None


class Machine(Struct, frozen=True, forbid_unknown_fields=True):
    """What the figures were taken on. `memory` is in bytes; `files` says on which kind of file system the files were."""

    cpu: str
    cores: int
    memory: int
    kernel: str
    files: str


class Results(Struct, forbid_unknown_fields=True):
    """Everything that one call of the benchmarks has found out. `taken` is when it began; `load_average` is of that moment."""

    taken: str
    machine: Machine
    versions: dict[str, str]
    load_average: tuple[float, float, float]
    rows: list[Row]

    def ratio(self, row: Row) -> Value | None:
        """Return a row's CPU for an operation over that of its floor; None for the floor itself, or where either is missing.

        Each run is held against the floor's of the same round, so that what slows the whole machine is no noise of the ratio.
        """
        floor = next((each for each in self.rows if each.key == (row.part, row.name, FLOOR)), None)
        if floor is None or floor is row or not row.runs or not floor.runs:
            return None
        rounds = zip(row.runs, floor.runs, strict=False)
        return Value.of(one.cpu_each / other.cpu_each for one, other in rounds)


def read_results(path: Path) -> Results:
    """Read a file that `python -m benchmarks --json` has written. Raises BadResults."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadResults(f"{path}: {error.strerror}") from None
    try:
        return msgspec.json.decode(data, type=Results)
    except msgspec.ValidationError as error:
        raise BadResults(
            f"{path}: not what `python -m benchmarks --json` writes: {error}"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadResults(f"{path}: not JSON: {error}") from None
