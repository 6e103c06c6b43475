"""Which message of a fragment's ID a delivery is of: what is taken for one that was dealt with is acknowledged unworked."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from iterum_sidecar.cargo import FragmentCargo
from iterum_sidecar.editions import (
    ATTEMPTS_HEADER,
    RETRIES_HEADER,
    TIME_HEADER,
    comes_again,
    count_in,
    fragment_edition,
    refusal_edition,
    was_worked,
)
from iterum_sidecar.entries import DeadLetterKind
from iterum_sidecar.identity import OutputIdentity
from iterum_sidecar.ledger import Ledger
from iterum_sidecar.messages import decode_remote_fragment, signature_of

if TYPE_CHECKING:
    from collections.abc import Hashable

ID = "a" * 64
TestLedger = Ledger[Any, FragmentCargo]


@dataclass(frozen=True)
class Message:
    """One delivery, as `brokers.port.Delivery` has it."""

    body: bytes
    headers: dict[str, Any] = field(default_factory=dict)
    redelivered: bool = False


def fragment(name: str = "x", fragment_id: str = ID) -> bytes:
    file = {"name": name, "path": f"iterum_data/{name}", "bucket": "b"}
    return json.dumps({"files": [file], "metadata": {"fragment_id": fragment_id}}).encode()


def edition_of(delivery: Message) -> Hashable:
    return fragment_edition(decode_remote_fragment(delivery.body), delivery.headers)


@pytest.fixture
def ledger() -> TestLedger:
    return Ledger(OutputIdentity("pipeline", "step"), attempts_allowed=3)


def dismiss(ledger: TestLedger, edition: Hashable) -> None:
    """Have a dead letter made of that edition."""
    cargo = FragmentCargo(None)
    kind = DeadLetterKind.UNREADABLE
    ledger.close(ledger.admit_unreadable(None, cargo, "its reason", kind, edition))


@pytest.mark.parametrize(
    ("headers", "count"),
    [
        ({}, 0),
        ({"n": 0}, 0),
        ({"n": 1}, 1),
        ({"n": 7}, 7),
        ({"n": -1}, 0),
        ({"n": "7"}, 0),
        ({"n": None}, 0),
    ],
)
def test_a_count_is_what_a_header_carries_if_it_is_one(headers: dict[str, Any], count: int) -> None:
    assert count_in(headers, "n") == count


@pytest.mark.parametrize(
    "other",
    [
        Message(fragment("y")),
        Message(fragment(fragment_id="b" * 64)),
        Message(fragment(), {ATTEMPTS_HEADER: 1}),
        Message(fragment(), {RETRIES_HEADER: 1}),
    ],
    ids=["other files", "another ID", "struck", "put back"],
)
def test_what_is_another_message_is_another_edition(other: Message) -> None:
    assert edition_of(Message(fragment())) == edition_of(Message(fragment(), redelivered=True))
    assert edition_of(Message(fragment())) != edition_of(other)


def test_what_was_refused_is_told_apart_by_why_by_what_it_says_and_by_retries() -> None:
    unreadable, conflict = DeadLetterKind.UNREADABLE, DeadLetterKind.CONFLICT
    first = refusal_edition(Message(b"x"), unreadable)
    assert first == refusal_edition(Message(b"x", redelivered=True), unreadable)
    others = [
        refusal_edition(Message(b"y"), unreadable),
        refusal_edition(Message(b"x"), conflict),
        refusal_edition(Message(b"x", {RETRIES_HEADER: 1}), unreadable),
    ]
    assert first not in others


@pytest.mark.parametrize(
    ("headers", "redelivered", "again"),
    [
        ({}, False, False),
        ({}, True, True),
        ({ATTEMPTS_HEADER: 1}, False, True),
        ({ATTEMPTS_HEADER: 1}, True, True),
    ],
)
def test_what_was_dismissed_comes_again_unless_the_broker_has_never_delivered_it(
    ledger: TestLedger, headers: dict[str, Any], redelivered: bool, again: bool
) -> None:
    """A dead letter that somebody has put back by hand, without a header, is worked; what was struck only we make."""
    delivery = Message(fragment(), headers, redelivered)
    edition = edition_of(delivery)
    assert not comes_again(delivery, edition, ledger)
    assert not was_worked(delivery, ledger)
    dismiss(ledger, edition)
    assert comes_again(delivery, edition, ledger) is again
    assert was_worked(delivery, ledger) is again


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"no fragment", DeadLetterKind.UNREADABLE), (fragment(), DeadLetterKind.CONFLICT)],
)
def test_the_last_look_knows_what_was_refused_here(
    ledger: TestLedger, body: bytes, kind: DeadLetterKind
) -> None:
    delivery = Message(body, redelivered=True)
    assert not was_worked(delivery, ledger)
    dismiss(ledger, refusal_edition(delivery, kind))
    assert was_worked(delivery, ledger)
    assert not was_worked(Message(body), ledger), "somebody has put it back"


def test_the_last_look_knows_what_was_settled_here_and_no_other_of_its_id(
    ledger: TestLedger,
) -> None:
    delivery = Message(fragment())
    message = decode_remote_fragment(delivery.body)
    _, entry = ledger.admit(ID, signature_of(message), delivery, FragmentCargo(message))
    assert entry is not None
    assert not was_worked(delivery, ledger)
    ledger.is_ready(entry)
    ledger.hand_out(entry)
    ledger.done(ID)
    ledger.close(entry)
    assert was_worked(delivery, ledger)
    assert not was_worked(Message(fragment("y"), redelivered=True), ledger)


def test_a_dead_letter_that_was_put_back_with_its_headers_is_worked_whoever_had_it_in_between(
    ledger: TestLedger,
) -> None:
    """By other means than ours, which count: a shovel, or a hand. Another sidecar that had it and died makes it redelivered."""
    dismiss(ledger, edition_of(Message(fragment())))
    assert was_worked(Message(fragment(), redelivered=True), ledger)
    put_back = Message(fragment(), {TIME_HEADER: "2026-11-28T23:50:00.000+00:00"}, redelivered=True)
    assert not was_worked(put_back, ledger)
