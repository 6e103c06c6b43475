"""Queues by `iterum_sidecar.amqp`, used as the stages of the sidecar use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from benchmarks.stages.task import IN_FLIGHT, Meter, Task, Tasting, description
from iterum_sidecar.amqp import ConnectionParameters, open_connection

if TYPE_CHECKING:
    from iterum_sidecar.amqp import Confirmation


def publish(task: Task, meter: Meter) -> None:
    """Publish two messages for each fragment, one behind the other; another task waits for the confirms."""
    trio.run(_publish, task, meter)


async def _publish(task: Task, meter: Meter) -> None:
    bodies = [description(number) for number in range(task.count)]
    async with (
        open_connection(ConnectionParameters.from_url(task.broker)) as connection,
        connection.open_channel(confirms=True) as channel,
    ):
        sender, receiver = trio.open_memory_channel[list["Confirmation"]](IN_FLIGHT // 2)

        async def confirm() -> None:
            async for pair in receiver:
                for each in pair:
                    await each.wait()

        with meter:
            async with trio.open_nursery() as nursery, sender:
                nursery.start_soon(confirm)
                for number in range(0, task.count, 2):
                    pair = [
                        await channel.publish_soon(
                            body, routing_key=task.queue, content_type="application/json"
                        )
                        for body in bodies[number : number + 2]
                    ]
                    await sender.send(pair)


def consume(task: Task, meter: Meter) -> None:
    """Take what has come, and acknowledge each."""
    trio.run(_consume, task, meter)


async def _consume(task: Task, meter: Meter) -> None:
    tasting = Tasting(task)
    async with (
        open_connection(ConnectionParameters.from_url(task.broker)) as connection,
        connection.open_channel() as channel,
    ):
        with meter:
            async with channel.consume(task.queue, prefetch=task.prefetch) as consumer:
                last = False
                while not last:
                    for delivery in await consumer.receive_batch():
                        last = tasting.take(delivery.body)
                        channel.acknowledge(delivery)
                await channel.flush()
    tasting.look(meter)
