"""What was found by hunting for faults and needs a real broker to be seen."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.amqp import ConnectionParameters
from iterum_sidecar.brokers.amqp import QueuePolicy, open_amqp_broker
from iterum_sidecar.patience import Patience

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from iterum_sidecar.brokers.amqp import AmqpBroker
    from iterum_sidecar.brokers.amqp_line import AmqpConsumer
    from testbed.rabbitmq import RabbitMQ


@asynccontextmanager
async def consuming(
    rabbitmq: RabbitMQ, queue: str
) -> AsyncIterator[tuple[AmqpBroker, AmqpConsumer]]:
    with trio.fail_after(60):
        async with (
            open_amqp_broker(
                lambda: ConnectionParameters.from_url(rabbitmq.url),
                ssl_context=None,
                queues=[queue],
                policy=QueuePolicy(),
                patience=Patience("the broker", 10),
                name="test",
            ) as broker,
            broker.consume(queue, 1) as consumer,
        ):
            yield broker, consumer


@pytest.mark.parametrize("call", ["grow", "stop", "resume"])
async def test_a_drain_in_the_middle_of_a_call_leaves_what_is_in_work_to_be_acknowledged(
    call: str, rabbitmq: RabbitMQ, queue: str
) -> None:
    """Intake is cancelled by a drain wherever it is; what the transformation holds is finished and acknowledged."""
    async with consuming(rabbitmq, queue) as (broker, consumer):
        await (await broker.publish(queue, b"in work")).wait()
        (delivery,) = await consumer.receive()
        with trio.CancelScope() as intake:
            async with trio.open_nursery() as nursery:
                if call == "grow":
                    nursery.start_soon(consumer.grow, 1)
                elif call == "stop":
                    nursery.start_soon(consumer.stop)
                else:
                    nursery.start_soon(consumer.resume)
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                intake.cancel("a drain")
        await consumer.stop()
        await trio.sleep(0.5)
        assert await consumer.waiting() == 0, "it went back to the queue"
        broker.acknowledge(delivery)
        await broker.flush()


async def test_a_message_with_headers_of_nearly_a_frame_can_be_dead_lettered(
    rabbitmq: RabbitMQ, queue: str
) -> None:
    """With ours it is more than a frame; whoever cannot publish it again ends with every life that meets it."""
    async with consuming(rabbitmq, queue) as (broker, consumer):
        await (await broker.publish(queue, b"", {"theirs": "h" * 129_000})).wait()
        (delivery,) = await consumer.receive()
        headers = {**delivery.headers, "x-iterum-reason": "r" * 2000, "x-iterum-step": "s"}
        await (await broker.publish(queue, delivery.body, headers)).wait()
        broker.acknowledge(delivery)
        (again,) = await consumer.receive()
        assert again.headers["x-iterum-reason"] == "r" * 2000
        broker.acknowledge(again)
        await broker.flush()
