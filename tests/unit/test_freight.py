"""Long descriptions wait for each other, and short ones for nobody."""

from __future__ import annotations

import gc
from collections import Counter
from typing import TYPE_CHECKING, Any

import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from iterum_sidecar.entries import Output
from iterum_sidecar.freight import LONG, Freight
from tests.unit.row import DEAD, FinishedOnRequest, StepConnection, copy_step, temporary_row
from tests.unit.row_with_faults import FaultyStore, finished, id_of, sidecar_with

if TYPE_CHECKING:
    from pathlib import Path

    from iterum_sidecar.cargo import FragmentOutput

Clock = trio.testing.MockClock
MIB = 1024 * 1024


def output() -> FragmentOutput:
    return Output[Any, Any]("id", [])


async def test_what_does_not_fit_waits_until_there_is_room() -> None:
    freight = Freight(MIB)
    assert freight.limit == 4 * MIB
    outputs = [output() for _ in range(5)]
    on: list[int] = []

    async def let_on(number: int) -> None:
        await freight.let_on(outputs[number], MIB)
        on.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(let_on, number)
        await wait_all_tasks_blocked()
        assert (len(on), freight.held) == (4, 4 * MIB)
        with trio.fail_after(10):
            await freight.let_on(output(), LONG - 1)
        freight.arrived(outputs[on[0]])
        freight.arrived(outputs[on[0]])
        await wait_all_tasks_blocked()
        assert (len(on), freight.held) == (5, 4 * MIB)
    for each in outputs:
        freight.arrived(each)
    assert freight.held == 0


async def test_one_is_always_let_on_and_what_was_never_let_on_gives_nothing_back() -> None:
    freight = Freight(1024)
    with trio.fail_after(10):
        await freight.let_on(first := output(), MIB)
    freight.arrived(output())
    assert freight.held == MIB
    freight.arrived(first)
    assert freight.held == 0


class SlowStore(FaultyStore):
    """Notes how much is on its way at each object that it is given."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.freight: Freight | None = None
        self.seen: list[int] = []

    async def put(self, bucket: str, key: str, file: int, size: int) -> None:
        await trio.sleep(1)
        assert self.freight is not None
        self.seen.append(self.freight.held)
        await super().put(bucket, key, file, size)


async def test_the_row_holds_no_more_than_that_and_brings_all_through(
    autojump_clock: Clock,
) -> None:
    limit = 256 * 1024

    async def verbose(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            own = id_of(fragment)
            for number in range(40):
                size = limit - 1000 if number % 3 else 10
                await connection.result([own], f"{number}", b"x", custom="x" * size)
            await connection.done(own)
        await connection.kill()

    async with temporary_row(SIDECAR_FRAME_LIMIT=str(limit)) as row:
        await row.put(1)
        store = SlowStore(row.store_root)
        sidecar = sidecar_with(row, finished(), store=store)
        store.freight = sidecar._freight
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, verbose)
            await sidecar.run()
        assert len(row.outputs()) == 40
        assert row.broker.messages(DEAD) == []
        assert 3 * limit < max(store.seen) <= 4 * limit
        assert sidecar._freight.held == 0


async def test_a_refused_result_makes_room_too(autojump_clock: Clock) -> None:
    async def changing(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            own = id_of(fragment)
            for number in range(20):
                await connection.result([own], f"{number}", b"x", custom="x" * 100_000)
                await trio.sleep(0.1)
                (connection.volume / "output" / f"{number}").write_bytes(b"changed")
            await connection.done(own)
        await connection.kill()

    async with temporary_row(SIDECAR_FRAME_LIMIT="110000") as row:
        await row.put(1)
        store = SlowStore(row.store_root)
        sidecar = sidecar_with(row, finished(), store=store)
        store.freight = sidecar._freight
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, changing)
            await sidecar.run()
        assert 0 < row.tally.refused_results <= 20
        assert sidecar._freight.held == 0


async def test_workers_that_wait_hold_nothing_of_what_they_had_last(autojump_clock: Clock) -> None:
    """Sixteen that put a description of 15 MiB last would otherwise hold half a gigabyte."""
    async with temporary_row() as row:
        await row.put(60)
        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, copy_step)
            nursery.start_soon(sidecar.run)
            await trio.sleep(10)
            assert row.tally.outputs == 60
            gc.collect()
            held = Counter(type(each).__name__ for each in gc.get_objects())
            assert held["OutputCargo"] == 0
            # The last of those that handle one after the other.
            assert held["Parcel"] <= 2
            assert held["FragmentCargo"] <= 4
            upstream.finished.set()
