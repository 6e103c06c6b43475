"""The four curves, and how one is measured: every point in turn, several times over."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from typing import TYPE_CHECKING, TypeAlias

from benchmarks.scale.drive import Backlog, Sample, backlog, drive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.pod import Peers

UNSET = "prefetch unset"
SET = "prefetch 100"


@dataclasses.dataclass(frozen=True)
class Point:
    """What is measured at one place of a curve: `queued` fragments, of which `wanted` at least are processed."""

    x: int
    queued: int
    wanted: int
    files: int = 1
    connections: int = 1
    instances: int = 1
    series: str = SET

    @property
    def prefetch(self) -> int | None:
        """What MQ_PREFETCH_COUNT says."""
        return None if self.series == UNSET else 100


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points along one axis; the cost is for each `unit`, a fragment or a file."""

    name: str
    axis: str
    unit: str
    points: tuple[Point, ...]


@dataclasses.dataclass(frozen=True)
class Figures:
    """A point's medians: `cost` in microseconds of CPU for each unit, with the least and the most; memory in bytes; `rate` in units a second.

    `calls` are those of functions for each unit, counted in one run more; 0 when there was none.
    """

    x: int
    series: str
    cost: float
    least: float
    most: float
    memory: float
    rate: float
    faults: tuple[str, ...] = ()
    calls: float = 0.0


CURVES = (
    Curve(
        "queued",
        "fragments queued",
        "fragment",
        tuple(
            Point(queued, queued, 900, series=series)
            for queued in (1_000, 10_000, 100_000, 1_000_000)
            for series in (SET, UNSET)
        ),
    ),
    Curve(
        "connections",
        "connections of the step",
        "fragment",
        tuple(Point(count, 1200, 1000, connections=count) for count in (1, 4, 16, 64)),
    ),
    Curve(
        "files",
        "files in a fragment",
        "file",
        tuple(
            Point(files, fragments, fragments, files=files)
            for files, fragments in ((1, 500), (10, 100), (100, 20), (1000, 3), (5000, 1))
        ),
    ),
    Curve(
        "instances",
        "sidecars on one queue",
        "fragment",
        tuple(Point(count, 2500, 2000, instances=count) for count in (1, 2)),
    ),
)


#: A sidecar that starts and processes one fragment: what it takes is subtracted from what the others of the same round take.
START = Point(1, 1, 1)


#: What each point took in one round.
Round: TypeAlias = dict[Point, Sample]


def per_unit(point: Point, sample: Sample, total: float, start: float) -> float:
    """Return the share of each unit in what all sidecars took, without what each start and its first unit take."""
    units = sample.outputs * point.files - point.instances
    return (total - start * point.instances) / units


def figures_of(point: Point, rounds: Sequence[Round], counted: Round | None) -> Figures:
    """Return the medians of a point's samples, and the calls of the one that was counted."""
    samples = [each[point] for each in rounds]
    costs = [
        per_unit(point, each[point], each[point].cpu, each[START].cpu) * 1e6 for each in rounds
    ]
    calls = 0.0
    if counted is not None:
        calls = per_unit(point, counted[point], counted[point].calls, counted[START].calls)
    everything = [
        each[which]
        for each in (*rounds, *([counted] if counted else []))
        for which in (START, point)
    ]
    return Figures(
        x=point.x,
        series=point.series,
        cost=statistics.median(costs),
        least=min(costs),
        most=max(costs),
        memory=statistics.median(sample.memory for sample in samples),
        rate=statistics.median(sample.rate for sample in samples) * point.files,
        faults=tuple(dict.fromkeys(fault for sample in everything for fault in sample.faults)),
        calls=calls,
    )


def measure_curve(curve: Curve, peers: Peers, runs: int, *, counted: bool) -> list[Figures]:
    """Run a start and all points of a curve in turn, as often as asked, and once more to count calls.

    Everything is queued before the first run, so that the broker is the same for all points.
    """
    with contextlib.ExitStack() as stack:
        backlogs: dict[tuple[int, int], Backlog] = {}
        points = (START, *curve.points)
        for point in points:
            key = (point.queued, point.files)
            if key not in backlogs:
                backlogs[key] = stack.enter_context(backlog(peers, point.files))
                backlogs[key].fill(point.queued)

        def run(point: Point, *, counted: bool = False) -> Sample:
            return drive(
                backlogs[point.queued, point.files],
                peers,
                point.queued,
                point.wanted,
                prefetch=point.prefetch,
                connections=point.connections,
                instances=point.instances,
                counted=counted,
            )

        rounds = [{point: run(point) for point in points} for _ in range(runs)]
        last = {point: run(point, counted=True) for point in points} if counted else None
    return [figures_of(point, rounds, last) for point in curve.points]
