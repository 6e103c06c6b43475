from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest
import trio

from iterum_sidecar.local import subreaper
from tests.unit.local.processes.places import (
    DAEMON,
    SECONDS,
    Pipe,
    Place,
    children_of,
    opened,
    parent_of,
    python,
)

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
