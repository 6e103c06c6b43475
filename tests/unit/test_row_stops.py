"""A stop of the sidecar alone: too late to leave anything undone, or while the transformation waits for the next sidecar."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from iterum_sidecar.exit_codes import ServiceLost
from iterum_sidecar.stores.port import StoreUnavailable
from iterum_sidecar.telemetry.tally import Tally
from tests.unit.row import INPUT, FinishedOnRequest, Row, StepConnection, temporary_row
from tests.unit.row_with_faults import FaultyStore, finished, id_of, sidecar_with

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from iterum_sidecar.sidecar import Sidecar

Clock = trio.testing.MockClock


class GatedStore(FaultyStore):
    """A store that takes nothing before its gate is open."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked = trio.Event()
        self.gate = trio.Event()

    async def put(self, bucket: str, key: str, file: int, size: int) -> None:
        self.asked.set()
        await self.gate.wait()
        await super().put(bucket, key, file, size)


async def gather(connection: StepConnection) -> None:
    """Make one result of everything when the kill message has come."""
    batch = [id_of(fragment) async for fragment in connection.fragments()]
    if not connection.ended_by_kill:
        return
    await connection.result(batch, "batch", b"x")
    for own in batch:
        await connection.done(own)
    await connection.kill()


# -- after the kill message


async def test_a_stop_after_the_transformation_has_ended_does_not_undo_the_end(
    autojump_clock: Clock,
) -> None:
    """The last batch of a step that gathers is stored after the transformation, and so its pod, has been stopped."""
    async with temporary_row(SIDECAR_KILL_ON_ERROR="false") as row:
        await row.put(5)
        store = GatedStore(row.store_root)
        sidecar = sidecar_with(row, finished(), store=store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sidecar.run)
            await row.run_step(gather)
            await store.asked.wait()
            sidecar.drain()
            await trio.testing.wait_all_tasks_blocked()
            assert row.outputs() == []
            store.gate.set()
        assert sidecar.is_done
        (output,) = row.outputs()
        assert len(output["metadata"]["predecessors"]) == 5
        assert row.broker.messages(INPUT) == []
        row.check_acknowledgements()


async def test_a_stop_after_a_kill_that_was_not_answered_leaves_the_step_undone(
    autojump_clock: Clock,
) -> None:
    async def die_of_it(connection: StepConnection) -> None:
        async for _ in connection.fragments():
            pass

    async with temporary_row() as row:
        await row.put(5)
        sidecar = sidecar_with(row, finished())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sidecar.run)
            await row.run_step(die_of_it)
            sidecar.drain()
        assert not sidecar.is_done
        assert len(row.broker.messages(INPUT)) == 5


async def test_without_a_stop_the_step_is_done(autojump_clock: Clock) -> None:
    async with temporary_row(SIDECAR_KILL_ON_ERROR="false") as row:
        await row.put(5)
        sidecar = sidecar_with(row, finished())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, gather)
            await sidecar.run()
        assert sidecar.is_done
        assert len(row.outputs()) == 1


# -- before it, with a transformation that is to wait for the next sidecar


async def test_a_transformation_that_outlives_the_sidecar_is_not_told_that_nothing_more_comes(
    autojump_clock: Clock,
) -> None:
    """It would end with 0, and its pod would count as done. What it has in hand is finished; the next sidecar does the rest."""
    kills: list[bool] = []

    async def slow(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            await trio.sleep(1)
            await connection.result([id_of(fragment)], id_of(fragment), b"x")
            await connection.done(id_of(fragment))
        kills.append(connection.ended_by_kill)
        if connection.ended_by_kill:
            await connection.kill()

    async with temporary_row(SIDECAR_KILL_ON_ERROR="false") as row:
        await row.put(5)
        first = sidecar_with(row, FinishedOnRequest())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, slow)
            nursery.start_soon(first.run)
            await trio.sleep(1.5)
            first.drain()
        assert not first.is_done
        assert kills == [False]
        assert len(row.outputs()) == 2
        assert len(row.broker.messages(INPUT)) == 3
        assert row.tally.struck == 0
        row.tally = Tally()
        second = sidecar_with(row, finished())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, slow)
            nursery.start_soon(second.run)
        assert kills == [False, True]
        assert len({output["metadata"]["fragment_id"] for output in row.outputs()}) == 5
        assert len(row.outputs()) == 5


async def test_what_such_a_transformation_gathers_goes_back(autojump_clock: Clock) -> None:
    async with temporary_row(SIDECAR_KILL_ON_ERROR="false") as row:
        await row.put(5)
        sidecar = sidecar_with(row, FinishedOnRequest())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, gather)
            nursery.start_soon(sidecar.run)
            await trio.sleep(10)
            assert sidecar.fragments_out == 5
            began = trio.current_time()
            sidecar.drain()
        assert trio.current_time() - began < 5
        assert not sidecar.is_done
        assert row.outputs() == []
        assert len(row.broker.messages(INPUT)) == 5
        assert row.tally.struck == 0


class DownStore(FaultyStore):
    async def ensure_bucket(self, bucket: str) -> None:
        await trio.lowlevel.checkpoint()
        raise StoreUnavailable("it is down", bucket=bucket)


def down(row: Row) -> Sidecar:
    return sidecar_with(
        row, FinishedOnRequest(), store=DownStore(row.store_root), service_timeout=3
    )


def waiting_for_its_broker(row: Row) -> Sidecar:
    return sidecar_with(row, FinishedOnRequest(), broker_is_away=True)


def at_work(row: Row) -> Sidecar:
    return sidecar_with(row, FinishedOnRequest())


@pytest.mark.parametrize(
    ("make", "end"),
    [(down, None), (waiting_for_its_broker, "drain"), (at_work, "drain"), (at_work, "abort")],
)
async def test_it_hears_nothing_at_any_end_but_the_step_s(
    autojump_clock: Clock, make: Callable[[Row], Sidecar], end: str | None
) -> None:
    heard: list[bytes] = []

    async def listen(connection: StepConnection) -> None:
        heard.append(await connection.inputs.receive_some())

    async with temporary_row(SIDECAR_KILL_ON_ERROR="false") as row:
        sidecar = make(row)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, listen)
            nursery.start_soon(_end_later, sidecar, end)
            try:
                await sidecar.run()
            except* ServiceLost:
                pass
        assert heard == [b""]
        assert not sidecar.is_done


async def _end_later(sidecar: Sidecar, end: str | None) -> None:
    await trio.sleep(2)
    if end is not None:
        getattr(sidecar, end)()
