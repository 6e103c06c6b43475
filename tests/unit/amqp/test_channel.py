from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from pamqp import commands
from trio.testing import wait_all_tasks_blocked

from iterum_sidecar.amqp import (
    ChannelClosed,
    Connection,
    ConnectionLost,
    ProtocolViolation,
    QueueDeclared,
    ReplyTimeout,
    codec,
    open_connection,
)
from iterum_sidecar.amqp.calls import REPLY_SECONDS
from tests.unit.amqp.false_broker import PARAMETERS, FalseBroker, ending_with, silence
from tests.unit.amqp.test_connection import connected

if TYPE_CHECKING:
    from pamqp.base import Frame as Method

NOT_FOUND = commands.Channel.Close(404, "NOT_FOUND - no queue 'queue'", 50, 10)


async def test_declaring(broker: FalseBroker) -> None:
    async with connected(broker) as connection, connection.open_channel() as channel:
        declared = await channel.declare_queue(
            "queue", durable=True, exclusive=True, auto_delete=True, arguments={"x-max": 5}
        )
        assert declared == QueueDeclared("queue", 7, 1)
        assert "open" in repr(channel)
    request = await broker.wait_for(commands.Queue.Declare)
    assert dict(request) == {
        "ticket": 0,
        "queue": "queue",
        "passive": False,
        "durable": True,
        "exclusive": True,
        "auto_delete": True,
        "nowait": False,
        "arguments": {"x-max": 5},
    }


async def test_a_queue_may_have_any_name_that_rabbitmq_takes(broker: FalseBroker) -> None:
    async with connected(broker) as connection, connection.open_channel() as channel:
        for name in ("Schlange für $x {1}*", "x" * 255):
            assert (await channel.declare_queue(name, passive=True)).name == name
        with pytest.raises(ValueError, match=r"Queue\.Declare"):
            await channel.declare_queue("x" * 256)
        assert channel.is_open


async def test_deleting(broker: FalseBroker) -> None:
    broker.answers[commands.Queue.Delete] = lambda _: commands.Queue.DeleteOk(3)
    async with connected(broker) as connection, connection.open_channel() as channel:
        assert await channel.delete_queue("queue") == 3


async def test_a_closed_channel_says_why_and_is_answered(broker: FalseBroker) -> None:
    broker.answers[commands.Queue.Declare] = lambda _: NOT_FOUND
    async with connected(broker) as connection, connection.open_channel() as channel:
        with pytest.raises(ChannelClosed, match="404 NOT_FOUND") as caught:
            await channel.declare_queue("queue", passive=True)
        assert caught.value.code == 404
        assert caught.value.method == "queue.declare"
        await broker.wait_for(commands.Channel.CloseOk)
        assert not channel.is_open
        for use in (
            channel.declare_queue("queue"),
            channel.set_prefetch(5),
            channel.flush(),
        ):
            with pytest.raises(ChannelClosed, match="404"):
                await use
        # It was told, so leaving tells it no more, and its number is free.
        async with connection.open_channel():
            pass
    assert not broker.all_of(commands.Channel.Close)[1:]


async def test_a_closed_channel_that_nobody_noticed_is_told_when_it_is_left(
    broker: FalseBroker,
) -> None:
    async with connected(broker) as connection:
        with ending_with(ChannelClosed, match="406"):
            async with connection.open_channel():
                broker.send(commands.Channel.Close(406, "PRECONDITION_FAILED", 60, 80), 1)
                await wait_all_tasks_blocked()
        async with connection.open_channel():
            pass


async def test_the_bodys_exception_comes_before_an_unnoticed_close(broker: FalseBroker) -> None:
    async with connected(broker) as connection:
        with ending_with(ValueError, match="mine"):
            async with connection.open_channel():
                broker.send(NOT_FOUND, 1)
                await wait_all_tasks_blocked()
                raise ValueError("mine")


async def test_confirms_that_cannot_be_had_close_the_channel(broker: FalseBroker) -> None:
    broker.answers[commands.Confirm.Select] = lambda _: NOT_FOUND
    async with connected(broker) as connection:
        with pytest.raises(ChannelClosed):
            async with connection.open_channel(confirms=True):
                pytest.fail("it is not open")


# Replies that do not come.


async def test_a_call_without_a_reply_ends_at_its_deadline_and_ends_the_channel(
    broker: FalseBroker,
) -> None:
    broker.answers[commands.Queue.Declare] = silence
    async with connected(broker) as connection:
        async with connection.open_channel() as channel:
            begin = trio.current_time()
            with pytest.raises(ReplyTimeout, match=r"no answer to queue\.declare within 30 s"):
                await channel.declare_queue("queue")
            assert trio.current_time() - begin == pytest.approx(REPLY_SECONDS)
            await broker.wait_for(commands.Channel.Close)
            with pytest.raises(ChannelClosed, match=r"queue\.declare"):
                await channel.declare_queue("other")
        await use_another_channel(connection)


async def test_a_blocked_broker_has_time_to_reply(broker: FalseBroker) -> None:
    broker.answers[commands.Queue.Declare] = silence
    async with connected(broker) as connection, connection.open_channel() as channel:
        broker.send(commands.Connection.Blocked("low on disk"))

        async def unblock_and_reply() -> None:
            await trio.sleep(10 * REPLY_SECONDS)
            broker.send(commands.Connection.Unblocked())
            broker.send(commands.Queue.DeclareOk("queue", 0, 0), 1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(unblock_and_reply)
            await channel.declare_queue("queue")


async def use_another_channel(connection: Connection) -> None:
    async with connection.open_channel() as channel:
        await channel.set_prefetch(1)


async def test_a_cancelled_call_ends_its_channel_and_no_other(broker: FalseBroker) -> None:
    broker.answers[commands.Queue.Declare] = silence
    async with connected(broker) as connection, connection.open_channel() as other:
        async with connection.open_channel() as channel:
            with trio.move_on_after(1):
                await channel.declare_queue("queue")
            # The late reply is nobody's.
            broker.send(commands.Queue.DeclareOk("queue", 0, 0), 2)
            with pytest.raises(ChannelClosed, match=r"nobody awaits the answer to queue\.declare"):
                await channel.declare_queue("other")
        await other.set_prefetch(1)
        await use_another_channel(connection)


async def test_a_reply_that_comes_with_the_cancellation_ends_the_channel_too(
    broker: FalseBroker,
) -> None:
    broker.answers[commands.Basic.Consume] = silence
    async with connected(broker) as connection:
        async with connection.open_channel() as channel:
            scope = trio.CancelScope()

            async def consume() -> None:
                with scope:
                    async with channel.consume("queue"):
                        pytest.fail("it was cancelled")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(consume)
                await wait_all_tasks_blocked()
                scope.cancel()
                # Both happen before the consuming task runs again.
                reply = codec.encode_method(commands.Basic.ConsumeOk("1-1"), 1)
                channel._state.handle(codec.METHOD, reply[7:-1])
            broker.deliver(1)
            await wait_all_tasks_blocked()
            assert not channel.is_open
        await use_another_channel(connection)


async def test_who_waits_for_a_turn_may_be_cancelled_without_harm(broker: FalseBroker) -> None:
    broker.answers[commands.Queue.Declare] = silence
    async with (
        connected(broker) as connection,
        connection.open_channel() as channel,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(channel.declare_queue, "first")
        await wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await channel.declare_queue("second")
        broker.send(commands.Queue.DeclareOk("first", 0, 0), 1)
        await wait_all_tasks_blocked()
        assert channel.is_open


async def test_a_cancelled_opening_leaves_the_connection_usable(broker: FalseBroker) -> None:
    broker.answers[commands.Channel.Open] = silence
    async with connected(broker) as connection:
        with trio.move_on_after(1):
            async with connection.open_channel():
                pytest.fail("it is not open")
        broker.answers[commands.Channel.Open] = lambda _: commands.Channel.OpenOk()
        await use_another_channel(connection)


async def test_a_close_without_an_answer_ends_at_its_deadline_and_keeps_the_number(
    broker: FalseBroker,
) -> None:
    broker.answers[commands.Channel.Close] = silence
    async with connected(broker) as connection:
        begin = trio.current_time()
        async with connection.open_channel():
            pass
        assert trio.current_time() - begin == pytest.approx(3)
        async with connection.open_channel():
            pass
    opened = [
        channel for channel, item in broker.received if isinstance(item, commands.Channel.Open)
    ]
    assert opened == [1, 2]


async def test_both_ends_may_close_at_once(broker: FalseBroker) -> None:
    def close_too(_: Method) -> Method:
        broker.send(NOT_FOUND, 1)
        return commands.Channel.CloseOk()

    broker.answers[commands.Channel.Close] = close_too
    async with connected(broker) as connection:
        async with connection.open_channel():
            pass
        await use_another_channel(connection)
    assert len(broker.all_of(commands.Channel.CloseOk)) == 2


async def test_a_closed_channel_passes_over_what_was_on_its_way(broker: FalseBroker) -> None:
    def deliver_first(_: Method) -> Method:
        broker.deliver(1)
        broker.send(commands.Basic.Ack(5), 1)
        broker.send(commands.Channel.Flow(False), 1)
        return commands.Channel.CloseOk()

    broker.answers[commands.Channel.Close] = deliver_first
    async with connected(broker) as connection:
        async with connection.open_channel():
            pass
        await use_another_channel(connection)


# What no broker may do.


@pytest.mark.parametrize(
    "method",
    [
        commands.Queue.DeclareOk("queue", 0, 0),
        commands.Basic.Ack(1),
        commands.Basic.Deliver("1-1", 1, False, "", "queue"),
        commands.Connection.Close(320, "", 0, 0),
    ],
    ids=lambda method: method.name,
)
async def test_methods_out_of_place_end_the_connection(broker: FalseBroker, method: Method) -> None:
    with ending_with(ProtocolViolation):
        async with connected(broker) as connection, connection.open_channel():
            broker.send_content(method, b"")
            await trio.sleep_forever()


async def test_a_return_on_a_channel_without_confirms_ends_the_connection(
    broker: FalseBroker,
) -> None:
    with ending_with(ProtocolViolation, match="publishes none"):
        async with connected(broker) as connection, connection.open_channel():
            broker.send_content(commands.Basic.Return(312, "NO_ROUTE", "", "queue"), b"")
            await trio.sleep_forever()


async def test_the_reply_to_another_call_ends_the_connection(broker: FalseBroker) -> None:
    broker.answers[commands.Queue.Declare] = lambda _: commands.Basic.QosOk()
    with pytest.raises(ConnectionLost, match=r"basic\.qos-ok was not asked for"):
        async with connected(broker) as connection, connection.open_channel() as channel:
            await channel.declare_queue("queue")


async def test_a_message_over_the_limit_closes_its_channel_and_no_other(
    broker: FalseBroker,
) -> None:
    async with open_connection(
        PARAMETERS, stream_factory=broker.stream_factory, heartbeat=0, max_body_size=100
    ) as connection:
        async with connection.open_channel() as channel, channel.consume("queue") as consumer:
            broker.deliver(1, b"x" * 100)
            broker.deliver(2, b"x" * 101)
            with pytest.raises(ChannelClosed, match="101 bytes, where 100 are the limit") as caught:
                await consumer.receive_batch()
            assert caught.value.code == 311
            assert not caught.value.retryable
        await use_another_channel(connection)
