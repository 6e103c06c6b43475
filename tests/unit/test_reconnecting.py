"""A broker made of one connection after another, over connections that are lost when the test says so."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from iterum_sidecar.brokers.port import (
    BrokerRefused,
    LineLost,
    MessageTooLarge,
    MessageUnroutable,
)
from iterum_sidecar.brokers.reconnecting import open_reconnecting_broker
from iterum_sidecar.exit_codes import ServiceLost
from iterum_sidecar.patience import Patience
from tests.unit.lossy_connections import NOTICED_AFTER, Connection, World, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

QUEUE = "in"


async def test_a_message_whose_confirm_was_lost_is_published_again(autojump_clock: object) -> None:
    world = World()
    world.broker.put("out", b"0")
    world.next_confirm = False
    async with open_world(world) as broker, trio.open_nursery() as nursery:
        first = await broker.publish("out", b"1")
        second = await broker.publish("out", b"2")
        nursery.start_soon(first.wait)
        nursery.start_soon(second.wait)
        await trio.testing.wait_all_tasks_blocked()
        world.next_confirm = True
        world.connection.lose()
    assert world.published == [b"1", b"2", b"1", b"2"]
    assert sorted(world.confirmed) == [b"1", b"2"]
    assert not broker.unconfirmed


async def test_what_was_confirmed_is_not_published_again(autojump_clock: object) -> None:
    world = World()
    world.broker.put("out", b"0")
    async with open_world(world) as broker:
        await (await broker.publish("out", b"1")).wait()
        world.connection.lose()
        await (await broker.publish("out", b"2")).wait()
    assert world.published == [b"1", b"2"]


async def test_publishing_waits_for_a_broker_that_is_away(autojump_clock: object) -> None:
    world = World()
    world.broker.put("out", b"0")
    async with open_world(world) as broker:
        world.away_until = trio.current_time() + 600
        world.connection.lose()
        await trio.testing.wait_all_tasks_blocked()
        assert broker.trouble() == "cut"
        await (await broker.publish("out", b"1")).wait()
        assert 600 <= trio.current_time() <= 606
        assert broker.trouble() == ""


async def test_a_broker_that_stays_away_is_given_up_when_the_timeout_is_over(
    autojump_clock: object,
) -> None:
    world = World()
    world_is_away = Patience("the broker", 60)

    @asynccontextmanager
    async def connect() -> AsyncIterator[Connection]:
        while world.connections:
            await world_is_away.wait("nobody listens")
        async with world.connect() as connection:
            yield connection

    with pytest.RaisesGroup(
        pytest.RaisesExc(ServiceLost, match="gave up on the broker after 60 s")
    ):
        async with open_reconnecting_broker(
            connect,
            patience=world_is_away,
            refusals=Patience("the broker's leave", 0),
            noticed_after=NOTICED_AFTER,
        ) as broker:
            world.connection.lose()
            await (await broker.publish("out", b"1")).wait()


@pytest.mark.parametrize(
    ("queue", "body", "error"),
    [("no such queue", b"1", MessageUnroutable), ("out", bytes(9), MessageTooLarge)],
)
async def test_what_the_broker_refuses_for_good_is_told_and_not_published_again(
    queue: str, body: bytes, error: type[Exception], autojump_clock: object
) -> None:
    world = World()
    world.largest = 8
    world.broker.put("out", b"0")
    async with open_world(world) as broker:
        with pytest.raises(error):
            await (await broker.publish(queue, body)).wait()
        world.connection.lose()
        await (await broker.publish("out", b"1")).wait()
    assert world.published == [body, b"1"]


async def test_the_line_is_lost_with_the_connection_and_taken_again_with_the_window_as_it_had_grown(
    autojump_clock: object,
) -> None:
    world = World()
    world.broker.put(QUEUE, b"a")
    world.broker.put(QUEUE, b"b")
    async with open_world(world) as broker, broker.consume(QUEUE, 1) as consumer:
        (first,) = await consumer.receive()
        await consumer.grow(3)
        (second,) = await consumer.receive()
        world.connection.lose()
        with pytest.raises(LineLost) as loss:
            await consumer.receive()
        assert not loss.value.refused
        broker.acknowledge(first)  # void: it belongs to the old connection
        await consumer.resume()
        again = await consumer.receive()
        assert [each.body for each in again] == [first.body, second.body]
        assert all(each.redelivered for each in again)
        for each in again:
            broker.acknowledge(each)
        assert await consumer.reopen() == 0
    assert world.windows == [1, 4]
    assert world.ensured == [QUEUE]


async def test_a_line_that_the_broker_takes_away_is_taken_again_on_the_same_connection(
    autojump_clock: object,
) -> None:
    world = World()
    world.broker.put(QUEUE, b"a")
    async with open_world(world) as broker, broker.consume(QUEUE, 1) as consumer:
        await consumer.receive()
        assert world.connection.line_ended is not None
        world.connection.line_ended(BrokerRefused("the broker cancelled the consumer"))
        with pytest.raises(LineLost, match="cancelled") as loss:
            await consumer.receive()
        assert loss.value.refused
        await consumer.resume()
        (again,) = await consumer.receive()
        assert again.redelivered
    assert len(world.connections) == 1


async def test_a_line_that_is_lost_again_and_again_is_not_taken_in_a_spin(
    autojump_clock: object,
) -> None:
    world = World()
    async with open_world(world) as broker, broker.consume(QUEUE, 1) as consumer:
        with trio.move_on_after(60):
            while True:
                assert world.connection.line_ended is not None
                world.connection.line_ended(BrokerRefused("no"))
                with pytest.raises(LineLost):
                    await consumer.receive()
                await consumer.resume()
    assert 10 < len(world.windows) < 30


async def test_a_broker_that_does_not_let_us_is_asked_again_with_backoff(
    autojump_clock: object,
) -> None:
    world = World()
    async with open_world(world, refusal_timeout=30) as broker:
        world.refuses = True
        with trio.move_on_after(20):
            await broker.ensure_queue("dead", durable=True)
        world.refuses = False
        await broker.ensure_queue("dead", durable=True)
    assert world.ensured == ["dead"]
    assert len(world.connections) == 1


async def test_calls_in_a_lost_line_leave_the_line_as_it_should_be(autojump_clock: object) -> None:
    world = World()
    world.broker.put(QUEUE, b"a")
    async with open_world(world) as broker, broker.consume(QUEUE, 1) as consumer:
        world.connection.lose()
        await trio.testing.wait_all_tasks_blocked()
        await consumer.grow(1)
        await consumer.hold(2)
        assert await consumer.stop() == ()
        assert await consumer.waiting() == 1
        assert await consumer.reopen() == 1
        await consumer.resume()
        assert len(await consumer.receive()) == 1
        await broker.flush()
    assert world.windows == [1, 2]


@pytest.mark.parametrize("by_broker", [False, True])
async def test_the_end_is_not_believed_before_the_broker_must_have_noticed_the_loss(
    by_broker: bool, autojump_clock: object
) -> None:
    world = World()
    async with open_world(world) as broker, broker.consume(QUEUE, 1) as consumer:
        assert not consumer.may_get_back()
        world.connection.lose(by_broker=by_broker)
        with pytest.raises(LineLost):
            await consumer.receive()
        await consumer.resume()
        assert consumer.may_get_back() is not by_broker
        await trio.sleep(NOTICED_AFTER)
        assert not consumer.may_get_back()


async def test_the_end_is_believed_as_soon_as_the_broker_says_that_it_misses_every_lost_connection(
    autojump_clock: object,
) -> None:
    world = World()
    async with open_world(world) as broker, broker.consume(QUEUE, 1) as consumer:
        for _ in range(2):
            world.connection.lose()
            with pytest.raises(LineLost):
                await consumer.receive()
            await consumer.resume()
        first, second, _ = world.connections
        world.noticed.append(first)
        await trio.sleep(3)
        assert consumer.may_get_back(), "the second is not missed yet"
        world.noticed.append(second)
        await trio.sleep(3)
        assert not consumer.may_get_back()


async def test_a_cancelled_place_in_the_line_leaves_no_task(autojump_clock: object) -> None:
    world = World()
    async with open_world(world) as broker:
        with trio.move_on_after(1):
            async with broker.consume(QUEUE, 1) as consumer:
                await consumer.receive()
    assert not world.broker._queue(QUEUE).consumers


async def test_each_time_that_a_broker_does_not_let_us_is_waited_for_anew(
    autojump_clock: object,
) -> None:
    """Otherwise the second of two short ones, hours apart, would be taken for a long one, and end the program."""
    world = World()
    async with open_world(world, refusal_timeout=30) as broker:
        for _ in range(3):
            world.refuses = True
            with trio.move_on_after(20):
                await broker.ensure_queue("dead", durable=True)
            world.refuses = False
            await broker.ensure_queue("dead", durable=True)
            await trio.sleep(3600)
    assert world.ensured == ["dead"] * 3


async def test_a_broker_that_ends_each_connection_at_once_is_not_asked_for_another_in_a_spin(
    autojump_clock: object,
) -> None:
    world = World()
    async with open_world(world):
        with trio.move_on_after(60):
            while len(world.connections) < 1000:
                world.connection.lose()
                await trio.sleep(0.01)
    assert 10 < len(world.connections) < 200


async def test_what_the_broker_has_missed_may_come_back_for_a_moment_yet(
    autojump_clock: object,
) -> None:
    """That a connection is gone is known a little before all that came by it is in its queue again."""
    world = World()
    async with open_world(world) as broker, broker.consume(QUEUE, 1) as consumer:
        world.noticed.append(world.connection)
        world.connection.lose()
        with pytest.raises(LineLost):
            await consumer.receive()
        await consumer.resume()
        await trio.sleep(0.5)
        assert consumer.may_get_back()
        await trio.sleep(1)
        assert not consumer.may_get_back()


async def test_what_had_arrived_and_was_not_received_is_returned_when_no_more_is_taken(
    autojump_clock: object,
) -> None:
    world = World()
    world.broker.put(QUEUE, b"a")
    world.broker.put(QUEUE, b"b")
    async with open_world(world) as broker, broker.consume(QUEUE, 2) as consumer:
        await trio.testing.wait_all_tasks_blocked()
        assert [each.body for each in await consumer.stop()] == [b"a", b"b"]
        world.broker.put(QUEUE, b"c")
        with trio.move_on_after(60) as scope:
            await consumer.receive()
        assert scope.cancelled_caught


@pytest.mark.parametrize("left_by", ["stop", "reopen"])
async def test_a_place_that_was_left_is_taken_again_on_the_same_connection(
    left_by: str, autojump_clock: object
) -> None:
    world = World()
    async with open_world(world) as broker, broker.consume(QUEUE, 1) as consumer:
        await (consumer.stop() if left_by == "stop" else consumer.reopen())
        await consumer.resume()
        world.broker.put(QUEUE, b"a")
        with trio.fail_after(60):
            (arrived,) = await consumer.receive()
        assert arrived.body == b"a"
    assert len(world.connections) == 1
