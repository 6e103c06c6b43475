"""`iterum-sidecar local`: what is checked before a run, the run, and what is told at its end."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.error_groups import leaves_of
from iterum_sidecar.exit_codes import ExitCode, SidecarError, VolumeUnusable
from iterum_sidecar.local.conclusion import conclude
from iterum_sidecar.local.containers import find_container_tool
from iterum_sidecar.local.display import choose_display
from iterum_sidecar.local.failures import forget_failure
from iterum_sidecar.local.fingerprints import pipeline_hash
from iterum_sidecar.local.first_fragments import OwnFragmenter, make_first_fragments
from iterum_sidecar.local.fragmenting import GroupingRefused, parse_grouping
from iterum_sidecar.local.inputs import InputsRefused, Scan, check_apart, check_folder
from iterum_sidecar.local.journal import Journal, JournalRefused
from iterum_sidecar.local.own_fragmenter import FragmenterFailed
from iterum_sidecar.local.plan import forget_marks, make_plan
from iterum_sidecar.local.processes import ChildrenLost, CommandFailed, last_lines, open_children
from iterum_sidecar.local.run import Run
from iterum_sidecar.local.state import open_output, synchronise
from iterum_sidecar.local.store import LocalStore
from iterum_sidecar.local.volumes import volume_folder
from iterum_sidecar.pipeline.commands import resolve_command
from iterum_sidecar.pipeline.lint import lint_file, lint_for_local
from iterum_sidecar.pipeline.problems import report
from iterum_sidecar.telemetry.logs import configure, get_log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from iterum_sidecar.local.display import Display, Form
    from iterum_sidecar.local.first_fragments import FirstFragments
    from iterum_sidecar.local.fragmenting import Grouping
    from iterum_sidecar.local.processes import Child, Children
    from iterum_sidecar.local.state import OutputFolder
    from iterum_sidecar.pipeline.model import Pipeline

__all__ = ["Options", "run_local"]

_log = get_log(__name__)

#: Seconds of looking at the input after which one is told of it.
SAY_AFTER = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of a local run."""

    pipeline: Path
    input: Path
    output: Path
    group: str | None = None
    group_by: str | None = None
    match: str | None = None
    fresh: bool = False
    prune: bool = False
    form: Form = "auto"


class _Refused(Exception):
    """The run cannot begin; the text says why and what to do."""

    def __init__(self, text: str, code: ExitCode = ExitCode.CONFIGURATION) -> None:
        super().__init__(text)
        self.code = code


def run_local(options: Options) -> int:
    """Run a pipeline on this machine and return the exit code; every message goes to standard output or standard error."""
    if sys.stdout is None:
        # Closed by whoever started us; what is said is lost, and nothing else.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        pipeline = _read_pipeline(options)
        grouping = parse_grouping(options.group, options.group_by)
        check_folder(options.input)
        check_apart(options.input, options.output)
        scan = Scan(options.input, options.match, output=options.output)
        with open_output(options.output) as output:
            _begin_log(output)
            return trio.run(_Session(options, pipeline, grouping, scan, output).run)
    except (_Refused, SidecarError, InputsRefused, GroupingRefused, JournalRefused) as error:
        print(f"iterum-sidecar: {error}", file=sys.stderr)
        if isinstance(error, SidecarError):
            return error.exit_code
        return error.code if isinstance(error, _Refused) else ExitCode.CONFIGURATION


def _read_pipeline(options: Options) -> Pipeline:
    pipeline, problems = lint_file(options.pipeline)
    tool = find_container_tool()
    if pipeline is not None:
        directory = options.pipeline.absolute().parent
        problems = [*problems, *lint_for_local(pipeline, directory, tool.name if tool else None)]
    if pipeline is None or any(problem.severity == "error" for problem in problems):
        raise _Refused(f"the pipeline cannot be run:\n\n{report(problems)}")
    if problems:
        print(f"{report(problems)}\n", file=sys.stderr)
    return pipeline


def _begin_log(output: OutputFolder) -> None:
    try:
        output.logs.mkdir(exist_ok=True)
        # Open for the life of the process, like standard error.
        stream = open(output.logs / "run.log", "a", encoding="utf-8", buffering=1)  # noqa: SIM115
    except OSError as error:
        raise VolumeUnusable(
            f"{output.logs} cannot be used for logs: {error.strerror}; make room for it, or choose another --output"
        ) from None
    configure("info", "text", stream)


class _Session:
    """One call of the command, from the look at the input to the summary."""

    def __init__(
        self,
        options: Options,
        pipeline: Pipeline,
        grouping: Grouping,
        scan: Scan,
        output: OutputFolder,
    ) -> None:
        self._options = options
        self._pipeline = pipeline
        self._grouping = grouping
        self._scan = scan
        self._output = output
        self._hash = pipeline_hash(pipeline)
        self._directory = options.pipeline.absolute().parent
        self._signals: list[signal.Signals] = []
        self._run: Run | None = None
        self._preparing = trio.CancelScope()
        self._take_over = False

    async def run(self) -> int:
        display = choose_display(self._options.form, sys.stdout)
        refused: list[Exception] = []
        code = ExitCode.FAULT
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as received:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._obey, received, display)
                    code = await self._work(display)
                    nursery.cancel_scope.cancel("the run is over")
            except* (InputsRefused, JournalRefused, _Refused, SidecarError) as group:
                refused += leaves_of(group, Exception)
            except* Exception as group:
                _log.exception("a fault of the program itself", group)
                display.say(
                    f"a fault of the program itself; {self._output.logs / 'run.log'} has its traceback"
                )
                code = ExitCode.FAULT
            finally:
                display.close()
        if refused:
            raise refused[0]
        return code

    async def _work(self, display: Display) -> ExitCode:
        output = self._output
        try:
            await trio.to_thread.run_sync(output.clear_remains)
            known = not self._options.fresh or await trio.to_thread.run_sync(output.start_over)
        except OSError as error:
            raise VolumeUnusable(
                f"what earlier runs left in {output.root} cannot be removed: {error.strerror}: {error.filename}"
            ) from None
        if not known:
            self._take_over = True
            display.say(
                f"the journal of earlier runs cannot be read, so files in {self._options.output} that are in the way of"
                " a result are replaced"
            )
        began = trio.current_time()
        with Journal(output.journal) as journal:
            journal.begins()
            async with open_children() as children:
                run = None
                try:
                    with self._preparing:
                        run = await self._prepare(journal, children, display)
                finally:
                    if run is None:
                        # Nothing else has been written than what was found out about the input.
                        journal.commit()
                        synchronise(output.root)
                        journal.was_synchronised()
                if run is None:
                    display.say("interrupted before anything was begun")
                    return self._interrupted()
                self._run = run
                if not run.has_nothing_to_do:
                    await run.run()
            return await conclude(
                run,
                pipeline=self._pipeline.name,
                pipeline_hash=self._hash,
                output=output,
                shown_as=self._options.output,
                journal=journal,
                display=display,
                seconds=trio.current_time() - began,
                prune=self._options.prune,
                interrupted=self._interrupted() if self._signals else None,
            )

    async def _prepare(self, journal: Journal, children: Children, display: Display) -> Run:
        forget_marks(journal)
        found = await self._look_at_input(journal, children, display)
        for fragment_id in list(journal.failed()):
            forget_failure(self._output.failed, fragment_id)
        plan = make_plan(journal, self._pipeline, self._directory, self._output.root, found.digest)
        journal.commit()
        store = LocalStore(
            objects=self._output.objects,
            inputs=self._options.input,
            input_stamp=journal.input_stamp,
            config_bucket=f"{self._hash}-iterum-config",
            config_folder=self._directory,
        )
        return Run(
            pipeline=self._pipeline,
            pipeline_hash=self._hash,
            directory=self._directory,
            output=self._output,
            journal=journal,
            store=store,
            children=children,
            containers=find_container_tool(),
            display=display,
            plan=plan,
            first_fragments=found.fragments,
            results_before=sum(1 for _ in journal.deliveries(live=True)),
            take_over=self._take_over,
        )

    async def _look_at_input(
        self, journal: Journal, children: Children, display: Display
    ) -> FirstFragments:
        said = began = trio.current_time()

        def progress(files: int, read: int) -> None:
            nonlocal said
            now = trio.current_time()
            if now - said >= SAY_AFTER:
                said = now + 4 * SAY_AFTER
                display.say(
                    f"looking at the input: {files:,} files, {read / 2**20:,.0f} MiB so far"
                )

        command = self._pipeline.fragmenter.command
        log = self._output.logs / "fragmenter.log"

        async def start(environment: dict[str, str]) -> Child:
            return await children.start(
                resolve_command(command or [], self._directory),
                environment={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
                directory=self._directory,
                log=log,
            )

        with volume_folder(self._output.volumes / "fragmenter") as volume:
            config = self._pipeline.iterum_config(self._pipeline.fragmenter, self._hash)
            try:
                found = await make_first_fragments(
                    journal,
                    self._scan,
                    self._grouping,
                    OwnFragmenter(start, volume, config) if command else None,
                    channel=self._pipeline.fragmenter.output_channel,
                    pipeline_hash=self._hash,
                    progress=progress,
                )
            except (FragmenterFailed, CommandFailed, ChildrenLost) as error:
                lines = (
                    "".join(f"\n  {line}" for line in last_lines(log, 10)) if log.exists() else ""
                )
                told = f"; the last lines of its log {log}:{lines}" if lines else ""
                raise _Refused(
                    f"the fragmenter failed: {error}{told}", ExitCode.TRANSFORMATION_LOST
                ) from None
        _log.info(
            "the input",
            files=found.files,
            fragments=found.fragments,
            seconds=trio.current_time() - began,
        )
        return found

    async def _obey(self, received: AsyncIterator[int], display: Display) -> None:
        """Finish what is in work at the first signal; end at once at a second one."""
        async for number in received:
            self._signals.append(signal.Signals(number))
            if self._run is None:
                self._preparing.cancel("told to stop")
            elif len(self._signals) == 1:
                display.say("finishing what is in work; once more (Ctrl-C) ends at once")
                self._run.drain()
            else:
                self._run.abort()

    def _interrupted(self) -> ExitCode:
        first = self._signals[0]
        return ExitCode.INTERRUPTED if first is signal.SIGINT else ExitCode.TERMINATED
