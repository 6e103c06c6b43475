from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from pamqp import commands
from trio.testing import wait_all_tasks_blocked

from iterum_sidecar.amqp import (
    ChannelsExhausted,
    Connection,
    ConnectionClosedByBroker,
    ConnectionLost,
    ProtocolViolation,
    codec,
    open_connection,
)
from tests.unit.amqp.false_broker import (
    PARAMETERS,
    BrokenPipe,
    FalseBroker,
    ending_with,
    frame,
    silence,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

GARBAGE = b"garbage!"
FORCED = commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0)


@asynccontextmanager
async def connected(broker: FalseBroker, heartbeat: int = 0) -> AsyncIterator[Connection]:
    broker.answers[commands.Connection.StartOk] = lambda _: commands.Connection.Tune(
        2047, 131072, heartbeat
    )
    async with open_connection(
        PARAMETERS, stream_factory=broker.stream_factory, heartbeat=heartbeat
    ) as connection:
        yield connection


async def test_epochs_grow(nursery: trio.Nursery) -> None:
    epochs = []
    for _ in range(3):
        broker = FalseBroker()
        nursery.start_soon(broker.serve)
        async with connected(broker) as connection:
            epochs.append(connection.epoch)
            assert "open" in repr(connection)
    assert epochs == sorted(set(epochs))


# The end of a connection, in the owner.


def close(broker: FalseBroker) -> None:
    broker.send(FORCED)


def hang_up_in_a_frame(broker: FalseBroker) -> None:
    broker.write(codec.encode_method(FORCED, 0)[:10])
    broker.hang_up()


ENDS: list[tuple[Callable[[FalseBroker], None], type[ConnectionLost]]] = [
    (close, ConnectionClosedByBroker),
    (FalseBroker.hang_up, ConnectionLost),
    (hang_up_in_a_frame, ConnectionLost),
    (lambda broker: broker.write(GARBAGE), ProtocolViolation),
    (lambda broker: broker.write(frame(codec.BODY, 0, b"")), ProtocolViolation),
    (lambda broker: broker.write(frame(codec.BODY, 9, b"")), ProtocolViolation),
    (lambda broker: broker.send(commands.Connection.CloseOk()), ProtocolViolation),
    (lambda broker: broker.send(commands.Channel.CloseOk(), 7), ProtocolViolation),
]


@pytest.mark.parametrize(("end", "error"), ENDS)
async def test_an_end_interrupts_an_owner_who_waits_for_something_else(
    broker: FalseBroker, end: Callable[[FalseBroker], None], error: type[ConnectionLost]
) -> None:
    with ending_with(error) as caught:
        async with connected(broker):
            end(broker)
            await trio.sleep_forever()
    assert type(caught.value) is error
    assert "lost" not in getattr(caught.value, "__notes__", [])


async def test_the_brokers_code_and_text_are_told_and_answered(broker: FalseBroker) -> None:
    with ending_with(ConnectionClosedByBroker, match="320 CONNECTION_FORCED") as caught:
        async with connected(broker):
            close(broker)
            await trio.sleep_forever()
    assert caught.value.code == 320
    assert caught.value.text == "CONNECTION_FORCED"
    await broker.wait_for(commands.Connection.CloseOk)


async def test_an_end_is_told_to_an_owner_who_never_waits_again(broker: FalseBroker) -> None:
    with ending_with(ConnectionLost):
        async with connected(broker):
            broker.hang_up()
            await wait_all_tasks_blocked()


async def wait_for_confirmation(broker: FalseBroker, connection: Connection) -> None:
    async with connection.open_channel(confirms=True) as channel:
        await channel.publish(b"", routing_key="queue")


async def wait_for_delivery(broker: FalseBroker, connection: Connection) -> None:
    async with connection.open_channel() as channel, channel.consume("queue") as consumer:
        await anext(consumer)


async def wait_for_batch(broker: FalseBroker, connection: Connection) -> None:
    async with connection.open_channel() as channel, channel.consume("queue") as consumer:
        await consumer.receive_batch()


async def wait_for_reply(broker: FalseBroker, connection: Connection) -> None:
    broker.answers[commands.Queue.Declare] = silence
    async with connection.open_channel() as channel:
        await channel.declare_queue("queue")


async def wait_for_turn(broker: FalseBroker, connection: Connection) -> None:
    broker.answers[commands.Queue.Declare] = silence
    async with connection.open_channel() as channel, trio.open_nursery() as nursery:

        async def declare() -> None:
            with pytest.raises(ConnectionLost):
                await channel.declare_queue("first")

        nursery.start_soon(declare)
        await wait_all_tasks_blocked()
        with pytest.raises(ConnectionLost) as caught:
            await channel.declare_queue("second")
    raise caught.value


async def wait_for_channel(broker: FalseBroker, connection: Connection) -> None:
    broker.answers[commands.Channel.Open] = silence
    async with connection.open_channel():
        pytest.fail("it is not open")


async def wait_while_blocked(broker: FalseBroker, connection: Connection) -> None:
    async with connection.open_channel(confirms=True) as channel:
        broker.send(commands.Connection.Blocked("low on memory"))
        await connection.wait_blocked()
        await channel.publish_soon(b"", routing_key="queue")


async def wait_for_blocked(broker: FalseBroker, connection: Connection) -> None:
    await connection.wait_blocked()


async def wait_for_unblocked(broker: FalseBroker, connection: Connection) -> None:
    broker.send(commands.Connection.Blocked("low on memory"))
    await connection.wait_blocked()
    await connection.wait_unblocked()


WAITERS = [
    wait_for_confirmation,
    wait_for_delivery,
    wait_for_batch,
    wait_for_reply,
    wait_for_turn,
    wait_for_channel,
    wait_while_blocked,
    wait_for_blocked,
    wait_for_unblocked,
]


@pytest.mark.parametrize("wait", WAITERS)
@pytest.mark.parametrize(
    ("end", "error"), [ENDS[0], ENDS[1], ENDS[3]], ids=["close", "hang-up", "garbage"]
)
async def test_every_waiter_gets_the_typed_error_and_the_owner_too(
    broker: FalseBroker,
    wait: Callable[[FalseBroker, Connection], Awaitable[None]],
    end: Callable[[FalseBroker], None],
    error: type[ConnectionLost],
) -> None:
    seen = []

    async def waiter(connection: Connection) -> None:
        with pytest.raises(error) as caught:
            await wait(broker, connection)
        seen.append(caught.value)

    with ending_with(error):
        async with connected(broker) as connection, trio.open_nursery() as nursery:
            nursery.start_soon(waiter, connection)
            await wait_all_tasks_blocked()
            end(broker)
    assert len(seen) == 1


async def test_a_flush_that_cannot_end_gets_the_typed_error() -> None:
    broker = FalseBroker(lockstep=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(broker.serve)
        with ending_with(ConnectionLost):
            async with connected(broker) as connection, connection.open_channel() as channel:
                broker.serving.cancel()
                await wait_all_tasks_blocked()
                connection._link.outbox.write(codec.HEARTBEAT_FRAME)
                async with trio.open_nursery() as inner:
                    inner.start_soon(channel.flush)
                    await wait_all_tasks_blocked()
                    broker.hang_up()


async def test_after_its_end_a_connection_opens_no_channel(broker: FalseBroker) -> None:
    async with connected(broker) as connection:
        pass
    with pytest.raises(ConnectionLost, match="left"):
        async with connection.open_channel():
            pytest.fail("it is not open")
    with pytest.raises(ConnectionLost, match="left"):
        await connection.wait_blocked()


# Exceptions of the owner's own.


async def test_the_owners_own_exception_comes_out_bare(broker: FalseBroker) -> None:
    cause = OSError("cause")
    with pytest.raises(ValueError, match="mine") as caught:
        async with connected(broker):
            raise ValueError("mine") from cause
    assert caught.value.__cause__ is cause
    assert caught.value.__context__ is cause or caught.value.__context__ is None
    assert commands.Connection.Close in [type(item) for _, item in broker.received]


async def test_the_only_loss_in_the_owners_nursery_comes_out_bare(broker: FalseBroker) -> None:
    with ending_with(ConnectionLost, match="hung up"):
        async with connected(broker) as connection, trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_delivery, broker, connection)
            await wait_all_tasks_blocked()
            broker.hang_up()


async def test_a_group_of_several_stays_a_group(broker: FalseBroker) -> None:
    with pytest.RaisesGroup(pytest.RaisesGroup(ConnectionLost, ConnectionLost)) as caught:
        async with (
            trio.open_nursery(),
            connected(broker) as connection,
            trio.open_nursery() as inner,
        ):
            inner.start_soon(wait_for_delivery, broker, connection)
            inner.start_soon(wait_for_confirmation, broker, connection)
            await wait_all_tasks_blocked()
            broker.hang_up()
    assert caught.value.exceptions


async def test_the_loss_of_another_connection_is_left_as_it_is(broker: FalseBroker) -> None:
    other = ConnectionLost("another one")
    with pytest.RaisesGroup(ConnectionLost):
        async with connected(broker), trio.open_nursery():
            raise other


async def test_a_group_of_the_owners_stays_as_it_is(broker: FalseBroker) -> None:
    with pytest.RaisesGroup(ValueError):
        async with connected(broker), trio.open_nursery():
            raise ValueError("mine")


async def test_an_exception_that_follows_a_loss_says_so(broker: FalseBroker) -> None:
    with ending_with(ValueError, match="mine") as caught:
        async with connected(broker):
            broker.hang_up()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
            raise ValueError("mine")
    assert caught.value.__notes__ == ["The AMQP connection was lost meanwhile: the broker hung up"]


async def test_a_cancelled_owner_says_goodbye(broker: FalseBroker) -> None:
    with trio.move_on_after(5) as scope:
        async with connected(broker) as connection, connection.open_channel():
            await trio.sleep_forever()
    assert scope.cancelled_caught
    closing = [type(item) for _, item in broker.received[-2:]]
    assert closing == [commands.Channel.Close, commands.Connection.Close]


# The goodbye.


async def test_a_goodbye_without_an_answer_ends_at_its_deadline(broker: FalseBroker) -> None:
    broker.answers[commands.Connection.Close] = silence
    async with connected(broker):
        begin = trio.current_time()
    assert trio.current_time() - begin == pytest.approx(3)


async def test_a_broker_that_hangs_up_at_the_goodbye_is_no_loss(broker: FalseBroker) -> None:
    broker.answers[commands.Connection.Close] = lambda _: broker.hang_up()
    async with connected(broker):
        begin = trio.current_time()
    assert trio.current_time() == begin


async def test_a_broker_that_closes_at_the_goodbye_is_heard(broker: FalseBroker) -> None:
    broker.answers[commands.Connection.Close] = lambda _: FORCED
    with pytest.raises(ConnectionClosedByBroker):
        async with connected(broker):
            pass


async def test_what_could_not_be_sent_before_the_end_is_a_loss() -> None:
    broker = FalseBroker(lockstep=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(broker.serve)
        with ending_with(ConnectionLost, match="could not be sent"):
            async with connected(broker):
                broker.serving.cancel()
                await wait_all_tasks_blocked()


@pytest.mark.parametrize("has_last_words", [True, False])
async def test_a_broken_stream_may_still_hold_the_brokers_reason(
    broker: FalseBroker, has_last_words: bool
) -> None:
    broker.client_stream = pipe = BrokenPipe(broker.client_stream)
    with ending_with(ConnectionLost) as caught:
        async with connected(broker) as connection:
            pipe.broken = True
            connection._link.outbox.write(codec.HEARTBEAT_FRAME)
            await wait_all_tasks_blocked()
            if has_last_words:
                close(broker)
            await trio.sleep_forever()
    if has_last_words:
        assert isinstance(caught.value, ConnectionClosedByBroker)
    else:
        assert "broken pipe" in str(caught.value)
        assert isinstance(caught.value.__cause__, trio.BrokenResourceError)


async def test_a_stream_that_breaks_while_it_is_read_is_a_loss(broker: FalseBroker) -> None:
    broker.client_stream = pipe = BrokenPipe(broker.client_stream)
    with ending_with(ConnectionLost, match="the connection broke: connection reset"):
        async with connected(broker):
            pipe.reset = True
            broker.write(codec.HEARTBEAT_FRAME)
            await trio.sleep_forever()


# Channels.


async def test_channel_max_is_respected_and_numbers_are_used_again(broker: FalseBroker) -> None:
    broker.answers[commands.Connection.StartOk] = lambda _: commands.Connection.Tune(2, 0, 0)
    async with open_connection(
        PARAMETERS, stream_factory=broker.stream_factory, heartbeat=0
    ) as connection:
        async with connection.open_channel(), connection.open_channel():
            with pytest.raises(ChannelsExhausted, match="all 2 channels"):
                async with connection.open_channel():
                    pytest.fail("it is not open")
        async with connection.open_channel(), connection.open_channel():
            pass
    opened = [
        channel for channel, item in broker.received if isinstance(item, commands.Channel.Open)
    ]
    assert opened == [1, 2, 1, 2]
