"""`iterum-sidecar dead-letters`: one connection, once through the queue, and what came of it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Protocol, TextIO, TypeAlias

import trio

from iterum_sidecar.dead_letters.choosing import Choosing, Selection
from iterum_sidecar.dead_letters.connecting import connected, count_ready, refuse_to_destroy
from iterum_sidecar.dead_letters.discarding import Discarding
from iterum_sidecar.dead_letters.errors import Misunderstood, NotDone
from iterum_sidecar.dead_letters.listing import Listing
from iterum_sidecar.dead_letters.place import find_place
from iterum_sidecar.dead_letters.putting_back import PuttingBack
from iterum_sidecar.dead_letters.reading import open_reading
from iterum_sidecar.dead_letters.showing import Showing
from iterum_sidecar.error_groups import leaves_of
from iterum_sidecar.exit_codes import BadConfiguration, ExitCode, ServiceLost, SidecarError
from iterum_sidecar.local.progress import printable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from iterum_sidecar.dead_letters.listing import Form
    from iterum_sidecar.dead_letters.place import Place
    from iterum_sidecar.dead_letters.reading import Reading

__all__ = ["Options", "work_on_dead_letters"]

Name: TypeAlias = Literal["list", "show", "retry", "discard"]

#: Deliveries of one message after which a look at a quorum queue is worth a warning: RabbitMQ 4 drops it at 20 by default.
_MANY_DELIVERIES: Final = 10
#: Bytes; a terminal gives a line at a time.
_LONGEST_ANSWER: Final = 1000
#: Columns where nobody tells how many there are, as where `kubectl exec` shows on a terminal what comes out of a pipe.
_COLUMNS: Final = 80


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says; what an action does not know is left as it is here."""

    action: Name
    queue: str = ""
    broker_url: str = ""
    seconds: float = 10.0
    form: Form = "text"
    selection: Selection = field(default_factory=Selection)
    to: str = ""
    save: Path | None = None
    yes: bool = False
    dry_run: bool = False
    raw: bool = False


class _Action(Protocol):
    """What is done with the letters that are chosen."""

    @property
    def changes(self) -> bool:
        """Whether there is something to tell of it although it was stopped half-way."""
        ...

    @property
    def problems(self) -> Sequence[str]:
        """What of it could not be done."""
        ...

    async def run(self, reading: Reading, choosing: Choosing) -> None:
        """Go through the queue.

        Raises:
            SidecarError.
        """
        ...

    def tell(self, output: TextIO, choosing: Choosing) -> None:
        """Write what was found or done; nothing where that is nothing.

        Raises:
            NotDone: it cannot be written as it was asked for.
        """
        ...


def work_on_dead_letters(
    environment: Mapping[str, str], options: Options, output: TextIO
) -> ExitCode:
    """Do what the command line says, write what came of it, and return the exit code; problems are told on standard error."""
    try:
        _check(options)
        place = find_place(environment, queue=options.queue, broker_url=options.broker_url)
        return _Work(options, place).carry_out(output)
    except BadConfiguration as error:
        for problem in error.problems:
            _complain(problem)
        return error.exit_code
    except SidecarError as error:
        _complain(str(error))
        return error.exit_code


def _check(options: Options) -> None:
    if options.action in {"retry", "discard"} and not options.selection.is_said:
        raise Misunderstood(
            f"{options.action}: say which dead letters, by --id, --kind, --reason, --after or --before, or --all of them"
        )
    asks = options.action == "discard" and not (options.yes or options.dry_run)
    if asks and not sys.stdin.isatty():
        raise Misunderstood(
            "discard asks before it does so, and there is nobody to ask: look with --dry-run, then say --yes"
        )


def _complain(text: str) -> None:
    print(f"iterum-sidecar: {text}", file=sys.stderr)


class _Work:
    """One command, from its connection to its exit code."""

    def __init__(self, options: Options, place: Place) -> None:
        self._options = options
        self._place = place
        self._choosing = Choosing(options.selection, place.queue)
        self._action = self._make_action()
        self._done = False
        self._signals: list[signal.Signals] = []
        self._error: SidecarError | None = None

    def _make_action(self) -> _Action:
        options = self._options
        listing = Listing(
            options.form,
            self._place.queue,
            width=shutil.get_terminal_size((_COLUMNS, 24)).columns,
            narrows=options.selection.narrows,
        )
        instead = listing if options.dry_run else None
        match options.action:
            case "list":
                return listing
            case "show":
                return Showing(options.form, self._place.queue, raw=options.raw)
            case "retry":
                return PuttingBack(
                    options.form,
                    self._place,
                    to=options.to,
                    seconds=options.seconds,
                    instead=instead,
                )
            case "discard":
                return Discarding(
                    options.form,
                    self._place.queue,
                    save=options.save,
                    agrees=self._agrees,
                    instead=instead,
                )

    def carry_out(self, output: TextIO) -> ExitCode:
        """Do it, tell what came of it, and return the exit code.

        Raises:
            SidecarError: not all was done; what was done has been told.
        """
        trio.run(self._run)
        if self._done or self._action.changes:
            self._action.tell(output, self._choosing)
            output.flush()
        if self._choosing.most_deliveries >= _MANY_DELIVERIES:
            _complain(
                f"{printable(self._place.queue)} is a quorum queue, which counts each look as a delivery: one letter has had"
                f" {self._choosing.most_deliveries}. Where it has a limit, which is 20 in RabbitMQ 4 unless x-delivery-limit is -1, it"
                " drops them there"
            )
        problems = [*self._action.problems]
        if self._done:
            problems += [f"no dead letter has the ID {each}" for each in self._choosing.missing]
        for problem in problems:
            _complain(problem)
        if self._error is not None:
            raise self._error
        if self._signals and not self._done:
            _complain("stopped" if self._action.changes else "stopped; nothing was changed")
            stopped = self._signals[0] is signal.SIGTERM
            return ExitCode.TERMINATED if stopped else ExitCode.INTERRUPTED
        return ExitCode.FAULT if problems else ExitCode.DONE

    async def _run(self) -> None:
        """Work until it is done or stopped; an error is kept, so that what was done before it is told first."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
            try:
                async with trio.open_nursery() as nursery:
                    scope = trio.CancelScope()
                    nursery.start_soon(self._obey, received, scope)
                    with scope:
                        await self._work()
                        self._done = True
                    nursery.cancel_scope.cancel("it is over")
            except* SidecarError as group:
                self._error = leaves_of(group, SidecarError)[0]

    async def _obey(self, received: AsyncIterator[int], scope: trio.CancelScope) -> None:
        """Stop in good order at the first signal, and at once at a second: what was not acknowledged goes back by itself."""
        async for number in received:
            if self._signals:
                os._exit(128 + number)
            self._signals.append(signal.Signals(number))
            scope.cancel("told to stop")

    async def _work(self) -> None:
        seconds, queue = self._options.seconds, self._place.queue
        async with connected(self._place, seconds) as connection:
            try:
                with trio.fail_after(seconds):
                    count = await count_ready(connection, queue)
            except trio.TooSlowError:
                raise ServiceLost(
                    f"the broker does not tell of {printable(queue)} within {seconds:g} s; see to its log and its load"
                ) from None
            if count is None and self._options.action != "list":
                raise NotDone(f"no dead letters: there is no queue {printable(queue)}")
            if count is None:
                self._choosing.has_no_queue = True
                return
            await refuse_to_destroy(connection, queue)
            async with open_reading(connection, queue, count, seconds) as reading:
                await self._action.run(reading, self._choosing)

    async def _agrees(self, what: str) -> bool:
        """Ask on the terminal; past `sys.stdin`, whose lock a thread that waits would take along into the end of the program."""
        if self._options.yes:
            return True
        print(f"Discard {what}? [y/N] ", end="", file=sys.stderr, flush=True)
        terminal = sys.stdin.fileno()
        await trio.lowlevel.wait_readable(terminal)
        return os.read(terminal, _LONGEST_ANSWER).strip().lower() in {b"y", b"yes"}
