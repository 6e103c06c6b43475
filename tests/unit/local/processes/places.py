"""Where the children of a test run, what they are, and how to see when they are gone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import asynccontextmanager, closing, contextmanager
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.framing import FrameReader, encode_frame
from iterum_sidecar.local import subreaper
from iterum_sidecar.local.processes import Child, Children, open_children

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


@contextmanager
def a_line(*program: str) -> Iterator[socket.socket]:
    """The run's end of a line to a subreaper, which can keep little of what is not read.

    `program` is what Python is given, if not the subreaper itself.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    command = [sys.executable, "-I", "-S", *(program or [subreaper.__file__])]
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


def signal_to(number: int, signal: int) -> bytes:
    return encode_frame(b"signal\0%d\0%d" % (number, signal))


def answers(line: socket.socket) -> Iterator[list[bytes]]:
    """What the subreaper says, word by word."""
    reader = FrameReader()
    while data := line.recv(4096):
        yield from (frame.split() for frame in reader.feed(data))


def parent_of(process: int) -> int:
    return next(parent for pid, _, parent, _, _ in subreaper.processes() if pid == process)


def children_of(process: int) -> set[int]:
    return {pid for pid, _, parent, _, _ in subreaper.processes() if parent == process}
