from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from iterum_sidecar.local.processes import ChildrenLost
from tests.unit.local.processes.places import (
    DAEMON,
    FOREVER,
    Pipe,
    Place,
    opened,
    parent_of,
    python,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


def test_a_child_whose_parent_dies_before_it_can_be_told_of_that_becomes_no_program(
    tmp_path: Path,
) -> None:
    # What is forked asks to be killed with its parent; here that is another one already.
    code = "from iterum_sidecar.local.subreaper import become; become(FIELDS, 2, PARENT)"
    fields = [b"/", os.fsencode(tmp_path / "log"), b"1", b"/bin/true"]
    code = code.replace("FIELDS", repr(fields)).replace("PARENT", str(os.getpid() + 1))
    ended = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=False)
    assert (ended.returncode, ended.stderr) == (127, b"")
    assert not (tmp_path / "log").exists()
