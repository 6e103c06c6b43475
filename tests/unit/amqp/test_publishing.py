from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import trio
from pamqp import commands
from pamqp.header import ContentHeader
from trio.testing import assert_no_checkpoints, wait_all_tasks_blocked

from iterum_sidecar.amqp import (
    Channel,
    ChannelClosed,
    Confirmation,
    MessageReturned,
    ProtocolViolation,
    PublishNacked,
)
from iterum_sidecar.amqp.outbox import HIGH_WATER
from tests.unit.amqp.false_broker import FalseBroker, ending_with
from tests.unit.amqp.test_connection import connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def publishing(broker: FalseBroker) -> AsyncIterator[Channel]:
    async with connected(broker) as connection, connection.open_channel(confirms=True) as channel:
        yield channel


async def publish_some(channel: Channel, count: int) -> list[Confirmation]:
    return [await channel.publish_soon(b"body", routing_key="queue") for _ in range(count)]


async def test_what_is_published(broker: FalseBroker) -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    async with publishing(broker) as channel:
        await channel.publish_soon(
            b"hello",
            routing_key="key",
            exchange="exchange",
            headers={"a": 1},
            content_type="text/plain",
            expiration="1000",
            timestamp=moment,
            message_id="mine",
        )
        await channel.publish_soon(b"", routing_key="key", persistent=False, mandatory=False)
        await channel.flush()
        await wait_all_tasks_blocked()
        publish, header, body, *rest = [item for _, item in broker.received][-5:]
    assert isinstance(publish, commands.Basic.Publish)
    assert (publish.exchange, publish.routing_key, publish.mandatory) == ("exchange", "key", True)
    assert isinstance(header, ContentHeader)
    assert header.body_size == 5
    assert header.properties == commands.Basic.Properties(
        content_type="text/plain",
        headers={"a": 1},
        delivery_mode=2,
        expiration="1000",
        message_id="mine",
        timestamp=moment,
    )
    assert body == b"hello"
    publish, header = rest
    assert isinstance(publish, commands.Basic.Publish)
    assert not publish.mandatory
    assert isinstance(header, ContentHeader)
    assert header.body_size == 0
    assert header.properties == commands.Basic.Properties()


async def test_publishing_soon_is_no_checkpoint_when_nothing_is_in_the_way(
    broker: FalseBroker,
) -> None:
    async with publishing(broker) as channel:
        with assert_no_checkpoints():
            await channel.publish_soon(b"body", routing_key="queue")


async def test_one_word_may_confirm_many(broker: FalseBroker) -> None:
    async with publishing(broker) as channel:
        confirmations = await publish_some(channel, 5)
        broker.send(commands.Basic.Ack(3, True), 1)
        broker.send(commands.Basic.Nack(4), 1)
        await wait_all_tasks_blocked()
        assert [each.done for each in confirmations] == [True, True, True, True, False]
        for each in confirmations[:3]:
            await each.wait()
        with pytest.raises(PublishNacked):
            await confirmations[3].wait()
        broker.send(commands.Basic.Ack(0, True), 1)
        await confirmations[4].wait()


async def test_publish_waits_for_the_word(broker: FalseBroker) -> None:
    async with publishing(broker) as channel, trio.open_nursery() as nursery:
        done = []

        async def publish() -> None:
            await channel.publish(b"body", routing_key="queue")
            done.append(True)

        nursery.start_soon(publish)
        await wait_all_tasks_blocked()
        assert not done
        broker.send(commands.Basic.Ack(1), 1)
        await wait_all_tasks_blocked()
        assert done


async def test_a_return_is_told_to_its_own_publisher(broker: FalseBroker) -> None:
    async with publishing(broker) as channel:
        first, second, third = await publish_some(channel, 3)
        await wait_all_tasks_blocked()
        headers = [item for _, item in broker.received if isinstance(item, ContentHeader)]
        broker.send_content(
            commands.Basic.Return(312, "NO_ROUTE", "", "queue"),
            b"body",
            properties=headers[1].properties,
        )
        broker.send(commands.Basic.Ack(3, True), 1)
        await first.wait()
        with pytest.raises(MessageReturned, match="312 NO_ROUTE") as caught:
            await second.wait()
        assert (caught.value.code, caught.value.text) == (312, "NO_ROUTE")
        assert (caught.value.exchange, caught.value.routing_key) == ("", "queue")
        await third.wait()


async def test_confirms_of_what_was_never_sent_end_the_connection(broker: FalseBroker) -> None:
    with ending_with(ProtocolViolation, match="a confirm of message 2, where 1 were sent"):
        async with publishing(broker) as channel:
            [confirmation] = await publish_some(channel, 1)
            broker.send(commands.Basic.Ack(2, True), 1)
            await confirmation.wait()


async def test_a_closed_channel_ends_its_confirmations(broker: FalseBroker) -> None:
    async with publishing(broker) as channel:
        safe, lost = await publish_some(channel, 2)
        broker.send(commands.Basic.Ack(1), 1)
        broker.send(commands.Channel.Close(404, "no exchange", 60, 40), 1)
        with pytest.raises(ChannelClosed, match=r"404 no exchange \(in answer to basic\.publish\)"):
            await lost.wait()
        await safe.wait()
        with pytest.raises(ChannelClosed):
            await channel.publish_soon(b"", routing_key="queue")


async def test_leaving_a_channel_ends_its_confirmations(broker: FalseBroker) -> None:
    async with connected(broker) as connection:
        async with connection.open_channel(confirms=True) as channel:
            [confirmation] = await publish_some(channel, 1)
        with pytest.raises(ChannelClosed, match="left"):
            await confirmation.wait()


async def test_what_cannot_be_encoded_harms_nothing(broker: FalseBroker) -> None:
    async with publishing(broker) as channel:
        with pytest.raises(ValueError, match="255 bytes"):
            await channel.publish_soon(b"", routing_key="x" * 256)
        with pytest.raises(ValueError, match="do not fit"):
            await channel.publish_soon(b"", routing_key="x", headers={"a": "x" * 131_072})
        [confirmation] = await publish_some(channel, 1)
        broker.send(commands.Basic.Ack(1), 1)
        await confirmation.wait()


async def test_publishing_needs_confirms(broker: FalseBroker) -> None:
    async with connected(broker) as connection, connection.open_channel() as channel:
        with pytest.raises(RuntimeError, match="confirms=True"):
            await channel.publish_soon(b"", routing_key="queue")


# What publishers wait for.


async def test_publishers_wait_while_the_broker_is_blocked(broker: FalseBroker) -> None:
    async with publishing(broker) as channel, trio.open_nursery() as nursery:
        broker.send(commands.Connection.Blocked("low on memory"))
        await wait_all_tasks_blocked()
        nursery.start_soon(publish_some, channel, 2)
        await wait_all_tasks_blocked()
        assert not broker.all_of(commands.Basic.Publish)
        broker.send(commands.Connection.Unblocked())
        await wait_all_tasks_blocked()
        assert len(broker.all_of(commands.Basic.Publish)) == 2


async def test_publishers_wait_while_the_channels_flow_is_stopped(broker: FalseBroker) -> None:
    async with publishing(broker) as channel, trio.open_nursery() as nursery:
        broker.send(commands.Channel.Flow(False), 1)
        assert (await broker.wait_for(commands.Channel.FlowOk)).active is False
        nursery.start_soon(publish_some, channel, 1)
        await wait_all_tasks_blocked()
        assert not broker.all_of(commands.Basic.Publish)
        broker.send(commands.Channel.Flow(True), 1)
        await broker.wait_for(commands.Basic.Publish)


async def test_a_closed_channel_ends_the_wait_of_its_publishers(broker: FalseBroker) -> None:
    async with publishing(broker) as channel:
        broker.send(commands.Connection.Blocked("low on memory"))
        await wait_all_tasks_blocked()

        async def publish() -> None:
            with pytest.raises(ChannelClosed):
                await publish_some(channel, 1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            await wait_all_tasks_blocked()
            broker.send(commands.Channel.Close(403, "", 0, 0), 1)


async def test_publishers_wait_while_too_much_is_unsent() -> None:
    broker = FalseBroker(lockstep=True)
    body = b"x" * 10_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(broker.serve)
        async with publishing(broker) as channel:
            broker.serving.cancel()
            await wait_all_tasks_blocked()
            published = 0
            with trio.move_on_after(0.05):
                while True:
                    await channel.publish_soon(body, routing_key="queue")
                    published += 1
            assert HIGH_WATER <= published * 10_100 < HIGH_WATER + 2 * 10_100
            waiting = [False]

            async def publish_one_more() -> None:
                await channel.publish_soon(b"", routing_key="queue")
                waiting.append(True)

            nursery.start_soon(publish_one_more)
            nursery.start_soon(broker.read)
            await channel.flush()
            await wait_all_tasks_blocked()
            assert waiting[-1]


async def test_a_body_larger_than_frames_arrives_in_order(broker: FalseBroker) -> None:
    body = bytes(index % 251 for index in range(300_000))
    async with publishing(broker) as channel:
        await channel.publish_soon(body, routing_key="queue")
        await channel.publish_soon(b"next", routing_key="queue")
        await channel.flush()
        await wait_all_tasks_blocked()
        pieces = [item for _, item in broker.received if isinstance(item, bytes)]
    assert [len(piece) for piece in pieces] == [131_064, 131_064, 300_000 - 2 * 131_064, 4]
    assert b"".join(pieces) == body + b"next"
