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
    BadConfiguration,
    ExitCode,
    SidecarError,
    TransformationNeverCame,
)
from iterum_sidecar.local.broker import SetAside, StepBroker
from iterum_sidecar.local.fingerprints import fingerprint, output_identity
from iterum_sidecar.local.processes import ChildrenLost, CommandFailed, how_it_ended, last_lines
from iterum_sidecar.local.volumes import INPUT_SOCKET, OUTPUT_SOCKET, volume_folder
from iterum_sidecar.patience import Patience
from iterum_sidecar.pipeline.commands import resolve_command
from iterum_sidecar.pipeline.model import output_bucket, queue_name, step_name
from iterum_sidecar.settings import Settings, read_settings
from iterum_sidecar.sidecar import Sidecar
from iterum_sidecar.telemetry.logs import get_log, in_step
from iterum_sidecar.telemetry.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from iterum_sidecar.brokers.port import Broker
    from iterum_sidecar.local.broker import JournalBroker
    from iterum_sidecar.local.containers import ContainerTool
    from iterum_sidecar.local.journal import Journal
    from iterum_sidecar.local.plan import PlannedStep
    from iterum_sidecar.local.processes import Child, Children
    from iterum_sidecar.local.store import LocalStore
    from iterum_sidecar.pipeline.model import Pipeline
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
#: Seconds that a transformation has to connect, on a machine where its program is there already.
START_TIMEOUT: Final = "30"
#: Seconds that one which died may be away: the delays above, and its start.
RETURN_TIMEOUT: Final = "120"
#: Whoever has pressed Ctrl-C once can press it again.
DRAIN_SECONDS: Final = "86400"
#: Seconds that a transformation has to end by itself after it has answered the kill message.
END_SECONDS: Final = 10.0

_LOG_LINES: Final = 10
_CONFIG_FOLDER: Final = "config"


class StepBroken(SidecarError):
    """A step cannot go on. `what` says in one line what happened; the message has the last lines of the step's log too."""

    exit_code = ExitCode.TRANSFORMATION_LOST

    def __init__(self, what: str, log: Path | None = None) -> None:
        lines = [] if log is None else last_lines(log, _LOG_LINES)
        if lines:
            super().__init__(
                "\n".join([f"{what}; the last lines of {log}:", *(f"  {line}" for line in lines)])
            )
        else:
            super().__init__(what if log is None else f"{what}; it has written nothing to {log}")
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
    containers: ContainerTool | None
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

    @property
    def name(self) -> str:
        """What the instance is called in messages and file names."""
        return f"{self.planned.step.name}-{self.number}"

    @property
    def says_gathers(self) -> bool:
        """Whether the transformation has said that it gathers."""
        return self._sidecar is not None and self._sidecar.gathered > 1

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
            StepBroken: the transformation never connected, or keeps dying.
            SidecarError: any other end of the sidecar.
        """
        if self._draining:
            return False
        with in_step(self.name), ExitStack() as stack:
            volume = stack.enter_context(volume_folder(self.around.volumes / self.name))
            environment = self._contract(volume)
            settings = self._settings(environment)
            self._sidecar = sidecar = self._make_sidecar(settings, upstream)
            failure: BaseException | None = None
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep_alive, sidecar, volume, environment)
                    await sidecar.run()
            except* TransformationNeverCame as group:
                (never_came, *_) = leaves_of(group, TransformationNeverCame)
                failure = StepBroken(f"{self.name}: {never_came}", self.log)
            if failure is not None:
                raise failure
        return not self._draining

    # -- the sidecar

    def _contract(self, volume: str) -> dict[str, str]:
        """Return the variables that both the sidecar and the transformation are given (contract, section 1)."""
        around, step = self.around, self.planned.step
        return {
            "DATA_VOLUME_PATH": volume,
            "TRANSFORMATION_STEP_INPUT": INPUT_SOCKET,
            "TRANSFORMATION_STEP_OUTPUT": OUTPUT_SOCKET,
            "ITERUM_NAME": step_name(around.pipeline_hash, step.name),
            "PIPELINE_HASH": around.pipeline_hash,
            "ITERUM_CONFIG": around.pipeline.iterum_config(step, around.pipeline_hash),
            "ITERUM_CONFIG_PATH": _CONFIG_FOLDER,
        }

    def _settings(self, contract: dict[str, str]) -> Settings:
        around, step = self.around, self.planned.step
        environment = {
            **contract,
            "MQ_BROKER_URL": "amqp://local",
            "MQ_INPUT_QUEUE": queue_name(around.pipeline_hash, step.input_channel),
            "MQ_OUTPUT_QUEUE": queue_name(around.pipeline_hash, step.output_channel),
            "MQ_PREFETCH_COUNT": str(step.prefetch_count or 0),
            "MINIO_URL": "local:9000",
            "MINIO_ACCESS_KEY": "local",
            "MINIO_SECRET_KEY": "local",
            "MINIO_OUTPUT_BUCKET": output_bucket(around.pipeline_hash, step.name),
            "SIDECAR_LINEAGE": "off",
            "SIDECAR_DRAIN_SECONDS": DRAIN_SECONDS,
            "SIDECAR_TRANSFORMATION_START_TIMEOUT": START_TIMEOUT,
            "SIDECAR_TRANSFORMATION_RETURN_TIMEOUT": RETURN_TIMEOUT,
        }
        try:
            return read_settings(environment)
        except BadConfiguration as error:
            raise BadConfiguration(
                [f"{step.name}: {problem}" for problem in error.problems]
            ) from None

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
            left_before = self._left()
            child = await self._start(volume, contract)
            code = await self._wait(child, sidecar)
            if sidecar.has_said_kill:
                if code != 0 and sidecar.fragments_out and not self._aborted:
                    raise StepBroken(
                        f"{self.name} {how_it_ended(code)} with its last {sidecar.fragments_out} fragments unfinished",
                        self.log,
                    )
                if code != 0:
                    self.around.say(
                        f"{self.name} {how_it_ended(code)} after it had been told to end"
                    )
                return
            if sidecar.over.is_set():
                return
            deaths = 1 if self._left() > left_before else deaths + 1
            if deaths >= MOST_DEATHS:
                hint = "" if code or self._left() else " (does its program end with `.run()`?)"
                raise StepBroken(
                    f"{self.name} {how_it_ended(code)}, {deaths} times in a row{hint}", self.log
                )
            self._see_that_it_is_the_same()
            self.restarts += 1
            self.around.say(f"{self.name} {how_it_ended(code)}; it is started again")
            with trio.move_on_after(min(FIRST_DELAY * 2 ** (deaths - 1), LONGEST_DELAY)):
                await sidecar.over.wait()
                return

    def _see_that_it_is_the_same(self) -> None:
        """Refuse to start anything else than what the run began with: its results would be taken for those of that."""
        around, step = self.around, self.planned.step
        if fingerprint(around.pipeline, step, around.directory) != self.planned.fingerprint:
            raise StepBroken(
                f"{self.name} has died, and its files have changed since the run began; run again"
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
        environment = {**os.environ, **contract, "PYTHONUNBUFFERED": "1"}
        if step.command:
            command = resolve_command(step.command, around.directory)
        elif around.containers is not None and step.image:
            command = around.containers.command(step.image, self.name, volume, contract)
        else:
            raise StepBroken(
                f"{step.name} has no command, and there is nothing to run its image with"
            )
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
