from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from iterum_sidecar.framing import FrameReader, encode_frame
from iterum_sidecar.local import subreaper
from iterum_sidecar.local.processes import (
    Child,
    Children,
    ChildrenLost,
    CommandFailed,
    last_lines,
    open_children,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

PATH = {"PATH": os.environ.get("PATH", os.defpath)}
#: For what takes milliseconds, or 2 s where a program ignores SIGTERM; a busy machine has more time.
SECONDS = 30

# Leaves a process that has a session of its own and no parent, as daemons do, then does something else.
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(1, b"daemon\\n")
        time.sleep(60)
    os._exit(0)
os.wait()
"""
# Leaves some processes in its session, and exits.
BACKGROUND = """
import os, time
for _ in range({}):
    process = os.fork()
    if process == 0:
        time.sleep(60)
    {}
os._exit(5)
"""
FOREVER = "time.sleep(60)"


def python(*code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", "\n".join(code)]


def shell(code: str) -> list[str]:
    return ["sh", "-c", code]


class Pipe:
    """A named pipe to be the log of a child: it tells when everything that holds the log is gone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._end: int | None = None
        self.read = b""

    def open(self) -> None:
        """Let programs write: until then, one that opens the pipe waits."""
        self._end = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)

    def close(self) -> None:
        if self._end is not None:
            os.close(self._end)

    async def says(self, expected: bytes) -> None:
        """Wait until this has been written."""
        while expected not in self.read:
            assert await self._more(), self.read

    async def is_let_go(self) -> None:
        """Wait until no process holds the pipe."""
        while await self._more():
            pass

    def is_let_go_now(self) -> bool:
        """Say whether no process holds the pipe."""
        assert self._end is not None
        try:
            while os.read(self._end, 65536):
                pass
        except BlockingIOError:
            return False
        return True

    async def _more(self) -> bytes:
        assert self._end is not None
        with trio.fail_after(SECONDS):
            await trio.lowlevel.wait_readable(self._end)
        data = os.read(self._end, 65536)
        self.read += data
        return data


class Place:
    """Where the children of a test run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path / "log"

    async def start(
        self,
        children: Children,
        command: list[str],
        log: Path | None = None,
        environment: Mapping[str, str] = PATH,
    ) -> Child:
        return await children.start(
            command, environment=environment, directory=self.path, log=log or self.log
        )

    async def run(
        self, children: Children, command: list[str], environment: Mapping[str, str] = PATH
    ) -> int:
        child = await self.start(children, command, environment=environment)
        return await child.wait()

    async def output(self, command: list[str], environment: Mapping[str, str] = PATH) -> bytes:
        """Return what a command writes that ends well."""
        async with opened() as children:
            assert await self.run(children, command, environment) == 0
        return self.log.read_bytes()


@asynccontextmanager
async def opened() -> AsyncIterator[Children]:
    with trio.fail_after(SECONDS):
        async with open_children() as children:
            yield children


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A directory for the children, and their log."""
    (tmp_path / "steps").mkdir()
    return Place(tmp_path / "steps")


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    """A named pipe that programs can write to."""
    pipe = Pipe(tmp_path / "pipe")
    pipe.open()
    yield pipe
    pipe.close()


@pytest.fixture
def closed_pipe(tmp_path: Path) -> Iterator[Pipe]:
    """A named pipe that keeps programs waiting until it is opened."""
    pipe = Pipe(tmp_path / "closed-pipe")
    yield pipe
    pipe.close()


@contextmanager
def a_line() -> Iterator[socket.socket]:
    """The run's end of a line to a subreaper, which can keep little of what is not read."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    command = [sys.executable, "-I", "-S", subreaper.__file__]
    with (
        closing(ours),
        subprocess.Popen(command, stdin=theirs.fileno(), start_new_session=True) as process,
    ):
        theirs.close()
        yield ours
        ours.close()
        process.wait(SECONDS)


def request(number: int, command: list[str], log: Path) -> bytes:
    words = [b"start", b"%d" % number, b"/", os.fsencode(log), b"%d" % len(command)]
    return encode_frame(b"\0".join([*words, *map(os.fsencode, command)]))


@pytest.fixture
def line() -> Iterator[socket.socket]:
    """A line to a subreaper."""
    with a_line() as line:
        yield line


def parent_of(process: int) -> int:
    return next(parent for pid, _, parent, _, _ in subreaper.processes() if pid == process)


def children_of(process: int) -> set[int]:
    return {pid for pid, _, parent, _, _ in subreaper.processes() if parent == process}


# -- exit codes


@pytest.mark.parametrize(
    ("code", "expected"), [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", -9)]
)
async def test_a_child_tells_its_exit_code(place: Place, code: str, expected: int) -> None:
    async with opened() as children:
        assert await place.run(children, shell(code)) == expected


async def test_every_waiter_learns_the_code_and_so_does_who_asks_later(
    place: Place, pipe: Pipe
) -> None:
    codes = []

    async def wait(child: Child) -> None:
        codes.append(await child.wait())

    async with opened() as children:
        child = await place.start(children, shell("echo ready; sleep 60"), pipe.path)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait, child)
            await pipe.says(b"ready")
            await wait_all_tasks_blocked()
            assert codes == []
            child.signal(signal.SIGTERM)
        assert codes == [-15, -15, -15]
        assert await child.wait() == -15
    assert await child.wait() == -15


async def test_a_cancelled_wait_leaves_the_child_alone(place: Place, pipe: Pipe) -> None:
    async with opened() as children:
        child = await place.start(children, shell("echo ready; sleep 60"), pipe.path)
        await pipe.says(b"ready")
        with trio.CancelScope() as scope:
            scope.cancel()
            await child.wait()
        child.kill()
        assert await child.wait() == -9


async def test_fifty_children_run_at_once_and_none_gets_the_code_of_another(
    place: Place, pipe: Pipe
) -> None:
    running: dict[int, Child] = {}

    async def start(children: Children, number: int) -> None:
        code = f"trap 'exit {number}' USR1; echo ready-{number}.; while :; do sleep 0.05; done"
        running[number] = await place.start(children, shell(code), pipe.path)

    async with opened() as children:
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(start, children, number)
        for number in range(50):
            await pipe.says(b"ready-%d." % number)
        for child in running.values():
            child.signal(signal.SIGUSR1)
        codes = {number: await child.wait() for number, child in running.items()}
    assert codes == {number: number for number in range(50)}
    assert len({child.pid for child in running.values()}) == 50


# -- what a child is given


async def test_the_environment_is_passed_exactly(place: Place) -> None:
    environment = {**PATH, "EMPTY": "", "EQUAL": "a=b=c", "LINES": "1\n2", "BYTES": "\udcff\udc80é"}
    written = await place.output(["env", "-0"], environment)
    assert dict(entry.split(b"=", 1) for entry in written.rstrip(b"\0").split(b"\0")) == {
        b"PATH": os.fsencode(PATH["PATH"]),
        b"EMPTY": b"",
        b"EQUAL": b"a=b=c",
        b"LINES": b"1\n2",
        b"BYTES": b"\xff\x80\xc3\xa9",
    }


async def test_arguments_are_passed_exactly(place: Place) -> None:
    words = ["", " ", "'\"$HOME*", "two\nlines", "\udcff\udc80", "é", "-x", "y" * 100_000]
    written = await place.output(
        python(
            "import os, sys", "os.write(1, b'|'.join(map(os.fsencode, sys.argv[1:])))", FOREVER[:0]
        )
        + words
    )
    assert written == b"|".join(map(os.fsencode, words))


async def test_more_can_be_asked_at_once_than_the_line_holds(place: Place) -> None:
    codes = []

    async def run(children: Children) -> None:
        codes.append(await place.run(children, ["true", "y" * 100_000]))

    async with opened() as children, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(run, children)
    assert codes == [0] * 20


async def test_a_child_runs_in_its_directory(place: Place) -> None:
    odd = place.path / os.fsdecode(b"a b\xff")
    odd.mkdir()
    async with opened() as children:
        child = await children.start(["pwd", "-P"], environment=PATH, directory=odd, log=place.log)
        assert await child.wait() == 0
    assert place.log.read_bytes() == os.fsencode(odd.resolve()) + b"\n"


async def test_a_command_with_a_slash_is_relative_to_the_directory(place: Place) -> None:
    script = place.path / "step"
    script.write_text("#!/bin/sh\necho here\n")
    script.chmod(0o755)
    assert await place.output(["./step"]) == b"here\n"


async def test_a_command_without_a_slash_is_looked_for_in_the_path_that_the_child_is_given(
    place: Place,
) -> None:
    script = place.path / "only-here"
    script.write_text("#!/bin/sh\necho found\n")
    script.chmod(0o755)
    assert await place.output(["only-here"], {"PATH": f"/nowhere:{place.path}"}) == b"found\n"


async def test_a_relative_directory_and_log_are_the_runs_own(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as children:
        monkeypatch.chdir(place.path.parent)
        child = await children.start(["pwd"], environment=PATH, directory="steps", log="out")
        assert await child.wait() == 0
    assert (place.path.parent / "out").read_text() == f"{place.path}\n"


async def test_both_outputs_are_appended_to_the_log(place: Place) -> None:
    place.log.write_text("before\n")
    async with opened() as children:
        await place.run(children, shell("echo out; echo err >&2"))
        await place.run(children, shell("echo again"))
    assert place.log.read_text() == "before\nout\nerr\nagain\n"


async def test_a_large_output_arrives_whole(place: Place) -> None:
    written = await place.output(shell("head -c 30000000 /dev/zero; head -c 1000 /dev/zero >&2"))
    assert len(written) == 30_001_000


async def test_a_child_has_no_file_open_but_the_three_and_an_empty_input(place: Place) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        written = await place.output(shell("cat; readlink /proc/self/fd/0; ls /proc/self/fd"))
    finally:
        os.close(reading)
        os.close(writing)
    # The fourth is the directory that `ls` reads.
    assert written == b"/dev/null\n0\n1\n2\n3\n"


async def test_a_child_has_every_signal_at_its_default_and_none_blocked(
    place: Place, pipe: Pipe
) -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    # Started by this thread, the subreaper has the mask as well.
    with a_line() as line:
        signal.signal(signal.SIGUSR1, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        line.sendall(request(1, ["/bin/cat", "/proc/self/status"], pipe.path))
        await pipe.is_let_go()
    status = dict(line.split(":", 1) for line in pipe.read.decode().splitlines())
    # Signals 32 and 33 are the C library's own; it lets no one change what they do.
    others = ~(0b11 << 31)
    assert int(status["SigIgn"], 16) & others == 0
    assert int(status["SigBlk"], 16) & others == 0


async def test_the_terminals_signals_reach_neither_a_child_nor_its_parents(
    place: Place, pipe: Pipe
) -> None:
    async with opened() as children:
        child = await place.start(children, shell("echo ready; sleep 60"), pipe.path)
        await pipe.says(b"ready")
        worker = parent_of(child.pid)
        keeper = parent_of(worker)
        assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid
        assert os.getsid(worker) == os.getsid(keeper) != os.getsid(0)
        for process in (worker, keeper):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(process, number)
        assert await place.run(children, ["true"]) == 0
        child.kill()
        assert await child.wait() == -9


# -- what cannot be started


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["no-such-command"], "[Errno 2] No such file or directory: 'no-such-command'"),
        (["./no-such"], "[Errno 2] No such file or directory: './no-such'"),
        (["./plain"], "[Errno 13] Permission denied: './plain'"),
        (["/"], "[Errno 13] Permission denied: '/'"),
        (["./no-program"], "[Errno 8] Exec format error: './no-program'"),
        (["true", "x" * 200_000], "[Errno 7] Argument list too long: 'true'"),
        ([], "the command is empty"),
        (["true", "a\0b"], r"'a\x00b' holds a NUL character, which no program can be given"),
        (
            ["true", "\ud800"],
            r"'\ud800' cannot be given to a program: surrogates not allowed (utf-8)",
        ),
    ],
)
async def test_what_cannot_be_run_says_why(place: Place, command: list[str], error: str) -> None:
    (place.path / "plain").write_text("#!/bin/sh\n")
    (place.path / "no-program").write_text("neither a script nor a program\n")
    (place.path / "no-program").chmod(0o755)
    async with opened() as children:
        with pytest.raises(CommandFailed) as failure:
            await place.start(children, command)
        assert str(failure.value) == error
        assert await place.run(children, ["true"]) == 0


async def test_a_missing_directory_or_one_for_the_log_is_named(place: Place) -> None:
    nowhere = place.path / "nowhere"
    async with opened() as children:
        with pytest.raises(CommandFailed) as failure:
            await children.start(["true"], environment=PATH, directory=nowhere, log=place.log)
        assert str(failure.value) == f"[Errno 2] No such file or directory: '{nowhere}'"
        cause = failure.value.__cause__
        assert isinstance(cause, FileNotFoundError)
        assert cause.filename == str(nowhere)
        with pytest.raises(CommandFailed) as failure:
            await place.start(children, ["true"], nowhere / "log")
        assert str(failure.value) == f"[Errno 2] No such file or directory: '{nowhere}/log'"


@pytest.mark.parametrize("name", ["", "A=B"])
async def test_a_variable_that_cannot_be_is_named(place: Place, name: str) -> None:
    async with opened() as children:
        with pytest.raises(CommandFailed, match=f"^'{name}' cannot be the name"):
            await place.start(children, ["true"], environment={name: "x"})


# -- signals


async def test_a_signal_reaches_the_group(place: Place, pipe: Pipe) -> None:
    async with opened() as children:
        code = "trap 'wait; exit 4' TERM; sh -c 'echo ready; exec sleep 60' & wait"
        child = await place.start(children, shell(code), pipe.path)
        await pipe.says(b"ready")
        child.signal(signal.SIGTERM)
        # The shell would wait for its own child, if that had not had the signal as well.
        assert await child.wait() == 4


async def test_a_child_that_ignores_sigterm_can_be_killed(place: Place, pipe: Pipe) -> None:
    async with opened() as children:
        code = "trap '' TERM; echo ready; while :; do sleep 60; done"
        child = await place.start(children, shell(code), pipe.path)
        await pipe.says(b"ready")
        child.signal(signal.SIGTERM)
        child.kill()
        assert await child.wait() == -9


async def test_a_signal_for_a_child_that_has_exited_does_nothing(place: Place) -> None:
    async with opened() as children:
        child = await place.start(children, ["true"])
        assert await child.wait() == 0
        child.signal(signal.SIGTERM)
        child.kill()
        assert await place.run(children, ["true"]) == 0
    child.kill()


# -- what a child leaves behind


@pytest.mark.parametrize("group", ["", "os.setpgid(process, process)"], ids=["same", "own"])
async def test_nothing_of_a_session_is_left_when_the_exit_is_told(
    place: Place, pipe: Pipe, group: str
) -> None:
    async with opened() as children:
        # So many that they are not all gone at once.
        child = await place.start(children, python(BACKGROUND.format(100, group)), pipe.path)
        assert await child.wait() == 5
        assert pipe.is_let_go_now()


def test_a_session_lives_on_until_its_killed_processes_are_gone(pipe: Pipe) -> None:
    code = python(BACKGROUND.format(1, "os.setpgid(process, process)"))
    with (
        pipe.path.open("wb") as log,
        subprocess.Popen(code, start_new_session=True, stdout=log) as leader,
    ):
        log.close()
        os.waitid(os.P_PID, leader.pid, os.WEXITED | os.WNOWAIT)
        # What it has looked at, it kills then.
        assert subreaper.kill_sessions({leader.pid}) == {leader.pid}
        deadline = time.monotonic() + SECONDS
        while subreaper.kill_sessions({leader.pid}) and time.monotonic() < deadline:
            # Nothing tells of its end, to a process that is not its parent.
            time.sleep(0.01)
        assert pipe.is_let_go_now()


async def test_a_daemon_lives_on_until_the_end(place: Place, pipe: Pipe) -> None:
    async with opened() as children:
        child = await place.start(children, python(DAEMON), pipe.path)
        assert await child.wait() == 0
        await pipe.says(b"daemon")
        assert await place.run(children, ["true"]) == 0
        assert not pipe.is_let_go_now()
    assert pipe.is_let_go_now()


async def test_an_orphan_that_ends_leaves_no_zombie(place: Place, pipe: Pipe) -> None:
    async with opened() as children:
        holder = await place.start(children, ["sleep", "60"])
        worker = parent_of(holder.pid)
        child = await place.start(children, python(DAEMON), pipe.path)
        assert await child.wait() == 0
        await pipe.says(b"daemon")
        (orphan,) = children_of(worker) - {holder.pid}
        os.kill(orphan, signal.SIGKILL)
        await pipe.is_let_go()
        with trio.fail_after(SECONDS):
            # Nothing tells of it.
            while children_of(worker) != {holder.pid}:  # noqa: ASYNC110
                await trio.sleep(0.01)


# -- the end of the context


async def test_leaving_lets_a_child_end_by_itself(place: Place, pipe: Pipe) -> None:
    code = "trap 'echo bye; exit 6' TERM; echo ready; while :; do sleep 0.05; done"
    async with opened() as children:
        child = await place.start(children, shell(code), pipe.path)
        await pipe.says(b"ready")
    assert await child.wait() == 6
    assert pipe.is_let_go_now() or pytest.fail("the child is not gone")


async def test_leaving_ends_a_child_that_is_stopped(place: Place, pipe: Pipe) -> None:
    async with opened() as children:
        child = await place.start(children, shell("echo ready; kill -STOP $$"), pipe.path)
        await pipe.says(b"ready")
    assert await child.wait() == -15


async def test_leaving_kills_what_ignores_sigterm_and_every_descendant(
    place: Place, pipe: Pipe
) -> None:
    ignoring = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    started = trio.current_time()
    async with opened() as children:
        child = await place.start(children, python(ignoring, DAEMON, FOREVER), pipe.path)
        await pipe.says(b"daemon")
    assert pipe.is_let_go_now()
    assert await child.wait() == -9
    # It had its two seconds.
    assert trio.current_time() - started >= 2


async def test_a_tree_of_processes_that_forks_on_is_killed(place: Place, pipe: Pipe) -> None:
    forking = "while os.fork() == 0: os.setsid()"
    async with opened() as children:
        # Each daemon starts one that outlives it: by number alone, none of them could be caught.
        code = python(DAEMON.replace("time.sleep(60)", f"{forking}\n        os._exit(0)"))
        child = await place.start(children, code, pipe.path)
        assert await child.wait() == 0
        await pipe.says(b"daemon")
    assert pipe.is_let_go_now()


async def test_what_the_body_raises_comes_out_bare_and_ends_everything(
    place: Place, pipe: Pipe
) -> None:
    mine = ValueError("mine")
    running: list[Child] = []

    async def body() -> None:
        async with opened() as children:
            running.append(await place.start(children, python(DAEMON, FOREVER), pipe.path))
            await pipe.says(b"daemon")
            raise mine

    with pytest.raises(ValueError, match="mine") as failure:
        await body()
    assert failure.value is mine
    assert mine.__context__ is None
    assert pipe.is_let_go_now()
    assert await running[0].wait() == -15


async def test_a_cancelled_body_ends_everything(place: Place, pipe: Pipe) -> None:
    with trio.CancelScope() as scope:
        async with opened() as children:
            child = await place.start(children, python(DAEMON, FOREVER), pipe.path)
            await pipe.says(b"daemon")
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert pipe.is_let_go_now()
    assert await child.wait() == -15


async def test_nothing_can_be_started_after_the_end(place: Place) -> None:
    async with opened() as children:
        pass
    with pytest.raises(ChildrenLost, match="the run has ended"):
        await place.start(children, ["true"])


async def test_a_cancelled_start_leaves_nothing_running(
    place: Place, pipe: Pipe, closed_pipe: Pipe
) -> None:
    async with opened() as children:
        async with trio.open_nursery() as nursery:
            # It waits for someone to read its log.
            nursery.start_soon(place.start, children, ["sleep", "60"], closed_pipe.path)
            await wait_all_tasks_blocked()
            # And the others do not wait for it.
            assert await place.run(children, ["true"]) == 0
            nursery.cancel_scope.cancel()
        closed_pipe.open()
        await closed_pipe.is_let_go()


async def test_leaving_ends_a_start_too(
    nursery: trio.Nursery, place: Place, closed_pipe: Pipe
) -> None:
    started: list[Child] = []
    returned = trio.Event()

    async def start(children: Children) -> None:
        started.append(await place.start(children, ["sleep", "60"], closed_pipe.path))
        returned.set()

    async with opened() as children:
        nursery.start_soon(start, children)
        assert await place.run(children, ["true"]) == 0
    await returned.wait()
    assert await started[0].wait() == -9


# -- the death of either side

RUN = """
import subprocess, sys, trio
from iterum_sidecar.local.processes import open_children

async def run(command, directory, log):
    async with open_children() as children:
        await children.start(command, environment={}, directory=directory, log=log)
        # A child of the run's own, which must not keep the line open.
        own = subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL)
        print(own.pid, flush=True)
        await trio.sleep_forever()

trio.run(run, sys.argv[3:], sys.argv[1], sys.argv[2])
"""


@contextmanager
def running(arguments: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run a run, and its own child of which it tells."""
    with ExitStack() as stack:
        command = [sys.executable, "-c", RUN, *arguments]
        run = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        stack.callback(run.kill)
        assert run.stdout is not None
        own = int(run.stdout.readline())
        stack.callback(os.kill, own, signal.SIGKILL)
        yield run, own


@pytest.mark.parametrize(
    "before",
    ["", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"],
    ids=["ends at SIGTERM", "ignores SIGTERM"],
)
async def test_nothing_outlives_a_run_that_is_killed(place: Place, pipe: Pipe, before: str) -> None:
    step = python(before, DAEMON, FOREVER)
    with running([str(place.path), str(pipe.path), *step]) as (run, own):
        await pipe.says(b"daemon")
        assert not pipe.is_let_go_now()
        run.kill()
        await pipe.is_let_go()
        os.kill(own, 0)


@pytest.mark.parametrize("victim", ["worker", "keeper"])
async def test_nothing_outlives_the_subreaper_and_everyone_learns_of_it(
    place: Place, pipe: Pipe, closed_pipe: Pipe, victim: str
) -> None:
    lost: list[str] = []

    async def wait() -> None:
        with pytest.raises(ChildrenLost, match="was killed or has failed"):
            await child.wait()
        lost.append("wait")

    async def start() -> None:
        with pytest.raises(ChildrenLost, match="was killed or has failed"):
            await place.start(children, ["true"], closed_pipe.path)
        lost.append("start")

    async with opened() as children:
        child = await place.start(children, python(DAEMON, FOREVER), pipe.path)
        await pipe.says(b"daemon")
        worker = parent_of(child.pid)
        async with trio.open_nursery() as nursery:
            for task in (wait, wait, start):
                nursery.start_soon(task)
            await wait_all_tasks_blocked()
            os.kill(worker if victim == "worker" else parent_of(worker), signal.SIGKILL)
        assert sorted(lost) == ["start", "wait", "wait"]
        # Whoever is told of the loss finds that nothing is left.
        assert pipe.is_let_go_now()
        with pytest.raises(ChildrenLost):
            await child.wait()
        with pytest.raises(ChildrenLost):
            await place.start(children, ["true"])
        child.kill()


async def test_a_child_dies_even_if_both_its_parents_are_killed_at_once(
    place: Place, pipe: Pipe
) -> None:
    async with opened() as children:
        child = await place.start(children, ["sleep", "60"], pipe.path)
        worker = parent_of(child.pid)
        keeper = parent_of(worker)
        # Stopped, it cannot help.
        os.kill(keeper, signal.SIGSTOP)
        os.kill(worker, signal.SIGKILL)
        await pipe.is_let_go()
        os.kill(keeper, signal.SIGKILL)
        with pytest.raises(ChildrenLost):
            await child.wait()


# -- the line


async def test_a_run_that_does_not_read_hinders_nothing(
    line: socket.socket, place: Place, pipe: Pipe
) -> None:
    for number in range(100):
        line.sendall(request(number, ["/no/such/command"], place.log))
    line.sendall(request(100, ["/bin/sh", "-c", "echo served; exec sleep 60"], pipe.path))
    await pipe.says(b"served")
    reader = FrameReader()
    answers: list[bytes] = []
    while len(answers) < 101:
        answers += reader.feed(line.recv(4096))
    told = sorted((answer.split()[:2] for answer in answers), key=lambda words: int(words[1]))
    assert told == [*([b"failed", b"%d" % n] for n in range(100)), [b"started", b"100"]]


async def test_everything_ends_with_a_line_whose_answers_no_one_reads(
    line: socket.socket, place: Place, pipe: Pipe
) -> None:
    for number in range(100):
        line.sendall(request(number, ["/no/such/command"], place.log))
    line.sendall(request(100, python(DAEMON, FOREVER), pipe.path))
    await pipe.says(b"daemon")
    line.shutdown(socket.SHUT_WR)
    await pipe.is_let_go()


async def test_a_request_may_come_in_pieces(line: socket.socket, place: Place, pipe: Pipe) -> None:
    for byte in request(1, ["/bin/sh", "-c", "echo served"], pipe.path):
        line.sendall(bytes([byte]))
    await pipe.says(b"served")


# -- the end of a log


def test_the_last_lines_of_a_file(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    assert last_lines(log) == [f"line {number}" for number in range(80, 100)]
    assert last_lines(log, count=2) == ["line 98", "line 99"]
    assert last_lines(log, count=0) == []
    assert len(last_lines(log, count=1000)) == 100


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"no end", ["no end"]),
        (b"a\n\nb\n", ["a", "", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b" 1%\r 2%\rdone\n", [" 1%", " 2%", "done"]),
        (b"a\tb\xff\xc3\xa9\n", ["a\tb\ufffdé"]),
        (b"\x1b[31mred\x07\x00\x7f\n", [r"\x1b[31mred\x07\x00\x7f"]),
        (
            "\x9b2J\u202eevil\u2028\u2066\x0b\x85".encode(),
            [r"\x9b2J\u202eevil\u2028\u2066\x0b\x85"],
        ),
    ],
)
def test_what_is_written_is_shown_without_harm(
    tmp_path: Path, written: bytes, lines: list[str]
) -> None:
    (tmp_path / "log").write_bytes(written)
    assert last_lines(tmp_path / "log") == lines


def test_only_the_end_of_a_large_file_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write("\nlästly\n".encode())
    assert last_lines(log, count=1) == ["lästly"]
    assert last_lines(log, most_bytes=9) == ["lästly"]
    # A line that is cut: it does not begin within a character.
    assert last_lines(log, most_bytes=6) == ["…stly"]
    assert last_lines(log, most_bytes=0) == []


def test_a_file_that_does_not_exist_has_no_lines_and_one_that_cannot_be_read_is_an_error(
    tmp_path: Path,
) -> None:
    assert last_lines(tmp_path / "none") == []
    with pytest.raises(IsADirectoryError):
        last_lines(tmp_path)


def test_the_subreaper_imports_only_what_it_must() -> None:
    # Without a line, it ends at once.
    told = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "importtime", subreaper.__file__],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=True,
        text=True,
    ).stderr
    imported = {line.rpartition("|")[2].strip() for line in told.splitlines()}
    assert {"os", "select", "signal"} <= imported
    assert not {"contextlib", "json", "socket", "subprocess", "trio", "typing"} & imported
