"""The broker in memory keeps the rules that the sidecar relies on in a real one."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from iterum_sidecar.brokers.memory import (
    QUICK,
    SHARED_ALLOWANCE,
    MemoryBroker,
    MemoryConsumer,
    MemoryDelivery,
)
from iterum_sidecar.brokers.port import MessageUnroutable


def broker_with(*bodies: bytes) -> MemoryBroker:
    broker = MemoryBroker()
    for body in bodies:
        broker.put("in", body)
    return broker


def bodies(deliveries: list[MemoryDelivery]) -> list[bytes]:
    return [delivery.body for delivery in deliveries]


def in_queue(broker: MemoryBroker) -> list[tuple[bytes, bool]]:
    return [(message.body, message.redelivered) for message in broker.messages("in")]


async def nothing_arrives(consumer: MemoryConsumer) -> bool:
    arrived: list[MemoryDelivery] = []

    async def receive() -> None:
        arrived.extend(await consumer.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return not arrived


async def test_no_more_than_the_window_is_unacknowledged() -> None:
    broker = broker_with(b"1", b"2", b"3", b"4")
    async with broker.consume("in", 2) as consumer:
        first, second = await consumer.receive()
        assert bodies([first, second]) == [b"1", b"2"]
        assert await nothing_arrives(consumer)
        broker.acknowledge(second)
        assert bodies(await consumer.receive()) == [b"3"]
        assert await nothing_arrives(consumer)
        assert await consumer.waiting() == 1


async def test_to_grow_is_to_allow_so_many_more() -> None:
    broker = broker_with(b"1", b"2", b"3", b"4")
    async with broker.consume("in", 1) as consumer:
        assert len(await consumer.receive()) == 1
        await consumer.grow(2)
        assert bodies(await consumer.receive()) == [b"2", b"3"]
        assert await nothing_arrives(consumer)


async def test_an_acknowledged_message_is_gone_and_nothing_is_acknowledged_twice() -> None:
    broker = broker_with(b"1", b"2", b"3")
    async with broker.consume("in", 1) as consumer:
        (first,) = await consumer.receive()
        broker.acknowledge(first)
        broker.acknowledge(first)
        broker.give_back(first)
        (second,) = await consumer.receive()
        assert second.body == b"2"
        assert await nothing_arrives(consumer)
    assert in_queue(broker) == [(b"2", True), (b"3", False)]


async def test_receive_waits_for_a_message() -> None:
    broker = MemoryBroker()
    received: list[MemoryDelivery] = []

    async def receive(consumer: MemoryConsumer) -> None:
        received.extend(await consumer.receive())

    async with broker.consume("in", 5) as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(receive, consumer)
        await wait_all_tasks_blocked()
        assert received == []
        broker.put("in", b"1", {"x-iterum-attempts": 2})
        await wait_all_tasks_blocked()
        assert not received[0].redelivered
    assert bodies(received) == [b"1"]
    assert received[0].headers == {"x-iterum-attempts": 2}


async def test_what_a_leaving_consumer_owes_goes_back_in_order_and_to_the_front() -> None:
    broker = broker_with(b"1", b"2", b"3", b"4")
    async with broker.consume("in", 3) as consumer:
        _, second, _ = await consumer.receive()
        broker.acknowledge(second)
    assert in_queue(broker) == [(b"1", True), (b"3", True), (b"4", True)]


async def test_what_was_never_received_goes_back_too() -> None:
    broker = broker_with(b"1", b"2", b"3")
    async with broker.consume("in", 2):
        assert in_queue(broker) == [(b"3", False)]
    assert in_queue(broker) == [(b"1", True), (b"2", True), (b"3", False)]


async def test_a_message_given_back_comes_again_at_once_and_says_so() -> None:
    broker = broker_with(b"1", b"2")
    async with broker.consume("in", 1) as consumer:
        (first,) = await consumer.receive()
        broker.give_back(first)
        (again,) = await consumer.receive()
        assert (again.body, again.redelivered) == (b"1", True)
        broker.acknowledge(first)
        assert await nothing_arrives(consumer)


async def test_messages_given_back_one_after_the_other_keep_their_order() -> None:
    broker = broker_with(b"1", b"2", b"3", b"4")
    async with broker.consume("in", 3) as consumer:
        for delivery in await consumer.stop():
            broker.give_back(delivery)
        assert in_queue(broker) == [(b"1", True), (b"2", True), (b"3", True), (b"4", False)]


async def test_a_message_given_back_takes_the_place_that_it_had() -> None:
    broker = broker_with(b"1", b"2", b"3", b"4")
    async with broker.consume("in", 3) as consumer:
        first, second, third = await consumer.stop()
        for delivery in (third, first, second):
            broker.give_back(delivery)
        assert [body for body, _ in in_queue(broker)] == [b"1", b"2", b"3", b"4"]


async def test_stop_returns_what_was_not_received_and_lets_the_rest_be_acknowledged() -> None:
    broker = broker_with(b"1", b"2")
    async with broker.consume("in", 5) as consumer:
        (first, second) = await consumer.receive()
        broker.put("in", b"3")
        arrived = await consumer.stop()
        assert bodies(list(arrived)) == [b"3"]
        broker.put("in", b"4")
        assert await nothing_arrives(consumer)
        broker.acknowledge(first)
        broker.give_back(second)
        assert in_queue(broker) == [(b"2", True), (b"4", False)]
        assert await consumer.waiting() == 2
    assert in_queue(broker) == [(b"2", True), (b"3", True), (b"4", False)]


async def test_resume_takes_a_place_in_the_line_again_within_the_window() -> None:
    broker = broker_with(b"1")
    async with broker.consume("in", 2) as consumer:
        assert len(await consumer.receive()) == 1
        await consumer.stop()
        broker.put("in", b"2")
        broker.put("in", b"3")
        await consumer.resume()
        await consumer.resume()
        assert bodies(await consumer.receive()) == [b"2"]
        assert await nothing_arrives(consumer)


async def test_reopen_gives_back_what_is_owed_and_counts_what_waits() -> None:
    broker = broker_with(b"1", b"2", b"3")
    async with broker.consume("in", 2) as consumer:
        first, second = await consumer.receive()
        broker.acknowledge(first)
        assert await consumer.reopen() == 2
        assert in_queue(broker) == [(b"2", True), (b"3", True)]
        broker.acknowledge(second)
        assert len(in_queue(broker)) == 2
        await consumer.resume()
        assert bodies(await consumer.receive()) == [b"2", b"3"]


async def test_reopen_counts_nothing_when_all_was_acknowledged() -> None:
    broker = broker_with(b"1")
    async with broker.consume("in", 2) as consumer:
        broker.acknowledge((await consumer.receive())[0])
        assert await consumer.reopen() == 0
        broker.put("in", b"2")
        assert await consumer.reopen() == 1


async def test_consumers_of_one_queue_take_turns() -> None:
    broker = broker_with()
    async with broker.consume("in", 9) as one, broker.consume("in", 9) as other:
        for number in range(4):
            broker.put("in", b"%d" % number)
        assert bodies(await one.receive()) == [b"0", b"2"]
        assert bodies(await other.receive()) == [b"1", b"3"]


async def test_what_one_consumer_owed_goes_to_another_when_it_leaves() -> None:
    broker = broker_with(b"1", b"2")
    async with broker.consume("in", 2) as one:
        assert len(await one.receive()) == 2
        async with broker.consume("in", 1) as other:
            one.close()
            (first,) = await other.receive()
            assert (first.body, first.redelivered) == (b"1", True)


async def test_publishing_to_a_queue_that_is_not_there_is_told_by_the_confirmation() -> None:
    broker = MemoryBroker()
    confirmation = await broker.publish("out", b"1")
    with pytest.raises(MessageUnroutable, match="'out'"):
        await confirmation.wait()
    await broker.ensure_queue("out", durable=True)
    await (await broker.publish("out", b"2", {"k": "v"})).wait()
    await broker.flush()
    assert [(each.body, each.headers) for each in broker.messages("out")] == [(b"2", {"k": "v"})]


async def test_a_publishers_headers_are_its_own() -> None:
    broker = broker_with()
    headers = {"k": 1}
    broker.put("in", b"1", headers)
    headers["k"] = 2
    assert broker.messages("in")[0].headers == {"k": 1}


@given(
    window=st.integers(1, 4),
    steps=st.lists(st.sampled_from(["put", "take", "acknowledge", "give back", "reopen"])),
)
def test_no_message_is_lost_or_doubled_whatever_happens(window: int, steps: list[str]) -> None:
    async def run() -> None:
        broker = MemoryBroker()
        put = 0
        acknowledged: list[bytes] = []
        held: list[MemoryDelivery] = []
        async with AsyncExitStack() as stack:
            consumer = await stack.enter_async_context(broker.consume("in", window))
            for step in steps:
                if step == "put":
                    broker.put("in", b"%d" % put)
                    put += 1
                elif step == "take":
                    with trio.move_on_after(0):
                        held += await consumer.receive()
                elif step == "reopen":
                    await consumer.reopen()
                    held.clear()
                    await consumer.resume()
                elif held and step == "acknowledge":
                    acknowledged.append(held[0].body)
                    broker.acknowledge(held.pop(0))
                elif held:
                    broker.give_back(held.pop())
                assert len(held) <= window
        left = [body for body, _ in in_queue(broker)]
        assert sorted(left + acknowledged) == sorted(b"%d" % number for number in range(put))

    trio.run(run)


async def test_a_shared_queue_gives_little_to_each_until_they_are_quick(
    autojump_clock: trio.testing.MockClock,
) -> None:
    broker = MemoryBroker()
    broker.share("work")
    for number in range(100):
        broker.put("work", str(number).encode())
    async with broker.consume("work", 32) as slow, broker.consume("work", 32) as quick:
        first = await slow.receive()
        theirs = list(await quick.receive())
        assert (len(first), len(theirs)) == (SHARED_ALLOWANCE, SHARED_ALLOWANCE)

        await trio.sleep(QUICK)
        broker.acknowledge(first[0])
        assert slow.unsettled == SHARED_ALLOWANCE

        while quick.unsettled < 32 and theirs:
            broker.acknowledge(theirs.pop())
            await trio.lowlevel.checkpoint()
            if not theirs:
                theirs += await quick.receive()
        assert quick.unsettled == 32
        assert slow.unsettled == SHARED_ALLOWANCE


async def test_one_that_asks_for_more_of_a_shared_queue_gets_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    broker = MemoryBroker()
    broker.share("work")
    for number in range(100):
        broker.put("work", str(number).encode())
    async with broker.consume("work", 32) as gathering:
        await gathering.grow(8)
        assert gathering.unsettled == 40
