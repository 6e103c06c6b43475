from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from iterum_sidecar.amqp import Consumer, Delivery, ProtocolViolation
from iterum_sidecar.amqp.deliveries import Unacknowledged
from iterum_sidecar.amqp.properties import NO_PROPERTIES


async def cancel(_: Consumer) -> None:
    await trio.lowlevel.checkpoint()


CONSUMER = Consumer("tag", "queue", cancel)


@given(st.lists(st.sets(st.integers(0, 30)), max_size=8))
def test_many_are_joined_only_where_nothing_else_would_be_acknowledged(
    rounds: list[set[int]],
) -> None:
    ledger = Unacknowledged()
    for tag in range(1, 26):
        ledger.add(tag, CONSUMER)
    outstanding = set(range(1, 26))
    for wanted in rounds:
        tags, together = ledger.remove_many(list(wanted) * 2)
        assert tags == sorted(wanted & outstanding)
        if together:
            assert {tag for tag in outstanding if tag <= tags[together - 1]} == set(tags[:together])
        left = outstanding - wanted
        if tags[together:]:
            assert min(left) < tags[together]
        outstanding = left
        assert len(ledger) == len(outstanding)


def test_a_tag_can_be_removed_once() -> None:
    ledger = Unacknowledged()
    ledger.add(3, CONSUMER)
    assert ledger.remove(3)
    assert not ledger.remove(3)
    assert ledger.remove_many([3]) == ([], 0)


def test_a_tag_that_does_not_grow_is_a_violation() -> None:
    ledger = Unacknowledged()
    ledger.add(3, CONSUMER)
    ledger.remove(3)
    for tag in (3, 2, 0):
        with pytest.raises(ProtocolViolation):
            ledger.add(tag, CONSUMER)


def test_what_a_cancelled_consumer_held_is_forgotten() -> None:
    ledger = Unacknowledged()
    other = Consumer("other", "queue", cancel)
    for tag in (1, 2, 3):
        ledger.add(tag, other if tag == 2 else CONSUMER)
    ledger.forget_consumer(CONSUMER)
    assert not ledger.remove(1)
    assert ledger.remove(2)


def test_a_delivery_shows_no_content() -> None:
    delivery = Delivery(b"secret", NO_PROPERTIES, 4, True, "", "queue", 2, 9)
    assert repr(delivery) == (
        "<Delivery 4 of connection 2, 6 bytes, routing key 'queue', redelivered>"
    )
    assert delivery.headers == {}
