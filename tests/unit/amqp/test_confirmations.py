from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import assert_no_checkpoints, wait_all_tasks_blocked

from iterum_sidecar.amqp import (
    ChannelClosed,
    Confirmation,
    MessageReturned,
    ProtocolViolation,
    PublishNacked,
)
from iterum_sidecar.amqp.confirmations import Confirmations

RETURNED = MessageReturned(312, "NO_ROUTE", "", "nowhere")


def outcome(confirmation: Confirmation) -> str:
    return repr(confirmation).removeprefix("<Confirmation ").removesuffix(">")


words = st.tuples(st.integers(0, 20), st.booleans(), st.booleans())


@given(st.lists(words, max_size=20))
def test_confirms_mean_what_a_naive_reading_says(said: list[tuple[int, bool, bool]]) -> None:
    ledger = Confirmations()
    confirmations = {number: ledger.add(None) for number in range(1, 21)}
    expected: dict[int, bool] = {}
    for number, multiple, acknowledged in said:
        if not number and not multiple:
            with pytest.raises(ProtocolViolation):
                ledger.settle(number, multiple, acknowledged)
            continue
        ledger.settle(number, multiple, acknowledged)
        meant = range(1, (number or 20) + 1) if multiple else [number]
        for each in meant:
            expected.setdefault(each, acknowledged)
    for number, confirmation in confirmations.items():
        assert confirmation.done == (number in expected)
        if number in expected:
            assert (outcome(confirmation) == "confirmed") == expected[number]


def test_a_confirm_of_a_message_never_sent_is_a_violation() -> None:
    ledger = Confirmations()
    ledger.add(None)
    for multiple in (False, True):
        with pytest.raises(ProtocolViolation):
            ledger.settle(2, multiple, True)


async def test_waiting_for_a_word_already_given_is_no_checkpoint() -> None:
    ledger = Confirmations()
    confirmation = ledger.add(None)
    ledger.settle(1, False, True)
    with assert_no_checkpoints():
        await confirmation.wait()


async def test_everybody_who_waits_gets_an_exception_of_their_own() -> None:
    ledger = Confirmations()
    confirmation = ledger.add(None)
    caught = []

    async def wait() -> None:
        with pytest.raises(PublishNacked) as info:
            await confirmation.wait()
        caught.append(info.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        ledger.settle(1, False, False)
    assert len(set(map(id, caught))) == 2


async def test_a_cancelled_waiter_leaves_the_confirmation_as_it_was() -> None:
    ledger = Confirmations()
    confirmation = ledger.add(None)
    with trio.CancelScope() as scope:
        scope.cancel()
        await confirmation.wait()
    assert not confirmation.done
    ledger.settle(1, False, True)
    await confirmation.wait()


async def test_a_return_settles_its_message_and_the_ack_after_it_no_other() -> None:
    ledger = Confirmations()
    first = ledger.add(None)
    assert repr(first) == "<Confirmation outstanding>"
    identifier = ledger.next_message_id()
    second = ledger.add(None)
    ledger.returned(identifier, RETURNED)
    assert not first.done
    with pytest.raises(MessageReturned, match="NO_ROUTE"):
        await second.wait()
    ledger.settle(2, True, True)
    await first.wait()
    with pytest.raises(MessageReturned):
        await second.wait()


def test_returns_of_the_callers_own_ids_come_in_the_order_of_publishing() -> None:
    ledger = Confirmations()
    confirmations = [ledger.add((name, "", "nowhere")) for name in ("a", "b", "a")]
    ledger.returned("a", RETURNED)
    assert [each.done for each in confirmations] == [True, False, False]
    ledger.returned("a", RETURNED)
    assert [each.done for each in confirmations] == [True, False, True]


def test_an_id_of_ours_that_a_caller_took_up_names_the_callers_message() -> None:
    ledger = Confirmations()
    identifier = ledger.next_message_id()
    ledger.add(None)
    ledger.settle(1, False, True)
    confirmation = ledger.add((identifier, "", "nowhere"))
    ledger.returned(identifier, RETURNED)
    assert confirmation.done


def test_the_return_of_a_message_nobody_awaits_is_a_violation() -> None:
    ledger = Confirmations()
    prefix = ledger.next_message_id()[:-1]
    ledger.add(("a", "", "elsewhere"))
    for identifier in (None, "a", "b", prefix, prefix + "x", prefix + "2", prefix + "9" * 5000):
        with pytest.raises(ProtocolViolation):
            ledger.returned(identifier, RETURNED)


async def test_failure_settles_what_is_outstanding_and_nothing_else() -> None:
    ledger = Confirmations()
    first, second = ledger.add(None), ledger.add(None)
    ledger.settle(1, False, True)
    ledger.fail(ChannelClosed(None, "test"))
    await first.wait()
    with pytest.raises(ChannelClosed):
        await second.wait()
