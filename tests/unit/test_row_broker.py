"""The row beside a broker whose connection is lost, and comes back."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from iterum_sidecar.brokers.port import BrokerRefused
from iterum_sidecar.patience import Patience
from iterum_sidecar.sidecar import Sidecar, queues_of
from iterum_sidecar.stores.directory import DirectoryStore
from tests.unit.lossy_connections import World, open_world
from tests.unit.row import DEAD, INPUT, OUTPUT, Row, StepConnection, copy_step, temporary_row
from tests.unit.row_with_faults import finished, id_of, run_while

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from iterum_sidecar.brokers.reconnecting import ReconnectingBroker
    from tests.unit.row import FinishedOnRequest


def sidecar_over(row: Row, world: World, upstream: FinishedOnRequest | None = None) -> Sidecar:
    settings = row.settings()

    @asynccontextmanager
    async def open_broker() -> AsyncIterator[ReconnectingBroker]:
        async with open_world(world) as broker:
            for queue in queues_of(settings):
                await broker.ensure_queue(queue)
            yield broker

    return Sidecar(
        settings,
        open_broker=open_broker,
        store=DirectoryStore(row.store_root),
        store_patience=Patience("the store", 0),
        upstream=lambda _ledger: upstream or finished(),
        tally=row.tally,
    )


async def until(condition: Callable[[], object]) -> None:
    """Return when the condition holds, looked at ten times a second."""
    while True:
        if condition():
            return
        await trio.sleep(0.1)


def check_end(row: Row, count: int) -> None:
    """All of it has come out, once or again under the same ID, and nothing is left."""
    assert len(row.contents()) == count
    assert len({output["metadata"]["fragment_id"] for output in row.outputs()}) == count
    assert row.broker.waiting(INPUT) == 0
    assert row.left_on_volume() == []


def losing(
    world: World, at: set[int], lose: Callable[[World], None]
) -> Callable[[StepConnection], object]:
    """A copying step that has something happen to the connection while it has certain fragments in work, by their order."""
    seen = [0]

    async def step(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            seen[0] += 1
            if seen[0] in at:
                lose(world)
                await trio.sleep(10)
            (file,) = fragment["files"]
            own = id_of(fragment)
            await connection.result([own], f"out-{file['name']}", b"x")
            await connection.done(own)
        await connection.kill()

    return step


def cut(world: World) -> None:
    world.connection.lose()


def take_line_away(world: World) -> None:
    end = world.connection.line_ended
    assert end is not None
    end(BrokerRefused("the broker cancelled the consumer"))


def lose_acknowledgements(world: World) -> None:
    world.connection.deaf = True


@pytest.mark.parametrize("lose", [cut, take_line_away])
async def test_what_is_in_flight_is_finished_and_not_worked_twice(
    lose: Callable[[World], None], autojump_clock: object
) -> None:
    async with temporary_row(MQ_PREFETCH_COUNT="8") as row:
        await row.put(30)
        world = World(row.broker)
        sidecar = sidecar_over(row, world)
        await run_while(sidecar, row, losing(world, {3, 11, 12, 25}, lose))
        check_end(row, 30)
        row.check_acknowledgements()
        assert row.tally.fragments == 30, "one was worked twice, or not at all"
        assert row.tally.repeated > 0
        assert sidecar.is_done


async def test_acknowledgements_that_did_not_arrive_are_said_again(autojump_clock: object) -> None:
    async with temporary_row(MQ_PREFETCH_COUNT="40") as row:
        await row.put(30)
        world = World(row.broker)

        async def step(connection: StepConnection) -> None:
            lose_acknowledgements(world)
            await copy_step(connection)

        async def lose_in_the_end() -> None:
            await until(lambda: row.tally.fragments == 30)
            cut(world)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lose_in_the_end)
            await run_while(sidecar_over(row, world), row, step)
        check_end(row, 30)
        assert row.tally.fragments == 30
        assert row.tally.repeated >= 30


async def test_a_dead_letter_whose_acknowledgement_was_lost_is_not_made_again(
    autojump_clock: object,
) -> None:
    async with temporary_row() as row:
        await row.put(3)
        row.broker.put(INPUT, b"not a fragment")
        row.broker.put(INPUT, b"not a fragment")
        row.describe(7, [("7.txt", "iterum_data/missing")])
        world = World(row.broker)

        async def lose_when_all_are_dead() -> None:
            await until(lambda: world.connections)
            lose_acknowledgements(world)
            await until(lambda: row.tally.dead_letters == 3)
            cut(world)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lose_when_all_are_dead)
            await run_while(sidecar_over(row, world), row, copy_step)
        check_end(row, 3)
        assert len(row.broker.messages(DEAD)) == 3


async def test_a_fragment_that_was_struck_and_comes_again_with_its_copy_costs_no_second_attempt(
    autojump_clock: object,
) -> None:
    async with temporary_row() as row:
        await row.put(4)
        world = World(row.broker)
        deaths = [0]

        async def step(connection: StepConnection) -> None:
            """It dies on the fragment of number 2, each time."""
            async for fragment in connection.fragments():
                own = id_of(fragment)
                if own.endswith("2"):
                    deaths[0] += 1
                    world.connection.deaf = True
                    return
                await connection.result([own], f"out-{own[-1]}", b"x")
                await connection.done(own)
            await connection.kill()

        def settled(times: int) -> Callable[[], bool]:
            return lambda: row.tally.struck + row.tally.dead_letters == times

        async def cut_after_each_strike() -> None:
            for times in (1, 2, 3):
                await until(settled(times))
                cut(world)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut_after_each_strike)
            await run_while(sidecar_over(row, world), row, step)
            nursery.cancel_scope.cancel()
        check_end(row, 3)
        (letter,) = row.broker.messages(DEAD)
        assert letter.headers["x-iterum-attempts"] == 3
        assert deaths == [3]


async def test_a_dead_letter_that_somebody_puts_back_is_worked(autojump_clock: object) -> None:
    async with temporary_row() as row:
        await row.put(1)
        row.describe(7, [("7.txt", "iterum_data/7.txt")])
        world = World(row.broker)
        upstream = finished()
        upstream.finished = trio.Event()

        async def put_it_back() -> None:
            await until(lambda: row.broker.waiting(DEAD))
            (letter,) = row.broker.messages(DEAD)
            await row.put_object("iterum_data/7.txt", b"seven")
            row.broker.put(INPUT, letter.body, {"x-iterum-retries": 1})
            cut(world)
            upstream.finished.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(put_it_back)
            await run_while(sidecar_over(row, world, upstream), row, copy_step)
        check_end(row, 2)


async def test_no_more_than_two_windows_are_in_flight_however_often_the_place_is_lost(
    autojump_clock: object,
) -> None:
    window = 4
    async with temporary_row(MQ_PREFETCH_COUNT=str(window), SIDECAR_DRAIN_SECONDS="1") as row:
        await row.put(60)
        world = World(row.broker)
        upstream = finished()
        upstream.finished = trio.Event()
        sidecar = sidecar_over(row, world, upstream)
        most = 0

        async def steal(count: int) -> None:
            """Another sidecar takes what came back."""
            async with row.broker.consume(INPUT, count) as thief:
                for delivery in await thief.receive():
                    row.broker.acknowledge(delivery)

        async def lose_again_and_again() -> None:
            nonlocal most
            await until(lambda: world.connections)
            for _ in range(6):
                await trio.sleep(20)
                most = max(most, len(sidecar.in_flight()))
                world.away_until = trio.current_time() + 1
                cut(world)
                await trio.testing.wait_all_tasks_blocked()
                await steal(window)
            sidecar.abort()

        async def slow(connection: StepConnection) -> None:
            async for _ in connection.fragments():
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lose_again_and_again)
            nursery.start_soon(row.run_step, slow)
            await sidecar.run()
            nursery.cancel_scope.cancel()
        assert most == 2 * window
        assert len(row.broker.messages(OUTPUT)) == 0


async def test_a_result_whose_description_the_broker_does_not_take_is_refused_and_others_go_on(
    autojump_clock: object,
) -> None:
    async with temporary_row(SIDECAR_LINEAGE="off") as row:
        await row.put(5)
        world = World(row.broker)
        world.largest = 400

        async def step(connection: StepConnection) -> None:
            async for fragment in connection.fragments():
                own = id_of(fragment)
                long = own.endswith("3")
                await connection.result(
                    [own], f"out-{own[-1]}", b"x", custom={"a": "a" * (400 if long else 1)}
                )
                await connection.done(own)
            await connection.kill()

        await run_while(sidecar_over(row, world), row, step)
        check_end(row, 4)
        (letter,) = row.broker.messages(DEAD)
        assert json.loads(letter.body)["metadata"]["fragment_id"].endswith("3")
        assert letter.headers["x-iterum-kind"] == "result_refused"


async def test_starvation_while_the_broker_is_away_does_not_let_the_window_grow_for_each_second(
    autojump_clock: object,
) -> None:
    async with temporary_row() as row:
        await row.put(70)
        world = World(row.broker)
        sidecar = sidecar_over(row, world)
        windows: list[int] = []

        async def gather(connection: StepConnection) -> None:
            """It answers when it has 40, more than the first window; the broker goes away for a minute when it has 32."""
            held: list[str] = []
            async for fragment in connection.fragments():
                held.append(id_of(fragment))
                if len(held) == 32:
                    world.away_until = trio.current_time() + 60
                    cut(world)
                if len(held) == 40 or len(held) > 60:
                    windows.append(sidecar.window)
                    for each in held:
                        await connection.result([each], f"out-{each[-2:]}", b"x")
                        await connection.done(each)
                    held.clear()
            for each in held:
                await connection.result([each], f"out-{each[-2:]}", b"x")
                await connection.done(each)
            await connection.kill()

        await run_while(sidecar, row, gather)
        check_end(row, 70)
        assert windows[0] <= 128, "once when it was noticed, once when the broker was back"
