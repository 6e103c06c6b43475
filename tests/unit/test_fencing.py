"""Whose word counts for a fragment that was handed out before, where the ledger's own tests do not tell it apart."""

from __future__ import annotations

import pytest

from iterum_sidecar import fencing
from iterum_sidecar.entries import Admission, Entry
from iterum_sidecar.identity import OutputIdentity
from iterum_sidecar.ledger import Ledger

A, B = "a" * 64, "b" * 64
TestEntry = Entry[int, None]
TestLedger = Ledger[int, None]


@pytest.fixture
def ledger() -> TestLedger:
    return Ledger(OutputIdentity("pipeline", "step"), attempts_allowed=3)


def out(ledger: TestLedger, fragment_id: str = A, *, attempts: int = 0) -> TestEntry:
    admission, entry = ledger.admit(fragment_id, "files", 1, None, attempts=attempts)
    assert admission is Admission.NEW
    assert entry is not None
    ledger.is_ready(entry)
    ledger.hand_out(entry)
    return entry


def is_stray(ledger: TestLedger, *fragment_ids: str, source: int) -> bool:
    return ledger.take_result(fragment_ids, None, ["x"], source).stray


@pytest.mark.parametrize("attempts", [1, 2])
def test_of_what_was_handed_out_in_an_earlier_life_one_connection_may_speak(
    ledger: TestLedger, attempts: int
) -> None:
    """Whoever was given up then may wake, and send half of what it made beside all of what is made now."""
    entry = out(ledger, attempts=attempts)
    assert not is_stray(ledger, A, source=1)
    assert is_stray(ledger, A, source=2)
    assert ledger.done(A, 2) == (None, [])
    assert ledger.done(A, 1) == (entry, [])


@pytest.mark.parametrize("waits", [False, True])
def test_a_result_that_was_dropped_between_two_lives_cannot_be_followed_by_a_done_that_counts(
    ledger: TestLedger, waits: bool
) -> None:
    """Whether the second life is here and waits, or not yet: what was dropped would be lost with the acknowledgement."""
    first = out(ledger)
    assert ledger.connection_closed([first], death=True) == [first]
    ledger.close(first)
    if not waits:
        assert is_stray(ledger, A, source=1)
    _, second = ledger.admit(A, "files", 2, None, attempts=1)
    assert second is not None
    if waits:
        assert is_stray(ledger, A, source=1)
    ledger.is_ready(second)
    ledger.hand_out(second)
    assert ledger.done(A, 1) == (None, [])
    assert second.verdict is None


def test_a_doubt_ends_with_the_hand_out_that_it_is_of(ledger: TestLedger) -> None:
    """Or every later done by that connection would be doubted, and the fragment be a dead letter in the end."""
    entry = out(ledger, attempts=1)
    output = ledger.take_result([A], None, ["x"], 2)
    assert is_stray(ledger, A, source=1)
    assert ledger.done(A, 1) == (None, [])
    assert entry.doubted_by == {1}
    assert ledger.connection_closed([entry], death=False) == []
    assert ledger.output_safe(output) == [entry]
    ledger.again(entry)
    ledger.hand_out(entry)
    assert not entry.doubted
    assert ledger.done(A, 1) == (entry, [entry])


def test_of_a_dead_letter_that_is_put_back_one_connection_may_speak(ledger: TestLedger) -> None:
    """Its message carries no count, and the process that it was taken from may live."""
    first = out(ledger, attempts=2)
    assert ledger.connection_closed([first], death=True) == [first]
    ledger.close(first)
    second = out(ledger)
    assert not is_stray(ledger, A, source=2)
    assert is_stray(ledger, A, source=1)
    assert ledger.done(A, 1) == (None, [])
    assert ledger.done(A, 2) == (second, [])


def test_what_an_earlier_life_is_late_with_is_dropped_when_the_fragment_is_settled(
    ledger: TestLedger,
) -> None:
    """Published, it would be one output more, under an ID of its own."""
    entry = out(ledger, attempts=1)
    output = ledger.take_result([A], None, ["x"], 1)
    assert ledger.done(A, 1) == (entry, [])
    assert ledger.output_safe(output) == [entry]
    ledger.close(entry)
    assert is_stray(ledger, A, source=2)


def test_of_the_first_hand_out_a_done_counts_by_whichever_connection(ledger: TestLedger) -> None:
    entry = out(ledger)
    assert not is_stray(ledger, A, source=1)
    assert ledger.done(A, 2) == (entry, [])


def test_a_result_behind_its_done_is_another_and_waited_for_while_others_are_pending(
    ledger: TestLedger,
) -> None:
    """Taken for the one before it, it would be dropped."""
    entry = out(ledger)
    first = ledger.take_result([A], None, ["x"], 1)
    assert ledger.done(A, 1) == (entry, [])
    second = ledger.take_result([A], None, ["x"], 1)
    assert (second.stray, second.repeated, second.entries) == (False, False, [entry])
    assert second.output_id != first.output_id
    assert ledger.output_safe(first) == []
    assert ledger.output_safe(second) == [entry]


def test_a_run_that_began_before_the_first_hand_out_does_not_count_either(
    ledger: TestLedger,
) -> None:
    """It is of a life of which this program knows nothing, and its beginning was dropped."""
    _, entry = ledger.admit(A, "files", 1, None)
    assert entry is not None
    assert is_stray(ledger, A, source=1)
    ledger.is_ready(entry)
    ledger.hand_out(entry)
    assert is_stray(ledger, A, source=1)
    assert ledger.done(A, 1) == (None, [])
    assert not is_stray(ledger, A, source=2)
    assert ledger.done(A, 2) == (entry, [])


def test_those_are_known_longest_that_were_given_up_last(
    ledger: TestLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long ago each was given up for the first time."""
    monkeypatch.setattr(fencing, "GIVEN_UP_REMEMBERED", 2)

    def give_up(entry: TestEntry) -> None:
        assert ledger.connection_closed([entry], death=False) == [entry]
        ledger.again(entry)
        ledger.hand_out(entry)

    first = out(ledger, A)
    give_up(first)
    second = out(ledger, B)
    give_up(second)
    give_up(first)
    third = out(ledger, "c" * 64)
    give_up(third)
    for entry in (first, second, third):
        assert ledger.done(entry.fragment_id, 1) == (entry, [entry])
        ledger.close(entry)
    assert [is_stray(ledger, each, source=2) for each in (A, B, "c" * 64)] == [True, False, True]
