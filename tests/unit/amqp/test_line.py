"""A place in the line of a queue, and what becomes of those who wait for its end when everything is cancelled."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio
from pamqp import commands
from trio.testing import wait_all_tasks_blocked

from iterum_sidecar.amqp import open_connection
from iterum_sidecar.brokers.amqp import AmqpBroker, QueuePolicy
from iterum_sidecar.brokers.port import BrokerLost
from tests.unit.amqp.false_broker import ANSWERS, PARAMETERS, FalseBroker, silence

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pamqp.base import Frame as Method

    from iterum_sidecar.brokers.amqp_line import AmqpConsumer

#: The channel of the first place in the line: the first is that for publishing.
CONSUMING = 2


@asynccontextmanager
async def line(broker: FalseBroker) -> AsyncIterator[tuple[AmqpConsumer, trio.CancelScope]]:
    """Take a place in the line, and see to it that the end of the block, which is cancelled, takes no time."""
    async with (
        open_connection(PARAMETERS, stream_factory=broker.stream_factory) as connection,
        connection.open_channel(confirms=True) as publishing,
    ):
        began = trio.current_time()
        with trio.CancelScope() as scope:
            ours = AmqpBroker(connection, publishing, QueuePolicy())
            async with ours.consume("queue", 5) as consumer:
                yield consumer, scope
        assert scope.cancelled_caught
        assert trio.current_time() - began < 5


async def test_who_looks_once_more_while_everything_is_cancelled_does_not_wait_for_a_channel_that_is_closed(
    broker: FalseBroker,
) -> None:
    async with line(broker) as (consumer, scope), trio.open_nursery() as nursery:
        broker.answers[commands.Channel.Close] = silence
        nursery.start_soon(consumer.reopen)
        await broker.wait_for(commands.Channel.Close)
        scope.cancel("as at a second interrupt")
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
        broker.answers[commands.Channel.Close] = ANSWERS[commands.Channel.Close]
        broker.send(commands.Channel.CloseOk(), CONSUMING)


@pytest.mark.parametrize("ticks", range(8))
async def test_who_leaves_the_line_while_everything_is_cancelled_does_not_wait_for_a_consumer_that_has_ended(
    broker: FalseBroker, ticks: int
) -> None:
    def answer(method: Method) -> Method | None:
        broker.deliver(1, channel=CONSUMING)
        return ANSWERS[commands.Basic.Cancel](method)

    async def stop() -> None:
        with suppress(BrokerLost):
            await consumer.stop()

    broker.answers[commands.Basic.Cancel] = answer
    async with line(broker) as (consumer, scope), trio.open_nursery() as nursery:
        nursery.start_soon(stop)
        await broker.wait_for(commands.Basic.Cancel)
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
        scope.cancel("as at a second interrupt")
