"""How long fragments and outputs take in each stage, counted as they pass, so that nothing is left to do when somebody asks.

Plain data: a histogram is a list of counts. It is told the time by a clock that is given, in seconds.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Literal, TypeAlias

from iterum_sidecar.entries import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from iterum_sidecar.cargo import FragmentCargo, FragmentEntry, OutputCargo, Parcel

__all__ = ["FRAGMENT_STAGES", "OUTPUT_STAGES", "Histogram", "Stage", "StageTimes"]

#: Where a fragment is, or an output: waiting for its files; ready, and waiting for the transformation; with the transformation;
#: finished there, and waiting for its outputs to be safe, or for its verdict. An output is first uploaded, then published.
Stage: TypeAlias = Literal[
    "download", "ready", "transformation", "results", "upload", "publish", "settled"
]
FRAGMENT_STAGES: tuple[Stage, ...] = ("download", "ready", "transformation", "results")
OUTPUT_STAGES: tuple[Stage, ...] = ("upload", "publish")

#: Seconds: from what a small file takes on a fast network to what an hour's work on one fragment takes.
BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0),
)


class Histogram:
    """Counts of observed values by upper bound; the last count is of those above all `bounds`."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value; one that equals a bound is within it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many values have been observed."""
        return sum(self.counts)


class StageTimes:
    """The times of one life of the sidecar: `stages` by stage, and `whole`, of the fragments that were acknowledged.

    The stages tell it of all that passes; `tracing.py` has one that makes spans of it too.
    """

    __slots__ = ("clock", "stages", "whole")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.stages = {stage: Histogram() for stage in (*FRAGMENT_STAGES, *OUTPUT_STAGES)}
        self.whole = Histogram()

    def begin(self, cargo: FragmentCargo, headers: Mapping[str, object]) -> None:
        """A delivery with these headers is let in: it comes to its first stage."""
        cargo.since = cargo.began = self.clock()

    def enter(self, cargo: FragmentCargo, stage: Stage) -> None:
        """A fragment goes on to another stage; its time in the last one is observed."""
        now = self.clock()
        self.stages[cargo.stage].observe(now - cargo.since)
        cargo.stage = stage
        cargo.since = now

    def end(self, entry: FragmentEntry) -> None:
        """A fragment's verdict is carried out; if it was processed, its whole time counts."""
        cargo = entry.work
        self.enter(cargo, "settled")
        if entry.verdict is Verdict.ACKNOWLEDGE:
            self.whole.observe(cargo.since - cargo.began)

    def pass_output(self, stage: Stage, cargo: OutputCargo | Parcel) -> float:
        """An output has passed a stage in which it was since `cargo.since`; returns the time that it is now."""
        now = self.clock()
        self.stages[stage].observe(now - cargo.since)
        return now

    def headers_of(self, parcel: Parcel) -> Mapping[str, str] | None:
        """Return the headers that an output is to be published with; None for none."""
        return None
