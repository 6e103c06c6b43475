"""Queues by pika's SelectConnection: its BlockingConnection waits for the confirm of each message before it sends the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pika

from benchmarks.stages.task import IN_FLIGHT, Meter, Task, Tasting, description

if TYPE_CHECKING:
    from collections.abc import Callable

    from pika.channel import Channel
    from pika.frame import Method
    from pika.spec import Basic


def _run(task: Task, begin: Callable[[Channel, Callable[[], None]], None]) -> None:
    """Connect, let `begin` begin on a channel, and return when it has called what it was given."""

    def opened(connection: pika.SelectConnection) -> None:
        def end() -> None:
            connection.close()

        connection.channel(on_open_callback=lambda channel: begin(channel, end))

    connection = pika.SelectConnection(
        pika.URLParameters(task.broker),
        on_open_callback=opened,
        on_close_callback=lambda connection, _reason: connection.ioloop.stop(),
    )
    connection.ioloop.start()


def publish(task: Task, meter: Meter) -> None:
    """Publish with many messages on their way; each confirm makes room for more."""
    bodies = [description(number) for number in range(task.count)]
    properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
    outstanding: dict[int, None] = {}
    published = 0

    def begin(channel: Channel, end: Callable[[], None]) -> None:
        def fill() -> None:
            nonlocal published
            while published < task.count and len(outstanding) < IN_FLIGHT:
                channel.basic_publish("", task.queue, bodies[published], properties)
                published += 1
                outstanding[published] = None

        def settled(frame: Method) -> None:
            method = frame.method
            meter.expect(method.NAME == "Basic.Ack", f"message {method.delivery_tag} is refused")
            if method.multiple:
                for tag in [each for each in outstanding if each <= method.delivery_tag]:
                    del outstanding[tag]
            else:
                del outstanding[method.delivery_tag]
            fill()
            if not outstanding:
                meter.stop()
                end()

        def ready(_frame: Method) -> None:
            meter.start()
            fill()

        channel.confirm_delivery(settled, callback=ready)

    _run(task, begin)


def consume(task: Task, meter: Meter) -> None:
    """Acknowledge each message as it comes."""
    tasting = Tasting(task)

    def begin(channel: Channel, end: Callable[[], None]) -> None:
        def received(
            channel: Channel, method: Basic.Deliver, _properties: pika.BasicProperties, body: bytes
        ) -> None:
            last = tasting.take(body)
            channel.basic_ack(method.delivery_tag)
            if last:
                meter.stop()
                end()

        def ready(_frame: Method) -> None:
            meter.start()
            channel.basic_consume(task.queue, received)

        channel.basic_qos(prefetch_count=task.prefetch, callback=ready)

    _run(task, begin)
    tasting.look(meter)
