"""One instance of a step: its sidecar, and beside it its transformation, which is started again when it dies."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from iterum_sidecar.error_groups import leaves_of
from iterum_sidecar.exit_codes import (
    ExitCode,
    PrefetchTooSmall,
    SidecarError,
    TransformationNeverCame,
)
from iterum_sidecar.local.broker import SetAside, StepBroker
from iterum_sidecar.local.containers import ANSWER_SECONDS, ContainersUnusable
from iterum_sidecar.local.fingerprints import fingerprint, output_identity
from iterum_sidecar.local.log_tail import with_last_lines
from iterum_sidecar.local.processes import (
    ChildrenLost,
    CommandFailed,
    how_it_ended,
)
from iterum_sidecar.local.step_settings import settings_of, variables_of
from iterum_sidecar.local.volumes import volume_folder
from iterum_sidecar.messages import MOST_GATHERED
from iterum_sidecar.patience import Patience
from iterum_sidecar.pipeline.commands import resolve_command
from iterum_sidecar.sidecar import Sidecar
from iterum_sidecar.telemetry.logs import get_log, in_step
from iterum_sidecar.telemetry.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from iterum_sidecar.brokers.port import Broker
    from iterum_sidecar.local.broker import JournalBroker
    from iterum_sidecar.local.containers import Containers
    from iterum_sidecar.local.journal import Journal
    from iterum_sidecar.local.plan import PlannedStep
    from iterum_sidecar.local.processes import Child, Children
    from iterum_sidecar.local.store import LocalStore
    from iterum_sidecar.pipeline.model import Pipeline
    from iterum_sidecar.settings import Settings
    from iterum_sidecar.upstream import Upstream

__all__ = ["StepBroken", "StepInstance", "Surroundings"]

_log = get_log(__name__)

#: Deaths in a row, no fragment having left the step between them, after which it is not started again.
MOST_DEATHS: Final = 5
#: Seconds before the first new start; doubled with every death in a row.
FIRST_DELAY: Final = 0.25
LONGEST_DELAY: Final = 2.0
#: Seconds after which a death is judged: before the next start, so that no fragment is blamed for another's. Nobody stops a
#: transformation here but the run itself.
BLAME_AFTER: Final = 0.2
#: Seconds after which a step whose batches cannot be complete is ended. All instances begin at once here, so none comes later that
#: could take what waits.
STANDSTILL_AFTER: Final = 3.0
#: Lines of its log that the end of a step is told with.
LINES_SHOWN: Final = 15
#: Seconds that a transformation has to end by itself after it has answered the kill message.
END_SECONDS: Final = 10.0
#: Seconds that the removal of its container may take, which is several answers of a program that has a limit for each.
REMOVAL_SECONDS: Final = 2 * ANSWER_SECONDS


class StepBroken(SidecarError):
    """A step cannot go on. `what` says in one line what happened; the message has the last lines of the step's log `since` an offset too."""

    exit_code = ExitCode.TRANSFORMATION_LOST

    def __init__(self, what: str, log: Path | None = None, since: int = 0) -> None:
        super().__init__(
            what if log is None else with_last_lines(what, log, LINES_SHOWN, since=since)
        )
        self.what = what


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all steps of a run share. `say` tells the user something, `set_aside` takes what a step cannot finish."""

    pipeline: Pipeline
    pipeline_hash: str
    directory: Path
    """Where the pipeline file is; what its commands and config files are relative to."""
    volumes: Path
    logs: Path
    journal: Journal
    broker: JournalBroker
    store: LocalStore
    children: Children
    containers: Containers | None
    say: Callable[[str], None]
    set_aside: Callable[[SetAside, Path], None]


@dataclass(slots=True)
class StepInstance:
    """One of the instances of a step, numbered from 1."""

    around: Surroundings
    planned: PlannedStep
    number: int
    tally: Tally = field(default_factory=Tally)
    restarts: int = 0
    _sidecar: Sidecar | None = None
    _draining: bool = False
    _cut_short: bool = False
    """Whether it was drained before everything had come, so that what it gathers may be incomplete."""
    _aborted: bool = False
    _log_began: int = 0
    """Where in the log the program that lives now, or lived last, began to write."""
    _child: Child | None = None
    _gone: trio.Event | None = None
    """Set when nothing is left of the program that lived last."""
    _hung: bool = False
    """Whether it has been ended because it hung on what it had read, which is no death of its own but the fragment's."""

    @property
    def name(self) -> str:
        """What the instance is called in messages and file names."""
        return f"{self.planned.step.name}-{self.number}"

    @property
    def says_gathers(self) -> bool:
        """Whether the transformation has said that it gathers."""
        return self._sidecar is not None and self._sidecar.gathered > 1

    @property
    def gathers_all(self) -> bool:
        """Whether the transformation has said that it gathers all that comes."""
        return self._sidecar is not None and self._sidecar.gathered == MOST_GATHERED

    @property
    def in_work(self) -> int:
        """How many fragments the transformation has and has not finished."""
        return 0 if self._sidecar is None else self._sidecar.fragments_out

    @property
    def log(self) -> Path:
        """Where what the transformation writes goes."""
        return self.around.logs / f"{self.name}.log"

    def drain(self) -> None:
        """Finish what is in work, and take nothing new."""
        if not self._draining:
            self._draining = True
            self._cut_short = self._sidecar is None or not self._sidecar.has_said_kill
        if self._sidecar is not None:
            self._sidecar.drain()

    def abort(self) -> None:
        """End at once."""
        self._draining = self._aborted = True
        if self._sidecar is not None:
            self._sidecar.abort()

    async def run(self, upstream: Upstream) -> bool:
        """Work until the step is done, and return True; False if it was drained or aborted before.

        Raises:
            StepBroken: the transformation never connected, keeps dying, or gathers more than its prefetch count.
            SidecarError: any other end of the sidecar.
        """
        if self._draining:
            return False
        with in_step(self.name), ExitStack() as stack:
            volume = stack.enter_context(volume_folder(self.around.volumes / self.name))
            environment = variables_of(
                self.around.pipeline, self.planned.step, self.around.pipeline_hash, volume
            )
            settings = settings_of(
                self.around.pipeline, self.planned.step, self.around.pipeline_hash, environment
            )
            self._sidecar = sidecar = self._make_sidecar(settings, upstream)
            failure: BaseException | None = None
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep_alive, sidecar, volume, environment)
                    await sidecar.run()
            except* TransformationNeverCame as group:
                (never_came, *_) = leaves_of(group, TransformationNeverCame)
                failure = self._broken(f": {never_came}")
            except* PrefetchTooSmall as group:
                failure = self._stands_still(leaves_of(group, PrefetchTooSmall)[0])
            if failure is not None:
                raise failure
        return not self._draining

    def _broken(self, how: str) -> StepBroken:
        """Return the end of this instance, with what the program that lived last has written."""
        return StepBroken(f"{self.name}{how}", self.log, self._log_began)

    def _stands_still(self, error: PrefetchTooSmall) -> StepBroken:
        name = self.planned.step.name
        if self.gathers_all:
            return StepBroken(
                f"step {name} gathers all that comes, which is more than its prefetch_count of {error.window}: leave that out"
            )
        return StepBroken(
            f"step {name} gathers {error.gathered:,} fragments at once, but its prefetch_count is {error.window}:"
            f" raise it to {error.gathered} or more, or leave it out"
        )

    # -- the sidecar

    def _make_sidecar(self, settings: Settings, upstream: Upstream) -> Sidecar:
        around, planned = self.around, self.planned
        broker: Broker = StepBroker(
            around.broker,
            around.journal,
            step=planned.step.name,
            made_by=planned.fingerprint,
            ancestry=planned.ancestry,
            input_queue=settings.input_queue,
            dead_letter_queue=settings.dead_letter_queue,
            set_aside=lambda fragment: around.set_aside(fragment, self.log),
            gathers=planned.gathers,
            says_gathers=lambda: self.says_gathers,
            is_premature=self._is_premature,
        )
        return Sidecar(
            settings,
            open_broker=lambda: nullcontext(broker),
            store=around.store,
            store_patience=Patience("the store", 0),
            upstream=lambda _ledger: upstream,
            tally=self.tally,
            identity=output_identity(around.pipeline_hash, planned.step, planned.fingerprint),
            pause_on_dead_letters=False,
            blame_after=BLAME_AFTER,
            standstill_after=STANDSTILL_AFTER,
            end_transformation=self._end_hung,
        )

    def _is_premature(self, predecessors: int) -> bool:
        """Whether a result of so many predecessors may be of a batch that was cut short by the stop of the run."""
        gathered = 0 if self._sidecar is None else self._sidecar.gathered
        whole = predecessors >= gathered if gathered else predecessors == 1
        return self._cut_short and not whole

    # -- the transformation

    async def _keep_alive(self, sidecar: Sidecar, volume: str, contract: dict[str, str]) -> None:
        """Start the transformation, and again whenever it dies, until the sidecar has told it to end and it has."""
        deaths = 0
        while True:
            await self._see_that_it_is_the_same()
            left_before = self._left()
            code = await self._live_once(sidecar, volume, contract)
            if sidecar.has_said_kill and not self._hung:
                if code != 0 and sidecar.fragments_out and not self._aborted:
                    raise self._broken(
                        f" {how_it_ended(code)} with its last {sidecar.fragments_out} fragments unfinished"
                    )
                if code != 0:
                    self.around.say(
                        f"{self.name} {how_it_ended(code)} after it had been told to end"
                    )
                return
            if sidecar.over.is_set():
                return
            # What it hung on has a limit of its own, the attempts of a fragment.
            death = 0 if self._hung else 1
            deaths = death if self._left() > left_before else deaths + death
            if deaths >= MOST_DEATHS:
                hint = "" if code or self._left() else " (does its program end with `.run()`?)"
                raise self._broken(f" {how_it_ended(code)}, {deaths} times in a row{hint}")
            self.restarts += 1
            self.around.say(f"{self.name} {how_it_ended(code)}; it is started again")
            delay = FIRST_DELAY * 2 ** max(deaths - 1, 0)
            with trio.move_on_after(min(delay, LONGEST_DELAY)):
                await sidecar.over.wait()
                return

    async def _live_once(self, sidecar: Sidecar, volume: str, contract: dict[str, str]) -> int:
        """Start the transformation, and return its exit code when nothing of it is left."""
        self._gone = gone = trio.Event()
        self._hung = False
        try:
            self._child = child = await self._start(volume, contract)
            return await self._wait(child, sidecar)
        finally:
            self._child = None
            with trio.move_on_after(REMOVAL_SECONDS, shield=True):
                await self._remove_container()
            gone.set()

    async def _end_hung(self, has_read: bool) -> None:
        """End the transformation, which hangs, and return when nothing of it is left. It is started again like one that has died."""
        if self._child is not None:
            self._hung = has_read
            self._child.kill()
        if self._gone is not None:
            await self._gone.wait()

    async def _remove_container(self) -> None:
        """See that no container goes on without whoever ran it: it would hold the volume, and its name."""
        if self._containers is not None:
            try:
                await self._containers.remove(self.name)
            except ContainersUnusable as error:
                _log.warning("a container may be left", reason=str(error))

    @property
    def _containers(self) -> Containers | None:
        """What runs the step's image; None if it has a command, which comes first, or there is nothing that could."""
        return None if self.planned.step.command else self.around.containers

    async def _see_that_it_is_the_same(self) -> None:
        """Refuse to start anything else than what the run began with: its results would be taken for those of that."""
        around = self.around
        now = await trio.to_thread.run_sync(
            fingerprint,
            around.pipeline,
            self.planned.step,
            around.directory,
            abandon_on_cancel=True,
        )
        if now != self.planned.fingerprint:
            raise StepBroken(
                f"{self.name} is not started: its files have changed since the run began; run again"
            )

    def _left(self) -> int:
        """How far the step is: fragments that it has finished and, once there are any, deaths that were blamed on a fragment.

        Those have a limit of their own, the attempts of a fragment.
        """
        tally = self.tally
        done = self.planned.done_before + tally.fragments
        return done + tally.dead_letters + tally.struck if done else 0

    async def _start(self, volume: str, contract: dict[str, str]) -> Child:
        around, step = self.around, self.planned.step
        variables = {**contract, "PYTHONUNBUFFERED": "1"}
        environment = {**os.environ, **variables}
        if step.command:
            command = resolve_command(step.command, around.directory)
        elif self._containers is not None and step.image:
            command = self._containers.command(step.image, self.name, volume, variables)
        else:
            raise StepBroken(
                f"{step.name} has no command, and there is nothing to run its image with"
            )
        self._log_began = self.log.stat().st_size if self.log.exists() else 0
        try:
            return await around.children.start(
                command, environment=environment, directory=around.directory, log=self.log
            )
        except (CommandFailed, ChildrenLost) as error:
            raise StepBroken(f"{self.name} cannot be started: {error}") from None

    async def _wait(self, child: Child, sidecar: Sidecar) -> int:
        """Return the exit code of the child, which is ended when it does not end by itself after the sidecar has."""
        lost: StepBroken | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_after, sidecar, child)
                code = await child.wait()
                nursery.cancel_scope.cancel("the transformation has ended")
        except* ChildrenLost as group:
            lost = StepBroken(f"{self.name} was killed: {leaves_of(group, ChildrenLost)[0]}")
        finally:
            child.kill()
        if lost is not None:
            raise lost
        return code

    async def _end_after(self, sidecar: Sidecar, child: Child) -> None:
        await sidecar.over.wait()
        # One that never connected has not heard that it should end.
        knows = sidecar.has_been_connected and not self._aborted
        with trio.move_on_after(END_SECONDS if knows else 0):
            await child.wait()
            return
        child.signal(signal.SIGTERM)
        with trio.move_on_after(0 if self._aborted else END_SECONDS):
            await child.wait()
            return
        child.kill()
