"""`iterum-sidecar local`: what is checked before a run, the run, and what is told at its end."""

from __future__ import annotations

import logging
import os
import signal
import sys
from dataclasses import dataclass
from json import dumps
from typing import TYPE_CHECKING

import msgspec
import trio

from iterum_sidecar.error_groups import leaves_of
from iterum_sidecar.exit_codes import ExitCode, SidecarError, VolumeUnusable
from iterum_sidecar.local.conclusion import conclude
from iterum_sidecar.local.containers import find_container_tool
from iterum_sidecar.local.display import choose_display
from iterum_sidecar.local.failures import forget_failure
from iterum_sidecar.local.fingerprints import fingerprints, pipeline_hash
from iterum_sidecar.local.first_fragments import OwnFragmenter, make_first_fragments
from iterum_sidecar.local.fragmenting import GroupingRefused, parse_grouping
from iterum_sidecar.local.inputs import InputsRefused, Scan, check_apart, check_folder, shown
from iterum_sidecar.local.journal import Journal, JournalRefused
from iterum_sidecar.local.log_tail import with_last_lines
from iterum_sidecar.local.own_fragmenter import FragmenterFailed
from iterum_sidecar.local.plan import make_plan
from iterum_sidecar.local.processes import (
    ChildrenLost,
    CommandFailed,
    check_system,
    open_children,
)
from iterum_sidecar.local.run import Run
from iterum_sidecar.local.state import open_output, synchronise
from iterum_sidecar.local.store import LocalStore
from iterum_sidecar.local.volumes import volume_folder
from iterum_sidecar.local.waiting import tell_of_waiting
from iterum_sidecar.pipeline.commands import resolve_command
from iterum_sidecar.pipeline.lint import lint_file, lint_for_local
from iterum_sidecar.pipeline.problems import report
from iterum_sidecar.telemetry.logs import configure, get_log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from iterum_sidecar.local.containers import ContainerTool
    from iterum_sidecar.local.display import Display, Form
    from iterum_sidecar.local.first_fragments import FirstFragments
    from iterum_sidecar.local.fragmenting import Grouping
    from iterum_sidecar.local.processes import Child, Children
    from iterum_sidecar.local.state import OutputFolder
    from iterum_sidecar.pipeline.model import Pipeline
    from iterum_sidecar.pipeline.problems import Problem

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
    """The run cannot begin; the text says why and what to do, and `problems` has what is wrong with the pipeline file."""

    def __init__(
        self,
        text: str,
        exit_code: ExitCode = ExitCode.CONFIGURATION,
        problems: Sequence[Problem] = (),
    ) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.problems = problems


def run_local(options: Options) -> int:
    """Run a pipeline on this machine and return the exit code; every message goes to standard output or standard error."""
    if sys.stdout is None:
        # Closed by whoever started us; what is said is lost, and nothing else.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        check_system()
        tool = find_container_tool()
        pipeline = _read_pipeline(options, tool)
        grouping = parse_grouping(options.group, options.group_by)
        check_folder(options.input)
        check_apart(options.input, options.output)
        scan = Scan(options.input, options.match, output=options.output)
        with open_output(options.output) as output:
            _begin_log(output)
            return trio.run(_Session(options, pipeline, grouping, scan, output, tool).run)
    except (_Refused, SidecarError, InputsRefused, GroupingRefused, JournalRefused) as error:
        code = getattr(error, "exit_code", ExitCode.CONFIGURATION)
        print(f"iterum-sidecar: {error}", file=sys.stderr)
        if options.form == "json":
            print(_as_json(error, code), flush=True)
        return code


def _as_json(error: Exception, code: ExitCode) -> str:
    """Return the `error` event, the last line of a run that has no summary."""
    problems = error.problems if isinstance(error, _Refused) else ()
    told = [{"place": problem.place, **msgspec.to_builtins(problem)} for problem in problems]
    return dumps({"event": "error", "exit_code": int(code), "text": str(error), "problems": told})


def _read_pipeline(options: Options, tool: ContainerTool | None) -> Pipeline:
    pipeline, problems = lint_file(options.pipeline)
    if pipeline is not None:
        directory = options.pipeline.absolute().parent
        problems = [*problems, *lint_for_local(pipeline, directory, tool.name if tool else None)]
    if pipeline is None or any(problem.severity == "error" for problem in problems):
        raise _Refused(f"the pipeline cannot be run:\n\n{report(problems)}", problems=problems)
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
    # A log for which there is no room tells a user nothing; whatever else there is no room for does.
    logging.raiseExceptions = False
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
        tool: ContainerTool | None,
    ) -> None:
        self._options = options
        self._pipeline = pipeline
        self._grouping = grouping
        self._scan = scan
        self._output = output
        self._tool = tool
        self._hash = pipeline_hash(pipeline)
        self._directory = options.pipeline.absolute().parent
        self._signals: list[signal.Signals] = []
        self._run: Run | None = None
        self._preparing = trio.CancelScope()

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
                if self._output.is_there:
                    display.say(
                        f"a fault of the program itself; {self._output.logs / 'run.log'} has its traceback"
                    )
                code = ExitCode.FAULT
            finally:
                display.close()
        # Whatever else was met came of that.
        self._see_that_output_is_there()
        if refused:
            raise refused[0]
        return code

    def _see_that_output_is_there(self) -> None:
        if not self._output.is_there:
            raise VolumeUnusable(
                f"{shown(str(self._options.output))}, or .iterum/ in it, was removed while the run went on;"
                " the same command begins anew"
            )

    async def _work(self, display: Display) -> ExitCode:
        output = self._output
        try:
            await trio.to_thread.run_sync(output.clear_remains)
            if self._options.fresh:
                if output.journal.exists():
                    # A disk may take a minute for the files of a hundred thousand fragments.
                    display.say("removing what earlier runs have made")
                await trio.to_thread.run_sync(output.start_over)
        except OSError as error:
            raise VolumeUnusable(
                f"what earlier runs left in {output.root} cannot be removed: {error.strerror}: {error.filename};"
                " end what still writes there, or remove it yourself, and run again"
            ) from None
        if output.takes_over:
            display.say(
                f"the journal of earlier runs could not be read, so files in {self._options.output} that are in the way of"
                " a result are replaced"
            )
        began = trio.current_time()
        with await trio.to_thread.run_sync(Journal, output.journal) as journal:
            await trio.to_thread.run_sync(journal.begins)
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
            self._see_that_output_is_there()
            code = await conclude(
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
        if code is ExitCode.DONE:
            output.has_taken_over()
        return code

    async def _prepare(self, journal: Journal, children: Children, display: Display) -> Run:
        found = await self._look_at_input(journal, children, display)
        for fragment_id in list(journal.failed()):
            forget_failure(self._output.failed, fragment_id)
        prints = await trio.to_thread.run_sync(
            fingerprints, self._pipeline, self._directory, abandon_on_cancel=True
        )
        # Nothing else uses the journal meanwhile; so the thread is waited for, and a signal that came has its effect after it.
        plan = await trio.to_thread.run_sync(
            make_plan, journal, self._pipeline, prints, self._output.root, found.digest
        )
        await trio.lowlevel.checkpoint_if_cancelled()
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
            containers=self._tool,
            display=display,
            plan=plan,
            first_fragments=found.fragments,
            results_before=plan.results_before,
            take_over=self._output.takes_over,
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
                told = f"the fragmenter failed: {error}"
                if isinstance(error, FragmenterFailed):
                    told = with_last_lines(told, log)
                raise _Refused(told, ExitCode.TRANSFORMATION_LOST) from None
        if self._scan.left_out:
            display.say(self._scan.left_out)
        _log.info(
            "the input",
            files=found.files,
            fragments=found.fragments,
            seconds=trio.current_time() - began,
        )
        return found

    async def _obey(self, received: AsyncIterator[int], display: Display) -> None:
        """Finish what is in work at the first signal; end at once at a second one."""
        async with trio.open_nursery() as nursery:
            async for number in received:
                self._signals.append(signal.Signals(number))
                if self._run is None:
                    self._preparing.cancel("told to stop")
                elif len(self._signals) == 1:
                    display.say("finishing what is in work; once more (Ctrl-C) ends at once")
                    self._run.drain()
                    nursery.start_soon(tell_of_waiting, self._run.in_work, display.say)
                else:
                    self._run.abort()

    def _interrupted(self) -> ExitCode:
        first = self._signals[0]
        return ExitCode.INTERRUPTED if first is signal.SIGINT else ExitCode.TERMINATED
