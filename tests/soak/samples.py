"""What the lives of sidecars use of the machine over time, and whether that is flat."""

from __future__ import annotations

import dataclasses
import json
import statistics
import urllib.request
from pathlib import Path
from typing import Any, Final

__all__ = ["MEASURES", "Sample", "Third", "rises", "sample_of", "thirds"]

#: What is measured of a process, and by how much it may rise beyond a fifth. Of files and tasks that is a window of fragments in flight,
#: 32: while the broker is away their results are held open.
MEASURES: Final = {"memory": 6.0, "files": 32.0, "threads": 4.0, "tasks": 32.0}
#: Seconds at the beginning of the work that count for nothing: pools fill, modules are imported.
WARM_UP: Final = 15.0
#: Work of fewer seconds tells nothing.
SHORTEST: Final = 60.0
#: What the last third may be of the first.
RISE: Final = 1.2
STATUS_SECONDS: Final = 2.0


@dataclasses.dataclass(frozen=True)
class Sample:
    """One look at a process. `tasks` is None where it did not answer in time."""

    at: float
    memory: float
    files: int
    threads: int
    tasks: int | None
    status: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Third:
    """A third of a life, of one measure."""

    least: float
    median: float
    most: float

    def __str__(self) -> str:
        return f"{self.least:.0f}/{self.median:.0f}/{self.most:.0f}"


def sample_of(pid: int, port: int, at: float) -> Sample | None:
    """Look at a sidecar; None when it has ended."""
    process = Path(f"/proc/{pid}")
    try:
        lines = (process / "status").read_text(encoding="ascii").splitlines()
        files = sum(1 for _ in (process / "fd").iterdir())
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    if "VmRSS" not in fields:
        return None
    status = ask_status(port)
    return Sample(
        at=at,
        memory=int(fields["VmRSS"].split()[0]) * 1024 / 1e6,
        files=files,
        threads=int(fields["Threads"]),
        tasks=status.get("tasks"),
        status=status,
    )


def ask_status(port: int) -> dict[str, Any]:
    """Return what a sidecar says of itself; nothing when it does not answer in time."""
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/status", timeout=STATUS_SECONDS
        ) as answer:
            told: dict[str, Any] = json.loads(answer.read())
    except (OSError, ValueError):
        return {}
    return told


def thirds(samples: list[tuple[float, float]]) -> tuple[Third, Third] | None:
    """Return the first and the last third of the values, each with its moment in seconds; None if they are of too short a time."""
    if not samples or samples[-1][0] - samples[0][0] < SHORTEST:
        return None
    begin, end = samples[0][0] + WARM_UP, samples[-1][0]
    length = (end - begin) / 3
    first = [value for at, value in samples if begin <= at <= begin + length]
    last = [value for at, value in samples if at >= end - length]
    if not first or not last:
        return None
    return _third(first), _third(last)


def _third(values: list[float]) -> Third:
    return Third(min(values), statistics.median(values), max(values))


def rises(measure: str, first: Third, last: Third) -> bool:
    """Whether the least of the last third is more than that of the first may become: what leaks never comes back, and an outage passes."""
    return last.least > first.least * RISE + MEASURES[measure]
