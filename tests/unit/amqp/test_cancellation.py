"""A scenario with everything in it, cancelled at each of its steps: the connection must live on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from pamqp import commands
from pamqp.header import ContentHeader

from tests.unit.amqp.test_connection import connected

if TYPE_CHECKING:
    from pamqp.base import Frame as Method

    from iterum_sidecar.amqp import Connection
    from tests.unit.amqp.false_broker import FalseBroker

# One more than the scenario has.
STEPS = 16


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope just before the given step of the task that made this."""

    def __init__(self, scope: trio.CancelScope, steps: int) -> None:
        self.task = trio.lowlevel.current_task()
        self.scope = scope
        self.steps = steps

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.steps -= 1
            if not self.steps:
                self.scope.cancel()


def consume_and_deliver(broker: FalseBroker, method: commands.Basic.Consume) -> Method | None:
    channel, _ = broker.received[-1]
    broker.send(commands.Basic.ConsumeOk(method.consumer_tag or ""), channel)
    for number in (1, 2, 3):
        broker.deliver(number, channel=channel)
    return None


def confirm(broker: FalseBroker, channel: int) -> None:
    published = [
        item
        for number, item in broker.received
        if number == channel and isinstance(item, commands.Basic.Publish | commands.Channel.Open)
    ]
    count = 0
    for item in published:
        count = 0 if isinstance(item, commands.Channel.Open) else count + 1
    broker.send(commands.Basic.Ack(count, True), channel)


async def everything(connection: Connection, broker: FalseBroker) -> None:
    async with connection.open_channel(confirms=True) as channel:
        await channel.declare_queue("queue")
        async with channel.consume("queue", prefetch=5) as consumer:
            delivery = await anext(consumer)
            confirmation = await channel.publish_soon(delivery.body, routing_key="other")
            await channel.flush()
            await trio.lowlevel.checkpoint()
            confirm(broker, channel._number)
            await confirmation.wait()
            assert channel.acknowledge(delivery)
            await consumer.receive_batch()


def check_what_was_received(broker: FalseBroker) -> None:
    is_open: dict[int, bool] = {}
    for (channel, item), (_, following) in zip(
        broker.received, [*broker.received[1:], (0, None)], strict=True
    ):
        if channel == 0:
            continue
        if isinstance(item, commands.Channel.Open):
            assert not is_open.get(channel)
            is_open[channel] = True
            continue
        assert is_open[channel], f"{item!r} on channel {channel}, which is closed"
        if isinstance(item, commands.Channel.Close):
            is_open[channel] = False
        assert isinstance(item, commands.Basic.Publish) == isinstance(following, ContentHeader)
    assert not any(is_open.values())


@pytest.mark.parametrize("steps", range(1, STEPS + 1))
async def test_a_cancellation_at_any_step_harms_nothing_else(
    broker: FalseBroker, steps: int
) -> None:
    broker.answers[commands.Basic.Consume] = lambda method: consume_and_deliver(
        broker,
        method,  # type: ignore[arg-type]
    )
    async with connected(broker) as connection:
        with trio.CancelScope() as scope:
            instrument = CancelAtStep(scope, steps)
            trio.lowlevel.add_instrument(instrument)
            try:
                await everything(connection, broker)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        if steps == STEPS:
            assert not scope.cancel_called
        await everything(connection, broker)
    check_what_was_received(broker)
