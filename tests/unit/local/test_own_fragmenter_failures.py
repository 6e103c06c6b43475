from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.local.own_fragmenter import FragmenterFailed
from tests.unit.local.fragmenters import (
    CLOSE,
    GROUP,
    KILL,
    PRELUDE,
    PYTERUM,
    Actor,
    Starter,
    failure_of,
    run,
)

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from iterum_sidecar.local.own_fragmenter import Child

# Its output is held open by what it has left behind, which is not waited for.
HELD = """
other = connect("FRAGMENTER_OUTPUT")
other.sendall(b"x")
if os.fork() == 0:
    os.setsid()
    target.recv(1)
    os._exit(0)
send(target, KILL)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("group", "told"),
    [
        ('["x.jpg/%s"]' % ("1" * 64), "group 2, files[0] of the fragmenter is x.jpg/1"),
        ('[files[0], "b.jpg/%s"]' % ("1" * 64), "group 2, files[1] of the fragmenter is b.jpg/1"),
        ('["a.jpg"]', "is a.jpg, which is no file of the list; that is the name alone"),
        ('["\\x1b[2J/"]', "is \\x1b[2J/, which is no file of the list; it must send files from"),
        ('["../../b.jpg/%s"]' % ("2" * 64), "is ../../b.jpg/2222"),
        (
            '["/etc/passwd"]',
            "is /etc/passwd, which is no file of the list; it must send files from",
        ),
        ('["b\\\\n.jpg/1"]', r"is b\n.jpg/1, which is no file of the list"),
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
        ('frame(b"")', "message 2 of the fragmenter cannot be read: Input data was truncated"),
        ('b"\\xff" * 4', "cannot be read: a frame of 4,294,967,295 bytes was announced, the limit"),
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
        ("target.sendall(b'x'); sys.exit(0)", "exit code 0 before it had said that it was done"),
        ("send(target, KILL); target.sendall(b'x')", "closed a connection in the middle of a"),
        (HELD, "closed a connection in the middle of a message"),
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
    program = f"come()\nsend(target, {{'files': files}})\n{end}"
    assert told in await failure_of(tmp_path, program)


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


async def test_one_that_closes_its_output_and_does_nothing_more_is_told(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    began = trio.current_time()
    actor = Actor("tts.sock", "fts.sock", GROUP, 100.0, CLOSE, 31.0)
    with pytest.raises(
        FragmenterFailed,
        match=r"did not end in 30 s after closing its connection to FRAGMENTER_OUTPUT; it must send",
    ):
        await run(tmp_path, actor)
    assert trio.current_time() - began == 130


async def test_one_that_opens_its_output_again_in_time_may_go_on(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    actor = Actor("fts.sock", GROUP, CLOSE, 29.0, "fts.sock", 86_400.0, GROUP, KILL)
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
