from __future__ import annotations

import signal

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from iterum_sidecar.local.processes import Child, Children, ChildrenLost
from tests.unit.local.processes.places import DAEMON, FOREVER, Pipe, Place, opened, python, shell

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
