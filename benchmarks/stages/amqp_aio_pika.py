"""Queues by aio-pika, on asyncio."""

from __future__ import annotations

import asyncio

import aio_pika

from benchmarks.stages.on_asyncio import at_a_time
from benchmarks.stages.task import IN_FLIGHT, Meter, Task, Tasting, description


def publish(task: Task, meter: Meter) -> None:
    """Publish from as many tasks as messages may be on their way: each waits for its own confirm."""
    asyncio.run(_publish(task, meter))


async def _publish(task: Task, meter: Meter) -> None:
    bodies = [description(number) for number in range(task.count)]
    async with await aio_pika.connect(task.broker) as connection:
        channel = await connection.channel(publisher_confirms=True)
        exchange = channel.default_exchange

        async def put(body: bytes) -> None:
            message = aio_pika.Message(
                body,
                content_type="application/json",
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            await exchange.publish(message, routing_key=task.queue)

        with meter:
            await at_a_time(IN_FLIGHT, put, bodies)


def consume(task: Task, meter: Meter) -> None:
    """Iterate over the queue and acknowledge each message."""
    asyncio.run(_consume(task, meter))


async def _consume(task: Task, meter: Meter) -> None:
    tasting = Tasting(task)
    async with await aio_pika.connect(task.broker) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=task.prefetch)
        queue = await channel.get_queue(task.queue)
        with meter:
            async with queue.iterator() as messages:
                async for message in messages:
                    last = tasting.take(message.body)
                    await message.ack()
                    if last:
                        break
    tasting.look(meter)
