"""Fragmenters of a user's own, as programs and as tasks, and what runs them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.framing import encode_frame
from iterum_sidecar.local.own_fragmenter import FragmenterFailed, Grouped, run_own_fragmenter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from iterum_sidecar.local.own_fragmenter import Child

NAMES = ["a.jpg", "b.jpg", "c/d.jpg"]
HASHES = [letter * 64 for letter in "123"]

# A fragmenter that was written against pyterum, as its users write them.
PYTERUM = """
from pyterum import config
from pyterum.fragmenter import FragmenterInput, FragmenterOutput

if __name__ == "__main__":
    fragmenter_in, fragmenter_out = FragmenterInput(), FragmenterOutput()
    size = config.get("size")
    for message in fragmenter_in.consumer():
        if message is None:
            fragmenter_out.produce_done()
            break
        files = message.data_files
        for start in range(0, len(files), size):
            fragmenter_out.produce({"files": files[start:start + size], "metadata": {"start": start}})
"""

# What the others below have at hand.
PRELUDE = """
import json, os, socket, struct, sys, time
def connect(variable):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.path.join(os.environ["DATA_VOLUME_PATH"], os.environ[variable]))
    return connection
def read(connection):
    size, = struct.unpack("<I", connection.recv(4, socket.MSG_WAITALL))
    return json.loads(connection.recv(size, socket.MSG_WAITALL))
def frame(payload):
    return struct.pack("<I", len(payload)) + payload
def send(connection, message):
    connection.sendall(frame(json.dumps(message).encode()))
def come():
    global source, target, files
    source, target = connect("FRAGMENTER_INPUT"), connect("FRAGMENTER_OUTPUT")
    files = read(source)["data_files"]
KILL = {"status": "complete"}
"""


class Starter:
    """Starts a program in a folder, and keeps what it was."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program = program
        self.folder = folder
        self.children: list[trio.Process] = []
        self.environment: dict[str, str] = {}
        self.started = trio.Event()

    async def __call__(self, environment: dict[str, str]) -> trio.Process:
        self.environment = environment
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", self.program],
            env={**os.environ, **environment},
            cwd=self.folder,
            stderr=subprocess.DEVNULL,
        )
        self.children.append(process)
        self.started.set()
        return self.children[-1]


async def run(
    folder: Path,
    start: Callable[[dict[str, str]], Awaitable[Child]] | str,
    names: Sequence[str] = NAMES,
    hashes: Sequence[str] = HASHES,
    config: str = "{}",
) -> list[Grouped]:
    """Run a fragmenter; a text is a program behind the prelude."""
    volume = folder / "v"
    volume.mkdir(exist_ok=True)
    if isinstance(start, str):
        start = Starter(PRELUDE + textwrap.dedent(start), folder)
    groups = await run_own_fragmenter(
        volume=str(volume),
        names=names,
        hashes=hashes,
        start=start,
        pipeline_hash="pipeline",
        config=config,
    )
    assert os.listdir(volume) == ["config"]
    return groups


async def failure_of(folder: Path, program: str) -> str:
    """Return why it failed; nothing of it is left then."""
    starter = Starter(PRELUDE + textwrap.dedent(program), folder)
    with pytest.raises(FragmenterFailed) as failed:
        await run(folder, starter)
    (child,) = starter.children
    assert child.returncode is not None
    return str(failed.value)


class Actor:
    """A fragmenter that is a task: what it waits for passes at once."""

    pid = 0

    def __init__(self, *acts: str | float) -> None:
        self.acts = acts
        self.scope = trio.CancelScope()

    async def __call__(self, environment: dict[str, str]) -> Actor:
        self.volume = environment["DATA_VOLUME_PATH"]
        return self

    async def wait(self) -> int:
        """Act: sleep so many seconds, connect to a socket, send a message on the last one, or close that."""
        with self.scope, ExitStack() as connections:
            for act in self.acts:
                if isinstance(act, float):
                    await trio.sleep(act)
                elif act.endswith(".sock"):
                    connection = connections.enter_context(trio.socket.socket(socket.AF_UNIX))
                    await connection.connect(f"{self.volume}/{act}")
                elif act == CLOSE:
                    connection.close()
                else:
                    await connection.send(encode_frame(act.encode()))
            return 0
        return -signal.SIGKILL

    def kill(self) -> None:
        self.scope.cancel("killed")


GROUP = f'{{"files":["a.jpg/{HASHES[0]}"]}}'
KILL = '{"status":"complete"}'
CLOSE = ""
