"""Queues by the floor's straight line: pamqp's frames on a socket."""

from __future__ import annotations

import urllib.parse
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pamqp.commands
import pamqp.frame
import trio

from benchmarks.floor import Broker, connect
from benchmarks.stages.on_trio import at_a_time
from benchmarks.stages.task import IN_FLIGHT, Meter, Task, Tasting, description

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: Messages that go out in one write: what sixteen fragments lead to.
TOGETHER = 32


@asynccontextmanager
async def _connected(task: Task) -> AsyncIterator[Broker]:
    """Connect; in the end, wait until the broker has read everything."""
    parts = urllib.parse.urlsplit(task.broker)
    assert parts.hostname is not None
    broker = Broker(await connect(parts.hostname, parts.port or 5672))
    await broker.open(task.broker, task.prefetch)
    yield broker
    await broker.write(pamqp.frame.marshal(pamqp.commands.Connection.Close(200, "", 0, 0), 0))
    while not isinstance(await broker.frame(), pamqp.commands.Connection.CloseOk):
        pass


def publish(task: Task, meter: Meter) -> None:
    """Publish many messages with each write."""
    trio.run(_publish, task, meter)


async def _publish(task: Task, meter: Meter) -> None:
    bodies = [(task.queue, description(number)) for number in range(task.count)]
    parts = [bodies[start : start + TOGETHER] for start in range(0, task.count, TOGETHER)]
    nobody, _ = trio.open_memory_channel[tuple[int, bytes]](0)
    async with _connected(task) as broker:
        # Its confirms are read where its deliveries are, so it must consume something.
        empty = f"{task.queue}-empty"
        await broker.declare(empty)

        async def put(part: list[tuple[str, bytes]]) -> None:
            await broker.publish(*part)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(broker.consume, empty, nobody)
            with meter:
                await at_a_time(IN_FLIGHT // TOGETHER, put, parts)
            nursery.cancel_scope.cancel()
        await broker.write(pamqp.frame.marshal(pamqp.commands.Queue.Delete(0, empty), 1))


def consume(task: Task, meter: Meter) -> None:
    """Acknowledge each message, as many with each write as have come."""
    trio.run(_consume, task, meter)


async def _consume(task: Task, meter: Meter) -> None:
    tasting = Tasting(task)
    sender, receiver = trio.open_memory_channel[tuple[int, bytes]](task.count)
    async with _connected(task) as broker, trio.open_nursery() as nursery:
        with meter:
            nursery.start_soon(broker.consume, task.queue, sender)
            last = False
            while not last:
                arrived = [await receiver.receive()]
                arrived += [
                    receiver.receive_nowait()
                    for _ in range(receiver.statistics().current_buffer_used)
                ]
                for _, body in arrived:
                    last = tasting.take(body)
                acks = [pamqp.frame.marshal(pamqp.commands.Basic.Ack(tag), 1) for tag, _ in arrived]
                await broker.write(b"".join(acks))
        nursery.cancel_scope.cancel()
    tasting.look(meter)
