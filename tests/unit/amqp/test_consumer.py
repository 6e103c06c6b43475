from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from pamqp import commands
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from iterum_sidecar.amqp import Channel, ChannelClosed, Consumer, ConsumerCancelled, Delivery
from tests.unit.amqp.false_broker import FalseBroker, ending_with, silence
from tests.unit.amqp.test_connection import connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONFIRMED = commands.Basic.CancelOk("1-1")


@asynccontextmanager
async def consuming(broker: FalseBroker) -> AsyncIterator[tuple[Channel, Consumer]]:
    async with (
        connected(broker) as connection,
        connection.open_channel() as channel,
        channel.consume("queue") as consumer,
    ):
        yield channel, consumer


def tags(deliveries: list[Delivery]) -> list[int]:
    return [delivery.delivery_tag for delivery in deliveries]


async def test_what_a_delivery_carries(broker: FalseBroker) -> None:
    async with consuming(broker) as (channel, consumer):
        properties = commands.Basic.Properties(content_type="text/plain", headers={"a": 1})
        broker.deliver(5, b"hello", redelivered=True, properties=properties)
        delivery = await anext(consumer)
        assert delivery.body == b"hello"
        assert delivery.delivery_tag == 5
        assert delivery.redelivered is True
        assert delivery.exchange == ""
        assert delivery.routing_key == "queue"
        assert delivery.headers == {"a": 1}
        assert delivery.properties.content_type == "text/plain"
        assert delivery.epoch == channel.epoch
        assert delivery.channel_identity == channel.identity


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 1_000_000])
async def test_bodies_larger_than_a_frame_come_whole(broker: FalseBroker, size: int) -> None:
    async with consuming(broker) as (_, consumer):
        body = bytes(index % 251 for index in range(size))
        broker.deliver(1, body, piece=131_064)
        assert (await anext(consumer)).body == body


async def test_prefetch_is_each_consumers_own(broker: FalseBroker) -> None:
    async with connected(broker) as connection, connection.open_channel() as channel:
        await channel.set_prefetch(10)
        async with (
            channel.consume("a"),
            channel.consume("b", prefetch=3),
            channel.consume("c", prefetch=3),
            channel.consume("d", arguments={"x-priority": 5}),
        ):
            pass
    said = [
        (item.prefetch_count, item.global_) if isinstance(item, commands.Basic.Qos) else item.queue
        for _, item in broker.received
        if isinstance(item, commands.Basic.Qos | commands.Basic.Consume)
    ]
    assert said == [(10, False), "a", (3, False), "b", "c", (10, False), "d"]
    assert broker.all_of(commands.Basic.Consume)[3].arguments == {"x-priority": 5}


async def test_several_consumers_on_a_channel_get_their_own_deliveries(broker: FalseBroker) -> None:
    async with (
        connected(broker) as connection,
        connection.open_channel() as channel,
        channel.consume("a") as first,
        channel.consume("b") as second,
    ):
        broker.deliver(1, consumer=2)
        broker.deliver(2, consumer=1)
        broker.deliver(3, consumer=2)
        await wait_all_tasks_blocked()
        assert tags(await second.receive_batch()) == [1, 3]
        assert tags(await first.receive_batch()) == [2]


async def test_what_is_there_is_received_without_waiting(broker: FalseBroker) -> None:
    async with consuming(broker) as (_, consumer):
        with pytest.raises(trio.WouldBlock):
            consumer.receive_nowait()
        for number in (1, 2, 3):
            broker.deliver(number)
        await wait_all_tasks_blocked()
        assert consumer.receive_nowait().delivery_tag == 1
        with assert_checkpoints():
            assert tags(await consumer.receive_batch()) == [2, 3]


async def test_a_backlog_starves_nobody(broker: FalseBroker) -> None:
    async with consuming(broker) as (_, consumer):
        for number in range(1, 1001):
            broker.deliver(number)
        await wait_all_tasks_blocked()
        received = 0
        with trio.CancelScope() as scope:
            scope.cancel()
            async for _ in consumer:
                received += 1
        assert 0 < received < 65
        assert len(await consumer.receive_batch()) == 1000 - received


async def test_each_delivery_goes_to_one_of_several_receivers(broker: FalseBroker) -> None:
    received: list[int] = []
    async with consuming(broker) as (_, consumer):

        async def receive() -> None:
            async for delivery in consumer:
                received.append(delivery.delivery_tag)  # noqa: PERF401 - shared with others

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            for number in range(1, 11):
                broker.deliver(number)
            await wait_all_tasks_blocked()
            await consumer.cancel()
    assert sorted(received) == list(range(1, 11))


async def test_after_a_cancel_the_rest_can_be_received_and_acknowledged(
    broker: FalseBroker,
) -> None:
    def deliver_once_more(_: object) -> commands.Basic.CancelOk:
        broker.deliver(2)
        return CONFIRMED

    broker.answers[commands.Basic.Cancel] = deliver_once_more
    async with consuming(broker) as (channel, consumer):
        broker.deliver(1)
        await consumer.cancel()
        await consumer.cancel()
        received = [delivery async for delivery in consumer]
        assert tags(received) == [1, 2]
        assert all(channel.acknowledge(delivery) for delivery in received)
        with pytest.raises(trio.EndOfChannel):
            consumer.receive_nowait()
        with pytest.raises(trio.EndOfChannel):
            await consumer.receive_batch()
        assert "ended" in repr(consumer)
    assert len(broker.all_of(commands.Basic.Cancel)) == 1
    assert not broker.all_of(commands.Basic.Nack)


async def test_what_nobody_received_is_given_back_on_leaving(broker: FalseBroker) -> None:
    async with consuming(broker) as (_, consumer):
        for number in (1, 2, 3):
            broker.deliver(number)
        await anext(consumer)
        await wait_all_tasks_blocked()
    given_back = [(item.delivery_tag, item.requeue) for item in broker.all_of(commands.Basic.Nack)]
    assert given_back == [(2, True), (3, True)]


async def test_a_cancel_without_an_answer_ends_its_channel(broker: FalseBroker) -> None:
    broker.answers[commands.Basic.Cancel] = silence
    begin = trio.current_time()
    async with consuming(broker):
        pass
    assert trio.current_time() - begin == pytest.approx(3)


async def test_a_consumer_that_cannot_get_its_turn_to_cancel_ends_its_channel(
    broker: FalseBroker,
) -> None:
    broker.answers[commands.Queue.Declare] = silence

    async def declare(channel: Channel) -> None:
        with pytest.raises(ChannelClosed, match="could not be cancelled"):
            await channel.declare_queue("queue")

    async with (
        connected(broker) as connection,
        connection.open_channel() as channel,
        trio.open_nursery() as nursery,
    ):
        async with channel.consume("queue"):
            nursery.start_soon(declare, channel)
            await wait_all_tasks_blocked()
        assert not channel.is_open


# Ends that are not ours.


async def test_the_brokers_cancel_is_told_after_what_had_come(broker: FalseBroker) -> None:
    async with consuming(broker) as (channel, consumer):
        broker.deliver(1)
        broker.send(commands.Basic.Cancel("1-1", True), 1)
        await wait_all_tasks_blocked()
        delivery = await anext(consumer)
        # The broker has taken it back, and would close the channel for an unknown tag.
        assert not channel.acknowledge(delivery)
        for _ in range(2):
            with pytest.raises(ConsumerCancelled, match="'queue'"):
                await anext(consumer)
        with pytest.raises(ConsumerCancelled):
            consumer.receive_nowait()
        with pytest.raises(ConsumerCancelled):
            await consumer.receive_batch()
        async with channel.consume("queue") as again:
            broker.deliver(2, consumer=2)
            assert channel.acknowledge(await anext(again))
    assert not broker.all_of(commands.Basic.CancelOk)
    assert len(broker.all_of(commands.Basic.Cancel)) == 1


async def test_the_brokers_cancel_is_answered_when_it_asks_for_that(broker: FalseBroker) -> None:
    async with consuming(broker):
        broker.send(commands.Basic.Cancel("1-1", False), 1)
        answer = await broker.wait_for(commands.Basic.CancelOk)
        assert answer.consumer_tag == "1-1"


async def test_a_closed_channel_is_told_at_once_and_what_had_come_is_dropped(
    broker: FalseBroker,
) -> None:
    async with consuming(broker) as (channel, consumer):
        broker.deliver(1)
        broker.deliver(2)
        delivery = await anext(consumer)
        broker.send(commands.Channel.Close(406, "too late", 0, 0), 1)
        await wait_all_tasks_blocked()
        with pytest.raises(ChannelClosed, match="406 too late") as caught:
            await anext(consumer)
        assert caught.value.method is None
        assert not channel.acknowledge(delivery)
        assert not channel.give_back(delivery)
        assert not channel.acknowledge_many([delivery])
    assert not broker.all_of(commands.Basic.Ack)


async def test_a_refused_consumer_leaves_nothing_behind(broker: FalseBroker) -> None:
    broker.answers[commands.Basic.Consume] = lambda _: commands.Channel.Close(404, "", 60, 20)
    async with connected(broker) as connection, connection.open_channel() as channel:
        with pytest.raises(ChannelClosed) as caught:
            async with channel.consume("queue"):
                pytest.fail("there is none")
        assert caught.value.method == "basic.consume"


async def test_a_consumer_of_an_impossible_queue_leaves_nothing_behind(
    broker: FalseBroker,
) -> None:
    async with connected(broker) as connection, connection.open_channel() as channel:
        with pytest.raises(ValueError, match=r"Basic\.Consume"):
            async with channel.consume("x" * 256):
                pytest.fail("there is none")
        assert channel.is_open
    assert not broker.all_of(commands.Basic.Cancel)


async def test_a_channel_that_is_closed_while_its_consumer_is_left_says_so(
    broker: FalseBroker,
) -> None:
    broker.answers[commands.Basic.Cancel] = lambda _: commands.Channel.Close(406, "late", 0, 0)
    with ending_with(ChannelClosed, match="406 late"):
        async with consuming(broker):
            pass


# Acknowledging.


async def acknowledged(broker: FalseBroker) -> list[tuple[int, bool]]:
    await wait_all_tasks_blocked()
    return [(item.delivery_tag, item.multiple) for item in broker.all_of(commands.Basic.Ack)]


async def test_an_acknowledgement_is_sent_once(broker: FalseBroker) -> None:
    async with consuming(broker) as (channel, consumer):
        broker.deliver(1)
        delivery = await anext(consumer)
        assert channel.acknowledge(delivery)
        assert not channel.acknowledge(delivery)
        assert not channel.give_back(delivery)
        await channel.flush()
        assert await acknowledged(broker) == [(1, False)]


async def test_a_delivery_of_another_channel_is_never_acknowledged(broker: FalseBroker) -> None:
    async with connected(broker) as connection, connection.open_channel() as channel:
        async with connection.open_channel() as other, other.consume("queue") as consumer:
            broker.deliver(1, channel=2)
            stale = await anext(consumer)
        async with channel.consume("queue") as consumer:
            broker.deliver(1)
            delivery = await anext(consumer)
            assert not channel.acknowledge(stale)
            assert not channel.give_back(stale)
            assert not channel.acknowledge_many([stale])
            assert channel.acknowledge(delivery)


async def test_many_are_acknowledged_in_few_frames(broker: FalseBroker) -> None:
    async with consuming(broker) as (channel, consumer):
        for number in range(1, 9):
            broker.deliver(number)
        await wait_all_tasks_blocked()
        batch = await consumer.receive_batch()
        assert channel.acknowledge_many(batch[4:6]) == 2
        assert channel.acknowledge_many([batch[2], batch[0], batch[1], batch[7], batch[5]]) == 4
        assert channel.acknowledge_many(batch) == 2
        assert channel.acknowledge_many(batch) == 0
        assert await acknowledged(broker) == [
            (5, False),
            (6, False),
            (3, True),
            (8, False),
            (7, True),
        ]


async def test_giving_back_requeues(broker: FalseBroker) -> None:
    async with consuming(broker) as (channel, consumer):
        broker.deliver(1)
        assert channel.give_back(await anext(consumer))
        nack = await broker.wait_for(commands.Basic.Nack)
        assert (nack.delivery_tag, nack.multiple, nack.requeue) == (1, False, True)
