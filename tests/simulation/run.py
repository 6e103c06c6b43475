"""Running one seed."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING
from unittest import mock

import trio

from iterum_sidecar import sidecar
from iterum_sidecar.error_groups import leaves_of
from iterum_sidecar.stages import download, upload
from tests.simulation.checker import check, fates_of
from tests.simulation.clock import SimulatedClock
from tests.simulation.history import History, TooManyEvents
from tests.simulation.plan import draw_plan
from tests.simulation.pod import SimulatedListener, SimulatedVolume
from tests.simulation.world import World

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from tests.simulation.plan import Plan

__all__ = ["Outcome", "run_seed"]

#: A run is short, and so is the row: fewer workers start sooner, and get into each other's way more often.
WORKERS = 3


@dataclass
class Outcome:
    """What came of one seed."""

    plan: Plan
    history: History
    violations: list[str]
    """What the sidecar has promised and not kept; none if all is well."""
    simulated: float
    """Seconds that passed in the run."""
    real: float
    """Seconds that it took of a processor."""
    fates: Counter[str]
    """What became of the messages, and how many of each."""

    def describe(self) -> str:
        """Return all that happened, and what was not kept."""
        lines = [f"seed {self.plan.seed}", *self.plan.lines(), "", *self.history.lines(), ""]
        if self.violations:
            lines += [f"NOT KEPT: {violation}" for violation in self.violations]
            lines.append(f"To see it again: python -m tests.simulation {self.plan.seed}")
        else:
            lines.append("all is well")
        return "\n".join(lines)


def run_seed(seed: int) -> Outcome:
    """Run a seed, and hold what came of it against what was promised."""
    began = time.process_time()
    plan = draw_plan(seed)
    history = History()
    clock = SimulatedClock()
    directory = tempfile.mkdtemp(prefix="sim-", dir="/dev/shm")
    world = World(plan, history, directory)
    try:
        with _same_order(seed), _simulated_ports(), _listening_to(history, directory):
            try:
                trio.run(world.run, clock=clock)
            except (Exception, BaseExceptionGroup) as error:
                if leaves_of(error, KeyboardInterrupt):
                    raise
                if leaves_of(error, TooManyEvents):
                    what = "something turns in a circle"
                else:
                    what = "".join(traceback.format_exception(error))
                world.violations.append(f"{what}: {world.state()}")
    finally:
        clock.close()
        shutil.rmtree(directory)
    violations = check(world)
    seconds = time.process_time() - began
    return Outcome(plan, history, violations, clock.current_time(), seconds, fates_of(world))


@contextmanager
def _same_order(seed: int) -> Iterator[None]:
    """Let Trio draw the order of tasks from the seed, as Hypothesis has it done."""
    core = trio._core._run
    with (
        mock.patch.object(core, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        mock.patch.object(core, "_r", Random(f"order {seed}")),
    ):
        yield


@contextmanager
def _simulated_ports() -> Iterator[None]:
    with (
        mock.patch.object(sidecar, "Volume", SimulatedVolume),
        mock.patch.object(sidecar, "Listener", SimulatedListener),
        mock.patch.object(download, "FRAGMENTS_AT_A_TIME", WORKERS),
        mock.patch.object(upload, "RESULTS_AT_A_TIME", WORKERS),
    ):
        yield


class _Ear(logging.Handler):
    """Notes what the sidecars log, beside the events."""

    def __init__(self, history: History, directory: str) -> None:
        super().__init__()
        self._history = history
        self._directory = directory

    def emit(self, record: logging.LogRecord) -> None:
        fields = getattr(record, "fields", {})
        line = f"{record.msg} {fields}" if fields else str(record.msg)
        if record.exc_info:
            line = f"TRACEBACK {line}"
        # IDs and paths are long, and paths are others each time.
        line = line.replace(self._directory, "…").replace("-" * 8, "")
        self._history.said.append((len(self._history.events), f"{record.levelname} {line}"))


@contextmanager
def _listening_to(history: History, directory: str) -> Iterator[None]:
    logger = logging.getLogger("iterum_sidecar")
    ear = _Ear(history, directory)
    before = logger.level, logger.propagate
    logger.addHandler(ear)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(ear)
        logger.level, logger.propagate = before
