"""Child processes of a local run, which cannot outlive it, and the end of what they have written.

    async with open_children() as children:
        child = await children.start(["python", "step.py"], environment={...}, directory="/steps", log="step.log")
        code = await child.wait()

The run is not their parent: `subreaper.py` is, a small program that is started once and ends them when the run ends,
be it by SIGKILL. What it promises for each child is told there.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.exit_codes import ExitCode, SidecarError
from iterum_sidecar.framing import FrameReader, encode_frame
from iterum_sidecar.local import subreaper
from iterum_sidecar.unix_sockets import Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

__all__ = [
    "Child",
    "Children",
    "ChildrenImpossible",
    "ChildrenLost",
    "CommandFailed",
    "check_system",
    "how_it_ended",
    "open_children",
]

#: Seconds that the end of all children may take: 2 after SIGTERM, 2 after SIGKILL, and a reserve for a busy machine.
_END_SECONDS = 15.0
#: Seconds that the subreaper has to end when it did not by itself and has been killed.
_KILL_SECONDS = 1.0


class CommandFailed(Exception):
    """A command could not be started; the message is the OSError's, such as `[Errno 2] No such file or directory: 'x'`.

    The OSError itself, where there was one, is the cause; its `filename` says whether the command, the directory or
    the log was at fault.
    """


class ChildrenImpossible(SidecarError):
    """Nothing here can keep child processes from outliving the run; the message says what that takes."""

    exit_code = ExitCode.CONFIGURATION


class ChildrenLost(Exception):
    """The children have been killed, because the process that they were children of has died."""


class Child:
    """A process that has been started; made by `Children.start`."""

    def __init__(self, children: Children, number: int, pid: int) -> None:
        self.pid = pid
        """The process ID, which is also that of its process group and its session."""
        self._number = number
        self._children = children
        self._ended = trio.Event()
        self._code: int | None = None

    async def wait(self) -> int:
        """Return the exit code, waiting for it: 0 to 255, or minus the number of the signal that ended the process.

        Any number of tasks may wait, and after the exit too. Nothing is left of the process's session then.

        Raises:
            ChildrenLost: its exit code is not known, and never will be.
        """
        await self._ended.wait()
        if self._code is None:
            raise self._children._loss()
        return self._code

    def signal(self, number: int) -> None:
        """Send a signal to the process and its group. Nothing happens if it has exited."""
        if not self._ended.is_set():
            self._children._send(b"signal", b"%d" % self._number, b"%d" % int(number))

    def kill(self) -> None:
        """Kill the process and its group. Nothing happens if it has exited."""
        self.signal(signal.SIGKILL)

    def _end(self, code: int | None) -> None:
        self._code = code
        self._ended.set()


class Children:
    """The child processes of one `open_children`."""

    def __init__(self, peer: Peer, pid: int) -> None:
        self._peer = peer
        self._pid = pid
        self._numbers = itertools.count(1)
        #: By the numbers of their requests.
        self._starts: dict[int, _Start] = {}
        self._running: dict[int, Child] = {}
        self._left = False
        self._over = trio.Event()
        #: The end of the line is still to come when the body of the context has been cancelled.
        self._listening = trio.CancelScope(shield=True)

    async def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: str | os.PathLike[str],
        log: str | os.PathLike[str],
    ) -> Child:
        """Start a command in `directory`, with exactly this environment, and append what it writes to `log`.

        A command without a slash is looked for in the `PATH` of that environment; one with a slash is relative to
        `directory`. Surrogate escapes stand for bytes that are not UTF-8, as everywhere in Python. A cancelled start
        leaves nothing running.

        Raises:
            CommandFailed: the command cannot be run, or there is no such directory, or the log cannot be opened.
            ChildrenLost: there is nothing any more that could start it.
        """
        start = _Start(list(command), os.path.abspath(directory), os.path.abspath(log))
        number = next(self._numbers)
        request = start.request(number, environment)
        if self._left or self._over.is_set():
            await trio.lowlevel.checkpoint()
            raise self._loss()
        self._starts[number] = start
        self._send(*request)
        try:
            await start.answered.wait()
        except BaseException:
            start.abandon()
            raise
        if start.child is None:
            raise start.failure or self._loss()
        return start.child

    def _send(self, *fields: bytes) -> None:
        self._peer.send(encode_frame(b"\0".join(fields)))

    def _loss(self) -> ChildrenLost:
        if self._left:
            return ChildrenLost("the run has ended, and all its child processes with it")
        return ChildrenLost(
            f"process {self._pid}, the parent of all the run's child processes, was killed or has failed; they were killed with it"
        )

    async def _serve(self) -> None:
        """Keep both directions of the line going until it is closed."""
        with self._listening:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen)
                nursery.start_soon(self._peer.run_sender)

    async def _listen(self) -> None:
        """Take the subreaper's answers until it is gone."""
        reader = FrameReader()
        while True:
            await self._peer.wait_readable()
            data = self._peer.receive_nowait()
            if data is None:
                continue
            if not data:
                break
            for frame in reader.feed(data):
                self._take(*frame.decode("ascii").split(" "))
        self._lose()

    def _lose(self) -> None:
        """Wake whoever waits for what can no longer happen."""
        self._over.set()
        for start in self._starts.values():
            start.answered.set()
        for child in self._running.values():
            child._end(None)

    def _take(self, verb: str, number: str, *rest: str) -> None:
        if verb == "exited":
            self._running.pop(int(number))._end(int(rest[0]))
            return
        start = self._starts.pop(int(number))
        if verb == "failed":
            start.fail(int(rest[0]), rest[1])
        else:
            child = self._running[int(number)] = Child(self, int(number), int(rest[0]))
            start.succeed(child)
        start.answered.set()

    async def _leave(self, ours: socket.socket) -> None:
        """Tell the subreaper to end everything, and return when everything has ended."""
        self._left = True
        await self._peer.flush()
        ours.shutdown(socket.SHUT_WR)
        await self._over.wait()


class _Start:
    """A command on its way to become a child."""

    def __init__(self, command: list[str], directory: str, log: str) -> None:
        self.answered = trio.Event()
        self.child: Child | None = None
        self.failure: CommandFailed | None = None
        self._abandoned = False
        self._command = command
        self._directory = directory
        self._log = log

    def request(self, number: int, environment: Mapping[str, str]) -> list[bytes]:
        """Return the fields of the request. Raises CommandFailed for what no program can be given."""
        if not self._command:
            raise CommandFailed("the command is empty")
        for name in environment:
            if not name or "=" in name:
                raise CommandFailed(f"{name!r} cannot be the name of an environment variable")
        return [
            b"start",
            b"%d" % number,
            _field(self._directory),
            _field(self._log),
            b"%d" % len(self._command),
            *map(_field, self._command),
            *(_field(f"{name}={value}") for name, value in environment.items()),
        ]

    def succeed(self, child: Child) -> None:
        """Take the child, or end it if no one waits for it any more."""
        self.child = child
        if self._abandoned:
            child.kill()

    def abandon(self) -> None:
        """End the child, now or when there is one."""
        self._abandoned = True
        if self.child is not None:
            self.child.kill()

    def fail(self, number: int, what: str) -> None:
        """Take the error number, and what it was about."""
        name = {"directory": self._directory, "log": self._log}.get(what, self._command[0])
        error = OSError(number, os.strerror(number), name)
        self.failure = CommandFailed(str(error))
        self.failure.__cause__ = error


def _field(text: str) -> bytes:
    if "\0" in text:
        raise CommandFailed(f"{text!r} holds a NUL character, which no program can be given")
    try:
        return os.fsencode(text)
    except UnicodeEncodeError as error:
        raise CommandFailed(
            f"{text!r} cannot be given to a program: {error.reason} ({error.encoding})"
        ) from error


@asynccontextmanager
async def open_children() -> AsyncIterator[Children]:
    """Make it possible to start child processes, for the duration of the context.

    Resource handling: leaving sends SIGTERM to all children that still run, and 2 s later SIGKILL to whatever
    descends from them; then all `Child.wait` have returned. That is shielded from cancellation, and takes 15 s at the most,
    which only processes reach that not even SIGKILL ends (they wait for a disk, say). If this process is killed
    instead, the same happens without it.

    Error handling: raises a ChildrenImpossible where there is no Linux or no /proc, an OSError when the subreaper cannot
    be started. When it is killed, all children are too; who waits for a child or starts one gets a ChildrenLost, and the
    body of the context is not cancelled. What the body raises comes out bare.
    """
    check_system()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    peer = Peer(ours)
    alone: BaseException | None = None
    try:
        with theirs:
            # The session of its own keeps the terminal's Ctrl-C from it. Its standard error is ours, for a traceback.
            process = await trio.lowlevel.open_process(
                [sys.executable, "-I", "-S", subreaper.__file__],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        children = Children(peer, process.pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(children._serve)
            try:
                yield children
            finally:
                with trio.move_on_after(_END_SECONDS, shield=True):
                    await children._leave(ours)
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    with trio.move_on_after(_KILL_SECONDS, shield=True):
                        await process.wait()
                children._lose()
                children._listening.cancel("all children have ended")
    except BaseExceptionGroup as group:
        # The tasks raise nothing, so the nursery has wrapped what the body raised, and that alone.
        if len(group.exceptions) > 1:
            raise
        alone = group.exceptions[0]
    finally:
        peer.close()
    if alone is not None:
        # As if the nursery had not been there: with the context that it had, and in no cycle with this frame.
        context = alone.__context__
        try:
            raise alone
        finally:
            alone.__context__ = context
            del alone, context


def check_system() -> None:
    """Raise ChildrenImpossible where there is no Linux, or no /proc."""
    if sys.platform != "linux":
        raise ChildrenImpossible(
            "local runs need Linux, where a run that is killed takes its steps with it; use a Linux machine, virtual or not"
        )
    if not subreaper.proc_is_ours():
        raise ChildrenImpossible(
            "a run finds what its steps leave behind by /proc, which shows nothing of it here; mount it: mount -t proc proc /proc"
        )


def how_it_ended(code: int) -> str:
    """Say how a process ended, by its exit code, or the negative number of the signal that ended it."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
