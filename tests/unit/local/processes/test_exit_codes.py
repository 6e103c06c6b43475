from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.unit.local.processes.places import Pipe, Place, opened, shell

if TYPE_CHECKING:
    from iterum_sidecar.local.processes import Child, Children


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
