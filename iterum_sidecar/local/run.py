"""The run of a whole pipeline in one nursery: every step's instances, the combiner, and those who keep the books.

    input folder ─► first fragments ─► [step: sidecar ═ transformation] ─► … ─► combiner ─► output folder
                            └──────────────► journal ◄──────────────┘

Upstream finished flows from the fragmenter to the last step without a manager: a step is told when all that feed it are over.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.error_groups import leaves_of
from iterum_sidecar.exit_codes import SidecarError, VolumeUnusable
from iterum_sidecar.local.broker import JournalBroker, SetAside
from iterum_sidecar.local.combiner import Combiner
from iterum_sidecar.local.containers import Containers
from iterum_sidecar.local.failures import set_aside
from iterum_sidecar.local.journal import StepRecord
from iterum_sidecar.local.plan import COMBINED
from iterum_sidecar.local.progress import RunProgress, State, StepProgress
from iterum_sidecar.local.step_run import StepInstance, Surroundings
from iterum_sidecar.local.wording import WARNINGS, in_words_of_a_pipeline
from iterum_sidecar.pipeline.model import queue_name
from iterum_sidecar.telemetry.logs import get_log, tell_warnings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from iterum_sidecar.local.containers import ContainerTool
    from iterum_sidecar.local.display import Display
    from iterum_sidecar.local.journal import Journal
    from iterum_sidecar.local.plan import Plan, PlannedStep
    from iterum_sidecar.local.processes import Children
    from iterum_sidecar.local.state import OutputFolder
    from iterum_sidecar.local.store import LocalStore
    from iterum_sidecar.local.summary import Failure
    from iterum_sidecar.pipeline.model import Pipeline

__all__ = ["Run"]

_log = get_log(__name__)

#: Seconds between two commits of the journal: what a kill makes be done again at most.
COMMIT_EVERY = 0.05
#: Warnings of the sidecars that are told in words of a local run.
TOLD_OTHERWISE = frozenset(
    {
        "a fragment was not finished in time; it is tried again",
        "a result is refused; its fragments become dead letters",
        "dead letter",
        "the transformation died; its fragment is tried again",
        "the transformation left with fragments in work",
    }
)
#: How many failures are told while the run goes on; all are in the summary.
MOST_TOLD = 5


class _After:
    """Upstream is finished when all of these steps are over (`upstream.Upstream`)."""

    def __init__(self, over: Sequence[trio.Event]) -> None:
        self._over = over

    @property
    def is_finished(self) -> bool:
        """Whether it is so already."""
        return all(event.is_set() for event in self._over)

    async def wait_until_finished(self) -> None:
        """Return when it is so."""
        for event in self._over:
            await event.wait()


@dataclass(slots=True)
class _StepState:
    """A step while the run goes on."""

    planned: PlannedStep
    upstream: _After
    instances: list[StepInstance]
    over: trio.Event
    state: State = "waits"


class Run:
    """One run. Made inside Trio; `run` is called once."""

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        pipeline_hash: str,
        directory: Path,
        output: OutputFolder,
        journal: Journal,
        store: LocalStore,
        children: Children,
        containers: ContainerTool | None,
        display: Display,
        plan: Plan,
        first_fragments: int,
        results_before: int,
        take_over: bool = False,
    ) -> None:
        self._pipeline = pipeline
        self._hash = pipeline_hash
        self._output = output
        self._journal = journal
        self._store = store
        self._display = display
        self._plan = plan
        self._first_fragments = first_fragments
        self._results_before = results_before
        self.failures: list[Failure] = []
        """The fragments that were set aside."""
        self.error: SidecarError | None = None
        """Why the run could not go on, if it could not."""
        self._steps_over = trio.Event()
        self._scope = trio.CancelScope()
        self._preparing = trio.CancelScope()
        queues = {queue_name(pipeline_hash, channel): channel for channel in pipeline.channels}
        self._broker = JournalBroker(journal, queues)
        self._to_failures, self._failures = trio.open_memory_channel[
            "tuple[SetAside, Path | None]"
        ](float("inf"))
        self.combiner = Combiner(
            broker=self._broker,
            journal=journal,
            store=store,
            queue=queue_name(pipeline_hash, pipeline.combiner.input_channel),
            output=output.root,
            incoming=output.incoming,
            take_over=take_over,
            failed=lambda description, reason: self._set_aside(
                SetAside(COMBINED, description, reason), None
            ),
        )
        self._containers = (
            None
            if containers is None
            else Containers(containers, output.root, children, output.logs / "images.log", self.say)
        )
        around = Surroundings(
            pipeline=pipeline,
            pipeline_hash=pipeline_hash,
            directory=directory,
            volumes=output.volumes,
            logs=output.logs,
            journal=journal,
            broker=self._broker,
            store=store,
            children=children,
            containers=self._containers,
            say=self.say,
            set_aside=self._set_aside,
        )
        self._steps: dict[str, _StepState] = {}
        for planned in plan.steps:
            self._steps[planned.step.name] = self._make_step(planned, around)

    @property
    def has_nothing_to_do(self) -> bool:
        """Whether everything had been done before."""
        return self._plan.is_empty

    @property
    def is_done(self) -> bool:
        """Whether every step has finished."""
        return self.has_nothing_to_do or (
            self.error is None and all(step.over.is_set() for step in self._steps.values())
        )

    def say(self, text: str) -> None:
        """Tell the user, and the log."""
        _log.info(text)
        self._display.say(text)

    def drain(self) -> None:
        """Finish what is in work, and take nothing new."""
        self._preparing.cancel("told to stop before any step began")
        for step in self._steps.values():
            for instance in step.instances:
                instance.drain()

    def abort(self) -> None:
        """End at once."""
        for step in self._steps.values():
            for instance in step.instances:
                instance.abort()
        self._scope.cancel("told to end at once")

    async def run(self) -> None:
        """Run every step that has something to do, deliver the results, and return when all are over.

        What ends the run is in `error` then.

        Raises:
            JournalRefused: the journal cannot be written.
        """
        with tell_warnings(self._display.say, but=TOLD_OTHERWISE, words=WARNINGS):
            await self._run()

    async def _run(self) -> None:
        async with trio.open_nursery() as background:
            background.start_soon(self._commit_regularly)
            background.start_soon(self._display.run, self.progress)
            with self._ended_by_error(), self._scope:
                with self._preparing:
                    await self._prepare_images()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep_failures)
                    with self._to_failures:
                        await self._run_steps_and_combiner()
            background.cancel_scope.cancel("the run is over")
        self._journal.commit()

    async def _prepare_images(self) -> None:
        if self._containers is not None:
            steps = [state.planned.step for state in self._steps.values() if state.instances]
            await self._containers.prepare(
                {step.image for step in steps if step.image and not step.command}
            )

    async def _run_steps_and_combiner(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.combiner.run, _After([self._steps_over]))
            async with trio.open_nursery() as steps:
                for step in self._steps.values():
                    steps.start_soon(self._run_step, step)
            self._steps_over.set()

    def in_work(self) -> dict[str, int]:
        """Return how many fragments each instance has that has any."""
        instances = [each for step in self._steps.values() for each in step.instances]
        return {each.name: each.in_work for each in instances if each.in_work}

    def progress(self) -> RunProgress:
        """Return how far the run is."""
        return RunProgress(
            self._pipeline.name,
            self._first_fragments,
            [self._progress_of(step) for step in self._steps.values()],
            results=self.combiner.delivered,
            results_before=self._results_before,
            failed=len(self.failures),
        )

    # -- steps

    def _make_step(self, planned: PlannedStep, around: Surroundings) -> _StepState:
        upstream = [self._steps[name] for name in self._pipeline.upstream_steps(planned.step)]
        count = planned.step.instance_count if planned.must_run else 0
        if not any(state.instances for state in upstream):
            # All that it will get is there already, and an instance more would get nothing.
            count = min(count, planned.waiting)
        if count > 1:
            self._broker.share(queue_name(self._hash, planned.step.input_channel))
        return _StepState(
            planned,
            _After([state.over for state in upstream]),
            [StepInstance(around, planned, number + 1) for number in range(count)],
            trio.Event(),
        )

    async def _run_step(self, step: _StepState) -> None:
        if not step.instances:
            step.state = "skipped"
            step.over.set()
            return
        done: list[bool] = []

        async def run_instance(instance: StepInstance) -> None:
            done.append(await instance.run(step.upstream))

        with self._ended_by_error(step):
            async with trio.open_nursery() as nursery:
                for instance in step.instances:
                    nursery.start_soon(run_instance, instance)
        if len(done) == len(step.instances) and all(done):
            self._note_complete(step)
            self._tell_of_parts(step)
            step.state = "ended"
            step.over.set()

    def _note_complete(self, step: _StepState) -> None:
        made_by = step.planned.fingerprint
        says_gathers = any(instance.says_gathers for instance in step.instances)
        gathers = says_gathers or self._journal.step(made_by).gathers
        self._journal.note_step(made_by, StepRecord(True, gathers, step.planned.ancestry))

    def _tell_of_parts(self, step: _StepState) -> None:
        """Say that several instances have gathered all that came to each: one result was meant, most likely."""
        count = sum(instance.gathers_all for instance in step.instances)
        if count > 1:
            self.say(
                f"{step.planned.step.name} gathers all that comes, and has {count} instances: each has gathered a part;"
                ' set "instance_count": 1 for one result'
            )

    @contextmanager
    def _ended_by_error(self, step: _StepState | None = None) -> Iterator[None]:
        """Note the first error that ends a step or the run, and let the rest finish what is in work."""
        try:
            yield
        except* SidecarError as group:
            # Several tasks may meet one cause; the first error tells of it.
            error = leaves_of(group, SidecarError)[0]
            if step is not None:
                step.state = "broken"
            if self.error is None:
                self.error = error
                self._display.say(in_words_of_a_pipeline(str(error)))
            _log.error(str(error))
            self.drain()

    def _progress_of(self, step: _StepState) -> StepProgress:
        planned, instances = step.planned, step.instances
        queue = queue_name(self._hash, planned.step.input_channel)
        tallies = [instance.tally for instance in instances]
        progress = StepProgress(
            planned.step.name,
            instances=planned.step.instance_count,
            waiting=self._broker.waiting(queue),
            in_work=self._broker.in_work(queue),
            done=sum(tally.fragments for tally in tallies),
            failed=sum(tally.dead_letters for tally in tallies),
            done_before=planned.done_before,
            files=sum(tally.files_out for tally in tallies),
            bytes=sum(tally.bytes_out for tally in tallies),
            restarts=sum(instance.restarts for instance in instances),
            state=step.state,
        )
        if step.state == "waits" and (progress.in_work or progress.finished):
            progress.state = step.state = "works"
        if step.upstream.is_finished:
            coming = progress.waiting + progress.in_work
            progress.expected = progress.done_before + progress.finished + coming
        return progress

    # -- the books

    async def _commit_regularly(self) -> None:
        while True:
            await trio.sleep(COMMIT_EVERY)
            self._journal.commit()

    def _set_aside(self, fragment: SetAside, log: Path | None) -> None:
        self._to_failures.send_nowait((fragment, log))

    async def _keep_failures(self) -> None:
        async for fragment, log in self._failures:
            # Before its folder is there: a later run removes the folders that the journal knows of.
            self._journal.commit()
            try:
                failure = await set_aside(
                    self._output.failed,
                    fragment.step,
                    fragment.description,
                    fragment.reason,
                    log,
                    self._store,
                )
            except OSError as error:
                raise VolumeUnusable(
                    f"what failed cannot be set aside in {self._output.failed}: {error.strerror}; make room, and run again"
                ) from None
            self.failures.append(failure)
            if len(self.failures) <= MOST_TOLD:
                self.say(failure.in_one_line)
            elif len(self.failures) == MOST_TOLD + 1:
                self._display.say("more fragments fail; the summary counts them")
