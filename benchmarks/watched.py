"""The sidecar with an instrument in its event loop, which writes what it has seen to a file. See `loop_lag.py`.

python -m benchmarks.watched FILE

A *round* is what the loop does from one look at its sockets to the next: as long as that takes, nothing that has come is answered. A
*step* is what one task does of it, until it waits again.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from pathlib import Path
from unittest import mock

import trio

from iterum_sidecar.cli import main

#: How many of the longest steps are kept.
LONGEST = 5


def place_of(task: trio.lowlevel.Task) -> str:
    """Return the function of the program in which a task waits, or has begun: the innermost that is not a library's."""
    found = task.name
    awaited: object = task.coro
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None)
        if frame is not None and "iterum_sidecar" in frame.f_code.co_filename:
            found = f"{Path(frame.f_code.co_filename).stem}: {frame.f_code.co_name.strip('_')}"
        awaited = getattr(awaited, "cr_await", None)
    return found


class Watch(trio.abc.Instrument):
    """Times rounds and steps, by the wall and by the CPU time of the loop's thread."""

    def __init__(self) -> None:
        self.rounds: list[float] = []
        self.steps: list[tuple[float, str]] = []
        self._round_since = self._step_since = 0.0
        self._place = ""

    def after_io_wait(self, timeout: float) -> None:
        """A round begins."""
        self._round_since = time.perf_counter()

    def before_io_wait(self, timeout: float) -> None:
        """A round ends."""
        if self._round_since:
            self.rounds.append(time.perf_counter() - self._round_since)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """A step begins; where, is known only as long as the task waits."""
        self._place = place_of(task)
        self._step_since = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """A step ends."""
        taken = time.thread_time() - self._step_since
        if len(self.steps) < LONGEST or taken > self.steps[-1][0]:
            self.steps = sorted([*self.steps, (taken, self._place)], reverse=True)[:LONGEST]


def watch(file: Path) -> int:
    """Run the sidecar of the environment, and return its exit code."""
    instrument = Watch()
    with mock.patch("trio.run", functools.partial(trio.run, instruments=[instrument])):
        code = main(["run"])
    file.write_text(
        json.dumps({"rounds": instrument.rounds, "steps": instrument.steps}), encoding="utf-8"
    )
    return code


if __name__ == "__main__":
    sys.exit(watch(Path(sys.argv[1])))
