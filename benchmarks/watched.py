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
from typing import TYPE_CHECKING
from unittest import mock

import trio

from iterum_sidecar.cli import main

if TYPE_CHECKING:
    from types import CodeType


def place_of(task: trio.lowlevel.Task) -> CodeType | str:
    """Return the function of the program in which a task waits, or has begun: the innermost that is not a library's."""
    found: CodeType | str = task.name
    awaited: object = task.coro
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None)
        if frame is not None and "iterum_sidecar" in frame.f_code.co_filename:
            found = frame.f_code
        awaited = getattr(awaited, "cr_await", None)
    return found


class Watch(trio.abc.Instrument):
    """Times rounds by the wall, and steps by the CPU time of the loop's thread."""

    def __init__(self) -> None:
        self.rounds: list[float] = []
        self.longest_step = 0.0
        self.longest_from: CodeType | str = ""
        self._round_since = self._step_since = 0.0
        self._place: CodeType | str = ""

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
        if taken > self.longest_step:
            self.longest_step, self.longest_from = taken, self._place

    @property
    def where(self) -> str:
        """The module and the function in which the longest step began."""
        place = self.longest_from
        if isinstance(place, str):
            return place
        return f"{Path(place.co_filename).stem}: {place.co_name.strip('_')}"


def run(file: Path) -> int:
    """Run the sidecar of the environment, write what was seen, and return its exit code."""
    instrument = Watch()
    with mock.patch("trio.run", functools.partial(trio.run, instruments=[instrument])):
        code = main(["run"])
    told = {
        "rounds": instrument.rounds,
        "seconds": instrument.longest_step,
        "where": instrument.where,
    }
    file.write_text(json.dumps(told), encoding="utf-8")
    return code


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    sys.exit(run(Path(sys.argv[1])))
