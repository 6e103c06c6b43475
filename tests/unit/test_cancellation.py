"""The whole row, cut off at every checkpoint in turn, and gone on with by a second life on the same broker, store and volume."""

from __future__ import annotations

import json

import pytest
import trio
import trio.testing

from tests.unit.row import INPUT, FinishedOnRequest, Row, StepConnection, temporary_row

FRAGMENTS = 3


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when so many task steps have been taken since it was armed."""

    def __init__(self, scope: trio.CancelScope, steps: int) -> None:
        self._scope = scope
        self._left = steps
        self.reached = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self.reached = True
            self._scope.cancel("the test's moment")


async def one_of_each(connection: StepConnection) -> None:
    """Two results for the first fragment, a refused one for the second, and one for each of the rest."""
    async for fragment in connection.fragments():
        own = fragment["metadata"]["fragment_id"]
        if int(own) == 1:
            await connection.send_result([own], [("x", "/etc/passwd")])
        else:
            for part in range(results_of(own)):
                await connection.result([own], f"{int(own)}-{part}", b"x" * 100)
        await connection.done(own)
    await connection.kill()


def results_of(own: str) -> int:
    return 2 if int(own) == 0 else 1


async def cut_off(row: Row, steps: int) -> bool:
    """Run a sidecar and its transformation, cut off after so many steps; returns whether it came to that."""
    await row.put(FRAGMENTS)
    row.broker.put(INPUT, b"not JSON")
    upstream = FinishedOnRequest()
    upstream.finished.set()
    with trio.CancelScope() as scope:
        instrument = CancelAtStep(scope, steps)
        trio.lowlevel.add_instrument(instrument)
        try:
            with trio.fail_after(100):
                await row.run(one_of_each, upstream=upstream)
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return instrument.reached


def check_nothing_is_lost(row: Row) -> None:
    """Every fragment is either in its queue, or everything that came of it is safe."""
    waiting = set()
    for message in row.broker.messages(INPUT):
        if message.body != b"not JSON":
            waiting.add(int(json.loads(message.body)["metadata"]["fragment_id"]))
    made = {file["name"] for output in row.outputs() for file in output["files"]}
    for number, names in ((0, {"0-0", "0-1"}), (2, {"2-0"})):
        assert number in waiting or names <= made
    row.check_acknowledgements(results_of)


def check_everything_is_there_once(row: Row) -> None:
    identities: dict[str, set[str]] = {}
    for output in row.outputs():
        identities.setdefault(output["files"][0]["name"], set()).add(
            output["metadata"]["fragment_id"]
        )
    assert sorted(identities) == ["0-0", "0-1", "2-0"]
    assert all(len(each) == 1 for each in identities.values()), "one result under two identities"
    assert row.broker.messages(INPUT) == []
    assert {message.body for message in row.broker.messages("in-dead-letter")} >= {b"not JSON"}


@pytest.mark.parametrize("offset", range(10))
async def test_cut_off_at_every_checkpoint(
    offset: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Nothing is acknowledged early, no file is left, nothing hangs, and a second life finishes the work."""
    steps = 1 + offset
    cut = 0
    while True:
        async with temporary_row() as row:
            if not await cut_off(row, steps):
                break
            cut += 1
            check_nothing_is_lost(row)
            assert [name for name in row.left_on_volume() if name.startswith(".")] == []
            assert [name for name in row.left_on_volume() if name.endswith(".sock")] == []
            await row.run(one_of_each)
            check_everything_is_there_once(row)
            row.check_acknowledgements(results_of)
        steps += 10
    assert cut > 15
