from __future__ import annotations

import json
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

from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.framing import encode_frame
from iterum_sidecar.local.own_fragmenter import FragmenterFailed, Grouped, run_own_fragmenter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from trio.testing import MockClock

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


# -- fragmenters that work


async def test_a_fragmenter_written_against_pyterum_runs_unchanged(tmp_path: Path) -> None:
    starter = Starter(PYTERUM, tmp_path)
    groups = await run(tmp_path, starter, config=json.dumps({"size": 2}))
    assert groups == [
        Grouped(("a.jpg", "b.jpg"), b'{"start": 0}'),
        Grouped(("c/d.jpg",), b'{"start": 2}'),
    ]
    assert starter.environment == {
        "DATA_VOLUME_PATH": f"{tmp_path}/v",
        "FRAGMENTER_INPUT": "tts.sock",
        "FRAGMENTER_OUTPUT": "fts.sock",
        "ITERUM_CONFIG": '{"size": 2}',
        "ITERUM_CONFIG_PATH": "config",
        "ITERUM_NAME": "pipeline-fragmenter",
        "PIPELINE_HASH": "pipeline",
    }


async def test_two_hundred_thousand_files_in_one_group_pass_through_pyterum(tmp_path: Path) -> None:
    names = [f"photos/été/{number:06}.jpg" for number in range(200_000)]
    (group,) = await run(
        tmp_path,
        Starter(PYTERUM, tmp_path),
        names,
        [f"{number:064x}" for number in range(200_000)],
        config=json.dumps({"size": 1_000_000}),
    )
    assert group.names == tuple(names)


async def test_the_list_is_sent_as_the_contract_has_it_and_a_kill_behind_it(
    tmp_path: Path,
) -> None:
    program = """
        come()
        assert read(source) == KILL
        send(target, {"files": files[::-1], "metadata": {"files": files}})
        send(target, {"files": files[:1]})
        send(target, KILL)
    """
    first, second = await run(tmp_path, program)
    assert (first.names, second.names) == (tuple(NAMES[::-1]), ("a.jpg",))
    pairs = zip(NAMES, HASHES, strict=True)
    assert json.loads(first.custom or "") == {"files": [f"{name}/{each}" for name, each in pairs]}


async def test_no_files_are_an_empty_list(tmp_path: Path) -> None:
    assert await run(tmp_path, "come(); assert files == []; send(target, KILL)", [], []) == []


async def test_metadata_that_says_nothing_is_no_custom_metadata(tmp_path: Path) -> None:
    program = """
        come()
        for metadata in ({}, None, {"a": "é"}):
            send(target, {"files": files[:1], "metadata": metadata})
        target.sendall(frame(b'{"metadata": { }, "files": [%s]}' % json.dumps(files[1]).encode()))
        send(target, {"files": files[2:], "more": 1})
        send(target, KILL)
    """
    groups = await run(tmp_path, program)
    assert [group.custom for group in groups] == [None, None, b'{"a": "\\u00e9"}', None, None]


async def test_groups_that_were_sent_just_before_the_end_are_all_read(tmp_path: Path) -> None:
    program = """
        come()
        other = connect("FRAGMENTER_OUTPUT")
        for _ in range(400):
            send(target, {"files": files[:1]})
            send(other, {"files": files[1:2]})
        send(target, KILL)
        os._exit(0)
    """
    assert len(await run(tmp_path, program)) == 800


async def test_a_fragmenter_that_answers_before_it_reads_is_not_held_up(tmp_path: Path) -> None:
    names = [f"{number:06}" for number in range(30_000)]
    program = f"""
        target = connect("FRAGMENTER_OUTPUT")
        for number in range(30_000):
            send(target, {{"files": ["%06d/{"1" * 64}" % number]}})
        source = connect("FRAGMENTER_INPUT")
        files = read(source)["data_files"]
        send(target, KILL)
    """
    assert len(await run(tmp_path, program, names, ["1" * 64] * 30_000)) == 30_000


async def test_the_list_is_for_the_first_connection_that_reads_it(tmp_path: Path) -> None:
    program = """
        connect("FRAGMENTER_INPUT").close()
        half = connect("FRAGMENTER_INPUT")
        half.recv(2)
        half.close()
        come()
        assert read(connect("FRAGMENTER_INPUT")) == KILL
        send(target, {"files": files})
        send(target, KILL)
    """
    assert await run(tmp_path, program) == [Grouped(tuple(NAMES), None)]


# -- fragmenters that do not


@pytest.mark.parametrize(
    ("group", "told"),
    [
        ('["x.jpg/%s"]' % ("1" * 64), "group 2, files[0] of the fragmenter is x.jpg/1"),
        ('[files[0], "b.jpg/%s"]' % ("1" * 64), "group 2, files[1] of the fragmenter is b.jpg/1"),
        ('["a.jpg"]', "is a.jpg, which is no file of the list; that is the name alone"),
        ('["\\x1b[2J/"]', "is \\x1b[2J/, which is no file of the list; it must send files from"),
        ("[]", "group 2 of the fragmenter has no file; it must send groups of at least one"),
        ("files + files[1:2]", "twice, as files[1] and files[3]; in one group it may be once"),
    ],
)
async def test_a_group_that_is_none_of_the_list_is_refused(
    tmp_path: Path, group: str, told: str
) -> None:
    program = f"""
        come()
        send(target, {{"files": files[:1]}})
        send(target, {{"files": {group}}})
        send(target, KILL)
        time.sleep(100)
    """
    assert told in await failure_of(tmp_path, program)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ('frame(b"{")', "message 2 of the fragmenter cannot be read: Input data was truncated"),
        ('frame(b"[]")', "Expected `object`, got `array`; it must send"),
        ('frame(b\'{"status":"done"}\')', "neither a group of files nor the kill message"),
        ("frame(b'{\"files\":[1]}')", "Expected `str`, got `int` - at `$.files[0]`"),
        ('frame(b\'{"files":"a"}\')', "Expected `array`, got `str` - at `$.files`"),
        ('frame(b\'{"files":["a"],"metadata":[1]}\')', "Expected `object | null` - at `$.meta"),
        ('frame(b\'{"files":["a"],"metadata":{"\\xff":1}}\')', "can't decode byte 0xff"),
        ("frame(b'[' * 100_000)", "message 2 of the fragmenter cannot be read"),
        ('b"HTTP/1.1 200 OK"', "message 2 of the fragmenter cannot be read: a frame of 1,347,"),
    ],
)
async def test_what_cannot_be_read_is_refused(tmp_path: Path, sent: str, told: str) -> None:
    program = f"""
        come()
        target.sendall(frame(json.dumps({{"files": files}}).encode()) + {sent})
        time.sleep(100)
    """
    assert told in await failure_of(tmp_path, program)


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("sys.exit(3)", "ended with exit code 3 before it had said that it was done; its log says"),
        ("os.kill(os.getpid(), 9)", "was ended by SIGKILL before it had said that it was done"),
        ("pass", "exit code 0 before it had said that it was done; it must send {"),
        ("send(target, KILL); sys.exit(4)", "exit code 4 after it had said that it was done"),
        ("target.sendall(b'x'); sys.exit(5)", "ended with exit code 5 before it had said"),
        (
            "connect('FRAGMENTER_OUTPUT').sendall(b'x'); send(target, KILL)",
            "closed a connection in the middle of a message",
        ),
        (
            "send(target, KILL); send(target, {'files': files}); time.sleep(100)",
            "sent a group after it had said that it was done",
        ),
    ],
)
async def test_an_end_that_is_none_is_told(tmp_path: Path, end: str, told: str) -> None:
    program = f"come(); send(target, {{'files': files}}); {end}"
    assert told in await failure_of(tmp_path, program)


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
        """Act: sleep so many seconds, connect to a socket, or send a message on the last one."""
        with self.scope, ExitStack() as connections:
            for act in self.acts:
                if isinstance(act, float):
                    await trio.sleep(act)
                elif act.endswith(".sock"):
                    connection = connections.enter_context(trio.socket.socket(socket.AF_UNIX))
                    await connection.connect(f"{self.volume}/{act}")
                else:
                    await connection.send(encode_frame(act.encode()))
            return 0
        return -signal.SIGKILL

    def kill(self) -> None:
        self.scope.cancel("killed")


GROUP = f'{{"files":["a.jpg/{HASHES[0]}"]}}'
KILL = '{"status":"complete"}'


async def test_one_that_never_connects_is_told(tmp_path: Path, autojump_clock: MockClock) -> None:
    began = trio.current_time()
    with pytest.raises(FragmenterFailed, match="did not connect in 30 s; it must open the sockets"):
        await run(tmp_path, Actor(31.0, "tts.sock", "fts.sock", GROUP, KILL))
    assert trio.current_time() - began == 30


async def test_one_that_does_not_end_is_told(tmp_path: Path, autojump_clock: MockClock) -> None:
    began = trio.current_time()
    with pytest.raises(FragmenterFailed, match="did not end in 30 s after it had said that it was"):
        await run(tmp_path, Actor("tts.sock", "fts.sock", GROUP, 100.0, KILL, 31.0))
    assert trio.current_time() - began == 130


async def test_one_that_thinks_for_long_is_waited_for(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    actor = Actor(29.0, "tts.sock", 86_400.0, "fts.sock", GROUP, 86_400.0, KILL, 29.0)
    assert await run(tmp_path, actor) == [Grouped(("a.jpg",), None)]


async def test_others_may_come_and_go_on_when_one_connection_is_done(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    actor = Actor("fts.sock", GROUP, KILL, 20.0, "fts.sock", 86_400.0, GROUP, KILL, 29.0)
    assert len(await run(tmp_path, actor)) == 2


async def test_cancelling_ends_the_process(tmp_path: Path) -> None:
    starter = Starter(PRELUDE + "come(); time.sleep(1000)", tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, tmp_path, starter)
        await starter.started.wait()
        nursery.cancel_scope.cancel("the test wants it to end")
    assert starter.children[0].returncode == -signal.SIGKILL


async def test_what_starting_and_waiting_raise_comes_bare(tmp_path: Path) -> None:
    async def start(_environment: dict[str, str]) -> Child:
        raise FileNotFoundError("no such program")

    with pytest.raises(FileNotFoundError, match="no such program"):
        await run(tmp_path, start)

    class Lost(Actor):
        async def wait(self) -> int:
            raise ChildProcessError("nobody knows")

    lost = Lost()
    with pytest.raises(ChildProcessError, match="nobody knows"):
        await run(tmp_path, lost)
    assert lost.scope.cancel_called


async def test_a_volume_where_no_socket_can_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "v/fts.sock").mkdir(parents=True)
    starter = Starter(PYTERUM, tmp_path)
    with pytest.raises(VolumeUnusable, match=r"fts.sock is a directory"):
        await run(tmp_path, starter)
    assert not starter.children
