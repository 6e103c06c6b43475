"""The four curves, and how one is measured: every point in turn, several times over."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from typing import TYPE_CHECKING

from benchmarks.scale.drive import Backlog, Peers, Sample, backlog, drive

if TYPE_CHECKING:
    from collections.abc import Sequence

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


@dataclasses.dataclass(frozen=True)
class Start:
    """What a sidecar takes that processes one fragment of one file: CPU seconds, and calls if they are counted."""

    cpu: float
    calls: int


def measure_start(peers: Peers, runs: int, *, counted: bool) -> Start:
    """Return what a start takes: the median of so many runs."""
    with backlog(peers) as made:
        cpu = statistics.median(drive(made, peers, 1, 1).cpu for _ in range(runs))
        return Start(cpu, drive(made, peers, 1, 1, counted=True).calls if counted else 0)


def per_unit(point: Point, sample: Sample, total: float, start: float) -> float:
    """Return the share of each unit in what all sidecars took, without what each start and its first unit take."""
    units = sample.outputs * point.files - point.instances
    return (total - start * point.instances) / units


def figures_of(
    point: Point, samples: Sequence[Sample], counted: Sample | None, start: Start
) -> Figures:
    """Return the medians of a point's samples, and the calls of the one that was counted."""
    costs = [per_unit(point, sample, sample.cpu, start.cpu) * 1e6 for sample in samples]
    everything = [*samples, counted] if counted else samples
    return Figures(
        x=point.x,
        series=point.series,
        cost=statistics.median(costs),
        least=min(costs),
        most=max(costs),
        memory=statistics.median(sample.memory for sample in samples),
        rate=statistics.median(sample.rate for sample in samples) * point.files,
        faults=tuple(dict.fromkeys(fault for sample in everything for fault in sample.faults)),
        calls=per_unit(point, counted, counted.calls, start.calls) if counted else 0.0,
    )


def measure_curve(
    curve: Curve, peers: Peers, runs: int, start: Start, *, counted: bool
) -> list[Figures]:
    """Run all points of a curve in turn, as often as asked, and once more to count calls.

    Everything is queued before the first run, so that the broker is the same for all points.
    """
    with contextlib.ExitStack() as stack:
        backlogs: dict[tuple[int, int], Backlog] = {}
        for point in curve.points:
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

        rounds = [[run(point) for point in curve.points] for _ in range(runs)]
        last = [run(point, counted=True) if counted else None for point in curve.points]
    return [
        figures_of(point, [samples[number] for samples in rounds], last[number], start)
        for number, point in enumerate(curve.points)
    ]
