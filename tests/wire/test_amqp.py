"""The AMQP client against a real RabbitMQ."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar import amqp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from iterum_sidecar.amqp.properties import Headers
    from testbed.rabbitmq import RabbitMQ
    from testbed.tls import Tls

MANY = 10_000
# Far more than any test here needs; a broker that hangs must not hold up the rest.
DEADLINE = 60


@asynccontextmanager
async def connected(rabbitmq: RabbitMQ) -> AsyncIterator[amqp.Connection]:
    parameters = amqp.ConnectionParameters.from_url(rabbitmq.url)
    with trio.fail_after(DEADLINE):
        async with amqp.open_connection(parameters, connection_name="test") as connection:
            yield connection


@asynccontextmanager
async def publishing(rabbitmq: RabbitMQ, queue: str) -> AsyncIterator[amqp.Channel]:
    """A channel with confirms, and the queue, which is deleted afterwards."""
    async with connected(rabbitmq) as connection:
        async with connection.open_channel(confirms=True) as channel:
            await channel.declare_queue(queue)
            yield channel
        async with connection.open_channel() as channel:
            await channel.delete_queue(queue)


async def publish_all(channel: amqp.Channel, queue: str, bodies: list[bytes]) -> None:
    confirmations = [await channel.publish_soon(body, routing_key=queue) for body in bodies]
    for confirmation in confirmations:
        await confirmation.wait()


async def ready(channel: amqp.Channel, queue: str) -> int:
    return (await channel.declare_queue(queue, passive=True)).messages


async def test_the_broker_says_what_it_is(rabbitmq: RabbitMQ) -> None:
    async with connected(rabbitmq) as connection:
        assert connection.server_properties["product"] == "RabbitMQ"
        assert str(connection.server_properties["version"]).startswith(("3.", "4."))


async def test_ten_thousand_messages_there_and_back(rabbitmq: RabbitMQ, queue: str) -> None:
    bodies = [f"message {number}".encode() for number in range(MANY)]
    async with publishing(rabbitmq, queue) as channel:
        await publish_all(channel, queue, bodies)
        assert await ready(channel, queue) == MANY
        received = []
        async with channel.consume(queue, prefetch=500) as consumer:
            async for delivery in consumer:
                received.append(delivery.body)
                assert channel.acknowledge(delivery)
                if len(received) == MANY:
                    break
        assert received == bodies
        assert await ready(channel, queue) == 0


async def test_batches_are_acknowledged_whole(rabbitmq: RabbitMQ, queue: str) -> None:
    async with publishing(rabbitmq, queue) as channel:
        await publish_all(channel, queue, [b"x"] * MANY)
        received = 0
        async with channel.consume(queue, prefetch=500) as consumer:
            while received < MANY:
                batch = await consumer.receive_batch()
                assert channel.acknowledge_many(batch) == len(batch)
                received += len(batch)
        assert received == MANY
        # Nothing is left unacknowledged that would come back once this channel is gone.
        assert await ready(channel, queue) == 0
        rows = rabbitmq.ctl("list_queues", "--no-table-headers", "name", "messages").split("\n")
        assert f"{queue}\t0" in rows


async def test_concurrent_publishers_are_all_confirmed(rabbitmq: RabbitMQ, queue: str) -> None:
    async with publishing(rabbitmq, queue) as channel:
        async with trio.open_nursery() as nursery:
            for number in range(500):
                publish = partial(channel.publish, str(number).encode(), routing_key=queue)
                nursery.start_soon(publish)
        assert await ready(channel, queue) == 500


@pytest.mark.parametrize("size", [0, 131_064, 131_065, 1_000_000, 5_000_000])
async def test_large_bodies_there_and_back(rabbitmq: RabbitMQ, queue: str, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with publishing(rabbitmq, queue) as channel:
        for _ in range(2):
            await channel.publish(body, routing_key=queue)
        async with channel.consume(queue, prefetch=1) as consumer:
            for _ in range(2):
                delivery = await anext(consumer)
                assert delivery.body == body
                channel.acknowledge(delivery)


async def test_headers_and_properties_there_and_back(rabbitmq: RabbitMQ, queue: str) -> None:
    headers: Headers = {"text": "ä", "number": 2**40, "true": True, "list": [1, "a"], "none": None}
    async with publishing(rabbitmq, queue) as channel, channel.consume(queue) as consumer:
        await channel.publish(
            b"", routing_key=queue, headers=headers, content_type="text/plain", message_id="mine"
        )
        delivery = await anext(consumer)
        assert delivery.headers == headers
        assert delivery.properties.content_type == "text/plain"
        assert delivery.properties.message_id == "mine"
        assert delivery.properties.delivery_mode == 2
        assert not delivery.redelivered
        channel.acknowledge(delivery)


async def test_unroutable_messages_are_told_to_their_own_publishers(
    rabbitmq: RabbitMQ, queue: str
) -> None:
    async with publishing(rabbitmq, queue) as channel:
        confirmations = []
        for number in range(1000):
            routing_key = "nowhere" if number % 3 == 0 else queue
            message_id = "mine" if number % 2 else None
            confirmations.append(
                await channel.publish_soon(b"", routing_key=routing_key, message_id=message_id)
            )
        for number, confirmation in enumerate(confirmations):
            if number % 3 == 0:
                with pytest.raises(amqp.MessageReturned, match="312 NO_ROUTE") as caught:
                    await confirmation.wait()
                assert caught.value.routing_key == "nowhere"
            else:
                await confirmation.wait()
        await channel.publish(b"", routing_key="nowhere", mandatory=False)
        assert await ready(channel, queue) == sum(number % 3 != 0 for number in range(1000))


async def test_publishing_to_a_missing_exchange_closes_the_channel(
    rabbitmq: RabbitMQ, queue: str
) -> None:
    async with (
        connected(rabbitmq) as connection,
        connection.open_channel(confirms=True) as channel,
    ):
        with pytest.raises(amqp.ChannelClosed, match="404") as caught:
            await channel.publish(b"", routing_key=queue, exchange="missing")
        assert caught.value.method == "basic.publish"


async def test_declaring(rabbitmq: RabbitMQ, queue: str) -> None:
    async with connected(rabbitmq) as connection:
        async with connection.open_channel() as channel:
            with pytest.raises(amqp.ChannelClosed, match="404 NOT_FOUND") as caught:
                await channel.declare_queue(queue, passive=True)
            assert caught.value.method == "queue.declare"
        async with connection.open_channel() as channel:
            assert await channel.declare_queue(queue) == (queue, 0, 0)
            assert await channel.declare_queue(queue, passive=True) == (queue, 0, 0)
            with pytest.raises(amqp.ChannelClosed, match="406 PRECONDITION_FAILED") as caught:
                await channel.declare_queue(queue, durable=True)
            assert not caught.value.retryable
        async with connection.open_channel() as channel:
            assert await channel.delete_queue(queue) == 0
            named = await channel.declare_queue("", exclusive=True)
            assert named.name.startswith("amq.gen-")
            strange = f"Schlange {queue} {{$x}}*"
            assert (await channel.declare_queue(strange, exclusive=True)).name == strange


async def test_access_is_refused(rabbitmq: RabbitMQ) -> None:
    parameters = amqp.ConnectionParameters.from_url(
        f"amqp://guest:wrong-secret@{rabbitmq.host}:{rabbitmq.port}"
    )
    with pytest.raises(amqp.AccessRefused, match="'guest', virtual host '/': 403") as caught:
        async with amqp.open_connection(parameters):
            pytest.fail("it is not open")
    assert "wrong-secret" not in repr(caught.value)
    with pytest.raises(amqp.AccessRefused, match="virtual host 'missing': 530"):
        async with amqp.open_connection(
            amqp.ConnectionParameters.from_url(f"{rabbitmq.url}missing")
        ):
            pytest.fail("it is not open")


async def test_nobody_listens(rabbitmq: RabbitMQ) -> None:
    with pytest.raises(amqp.ConnectError, match=r"cannot connect to 127\.0\.0\.1:1") as caught:
        async with amqp.open_connection(amqp.ConnectionParameters(host=rabbitmq.host, port=1)):
            pytest.fail("it is not open")
    assert caught.value.retryable


async def test_a_forced_close_reaches_owner_and_waiters(rabbitmq: RabbitMQ, queue: str) -> None:
    told = []

    async def consume(connection: amqp.Connection, ready: trio.Event) -> None:
        async with connection.open_channel() as channel:
            await channel.declare_queue(queue, exclusive=True)
            async with channel.consume(queue) as consumer:
                ready.set()
                with pytest.raises(amqp.ConnectionClosedByBroker) as caught:
                    await anext(consumer)
                told.append(caught.value.code)

    async def be_closed() -> None:
        async with connected(rabbitmq) as connection, trio.open_nursery() as nursery:
            consuming = trio.Event()
            nursery.start_soon(consume, connection, consuming)
            await consuming.wait()
            # The command outlives the connection that it closes.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(rabbitmq.ctl, "close_all_connections", "test")
            await trio.sleep_forever()

    with pytest.raises(amqp.ConnectionClosedByBroker, match="320 CONNECTION_FORCED") as caught:
        await be_closed()
    assert told == [320]
    assert caught.value.retryable


async def test_two_consumers_on_a_channel_have_a_prefetch_each(
    rabbitmq: RabbitMQ, queue: str
) -> None:
    async with publishing(rabbitmq, queue) as channel:
        await publish_all(channel, queue, [b"x"] * 10)
        async with (
            channel.consume(queue, prefetch=2) as first,
            channel.consume(queue, prefetch=3) as second,
        ):
            held = [await anext(first) for _ in range(2)] + [await anext(second) for _ in range(3)]
            # A further round trip: whatever had been sent beyond the limits would be here.
            assert await ready(channel, queue) == 5
            for consumer in (first, second):
                with pytest.raises(trio.WouldBlock):
                    consumer.receive_nowait()
            channel.acknowledge(held[0])
            assert (await anext(first)).delivery_tag == 6
            assert await ready(channel, queue) == 4


async def test_what_is_given_back_comes_again_and_says_so(rabbitmq: RabbitMQ, queue: str) -> None:
    async with publishing(rabbitmq, queue) as channel, channel.consume(queue) as consumer:
        await channel.publish(b"again", routing_key=queue)
        delivery = await anext(consumer)
        assert not delivery.redelivered
        assert channel.give_back(delivery)
        assert not channel.acknowledge(delivery)
        again = await anext(consumer)
        assert again.redelivered
        assert again.body == b"again"
        assert channel.acknowledge(again)


async def test_what_was_not_acknowledged_comes_again(rabbitmq: RabbitMQ, queue: str) -> None:
    async with publishing(rabbitmq, queue) as channel:
        await publish_all(channel, queue, [b"1", b"2", b"3"])
        async with (
            connected(rabbitmq) as other,
            other.open_channel() as lost,
            lost.consume(queue) as consumer,
        ):
            stale = [await anext(consumer) for _ in range(3)]
            assert lost.acknowledge(stale[1])
        assert await ready(channel, queue) == 2
        async with channel.consume(queue) as consumer:
            deliveries = [await anext(consumer) for _ in range(2)]
            assert [delivery.body for delivery in deliveries] == [b"1", b"3"]
            assert all(delivery.redelivered for delivery in deliveries)
            assert not channel.acknowledge_many(stale)
            assert channel.acknowledge_many(deliveries) == 2


async def test_a_deleted_queue_cancels_its_consumer(rabbitmq: RabbitMQ, queue: str) -> None:
    async with publishing(rabbitmq, queue) as channel, channel.consume(queue) as consumer:
        await channel.delete_queue(queue)
        with pytest.raises(amqp.ConsumerCancelled):
            await anext(consumer)
        await channel.declare_queue(queue)
        async with channel.consume(queue) as again:
            await channel.publish(b"x", routing_key=queue)
            assert channel.acknowledge(await anext(again))


async def test_a_cancelled_call_does_not_harm_the_connection(
    rabbitmq: RabbitMQ, queue: str
) -> None:
    async with connected(rabbitmq) as connection:
        for _ in range(20):
            async with connection.open_channel() as channel:
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await channel.declare_queue(queue, exclusive=True)
                assert not channel.is_open
        async with connection.open_channel() as channel:
            await channel.declare_queue(queue, exclusive=True)


async def test_publishers_wait_out_a_memory_alarm(rabbitmq: RabbitMQ, queue: str) -> None:
    set_watermark = partial(trio.to_thread.run_sync, rabbitmq.ctl, "set_vm_memory_high_watermark")
    async with publishing(rabbitmq, queue) as channel, connected(rabbitmq) as connection:
        async with connection.open_channel(confirms=True) as other, trio.open_nursery() as nursery:
            await other.publish(b"", routing_key=queue)
            nursery.start_soon(set_watermark, "0")
            # The broker tells a connection when it publishes next.
            nursery.start_soon(publish_until_blocked, connection, other, queue)
            assert await connection.wait_blocked() == "low on memory"
            await set_watermark("0.4")
            await connection.wait_unblocked()
            await other.publish(b"", routing_key=queue)
        assert await ready(channel, queue) >= 2


async def publish_until_blocked(
    connection: amqp.Connection, channel: amqp.Channel, queue: str
) -> None:
    while connection.blocked is None:
        confirmation = await channel.publish_soon(b"", routing_key=queue)
        await confirmation.wait()


async def test_tls(rabbitmq: RabbitMQ, tls: Tls, queue: str) -> None:
    context = ssl.create_default_context(cafile=str(tls.authority))
    parameters = amqp.ConnectionParameters.from_url(rabbitmq.tls_url)
    body = b"x" * 1_000_000
    with trio.fail_after(DEADLINE):
        async with (
            amqp.open_connection(parameters, ssl_context=context) as connection,
            connection.open_channel(confirms=True) as channel,
        ):
            await channel.declare_queue(queue, exclusive=True)
            await channel.publish(body, routing_key=queue)
            async with channel.consume(queue) as consumer:
                delivery = await anext(consumer)
                assert delivery.body == body
                channel.acknowledge(delivery)


async def test_tls_by_an_unknown_authority_is_refused(rabbitmq: RabbitMQ) -> None:
    parameters = amqp.ConnectionParameters.from_url(rabbitmq.tls_url)
    with pytest.raises(amqp.ConnectError, match="cannot speak TLS") as caught:
        async with amqp.open_connection(parameters):
            pytest.fail("it is not open")
    assert not caught.value.retryable


async def test_plain_amqp_to_a_tls_port_is_an_error_of_its_own(rabbitmq: RabbitMQ) -> None:
    parameters = amqp.ConnectionParameters(host=rabbitmq.host, port=rabbitmq.tls_port)
    with pytest.raises(amqp.AmqpError):
        async with amqp.open_connection(parameters):
            pytest.fail("it is not open")


async def test_tls_to_a_plain_port_is_an_error_of_its_own(rabbitmq: RabbitMQ) -> None:
    parameters = amqp.ConnectionParameters(host=rabbitmq.host, port=rabbitmq.port, tls=True)
    with pytest.raises(amqp.ConnectError, match="cannot speak TLS"):
        async with amqp.open_connection(parameters):
            pytest.fail("it is not open")
