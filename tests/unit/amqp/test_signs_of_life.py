from __future__ import annotations

import pytest
import trio
from pamqp import commands

from iterum_sidecar.amqp import ConnectionLost, codec
from tests.unit.amqp.false_broker import FalseBroker, ending_with
from tests.unit.amqp.test_connection import connected


async def test_heartbeats_are_sent_when_nothing_else_is(broker: FalseBroker) -> None:
    async with connected(broker, heartbeat=10):
        for _ in range(10):
            await trio.sleep(10)
            broker.write(codec.HEARTBEAT_FRAME)
    beats = [item for _, item in broker.received if item == b""]
    assert 18 <= len(beats) <= 20


async def test_two_missed_heartbeats_end_the_connection(broker: FalseBroker) -> None:
    begin = trio.current_time()
    with ending_with(ConnectionLost, match="no sign of life from the broker for 20 s"):
        async with connected(broker, heartbeat=10):
            await trio.sleep(12)
            broker.write(codec.HEARTBEAT_FRAME)
            await trio.sleep_forever()
    # The look after the last sign comes within half an interval of it.
    assert trio.current_time() - begin == pytest.approx(35)


async def test_without_heartbeats_silence_is_no_end(broker: FalseBroker) -> None:
    async with connected(broker, heartbeat=0):
        await trio.sleep(80_000)
    assert not [item for _, item in broker.received if item == b""]


# Blocked and unblocked.


async def test_blocked_and_unblocked_are_observed(broker: FalseBroker) -> None:
    async with connected(broker) as connection:
        seen = [connection.blocked]
        broker.send(commands.Connection.Blocked("low on memory"))
        seen += [await connection.wait_blocked(), await connection.wait_blocked()]
        seen.append(connection.blocked)
        broker.send(commands.Connection.Unblocked())
        for _ in range(2):
            await connection.wait_unblocked()
        seen.append(connection.blocked)
    assert seen == [None, "low on memory", "low on memory", "low on memory", None]
