"""What the verdicts of the ledger rest on where two things happen to a fragment: found by what no other test noticed (`tests/mutation`)."""

from __future__ import annotations

import pytest

from iterum_sidecar.entries import Admission, DeadLetterKind, Entry, Verdict
from iterum_sidecar.identity import OutputIdentity
from iterum_sidecar.ledger import Ledger

A, B, C = "a" * 64, "b" * 64, "c" * 64
FILES = ("some files",)
TestEntry = Entry[int, None]
TestLedger = Ledger[int, None]


@pytest.fixture
def ledger() -> TestLedger:
    """A ledger that allows three attempts."""
    return Ledger(OutputIdentity("pipeline", "step"), attempts_allowed=3)


def out(ledger: TestLedger, fragment_id: str = A, *, attempts: int = 0) -> TestEntry:
    admission, entry = ledger.admit(fragment_id, FILES, 1, None, attempts=attempts)
    assert admission is Admission.NEW
    assert entry is not None
    ledger.is_ready(entry)
    ledger.hand_out(entry)
    return entry


def test_what_was_out_at_a_breach_is_handed_out_alone_from_then_on(ledger: TestLedger) -> None:
    """Any of them may have led to it, and may kill the transformation next."""
    entries = [out(ledger, A), out(ledger, B, attempts=1)]
    ledger.breach("not JSON")
    assert [entry.suspect for entry in entries] == [True, True]


def test_a_suspect_loses_each_attempt_but_the_last_beside_others(ledger: TestLedger) -> None:
    """Otherwise it would die beside others for ever, and never be handed out alone."""
    suspect, fresh = out(ledger, A, attempts=1), out(ledger, B)
    assert set(ledger.connection_closed([suspect, fresh], death=True)) == {suspect, fresh}
    assert (suspect.attempts, suspect.verdict) == (2, Verdict.STRIKE)
    assert (fresh.attempts, fresh.verdict) == (0, Verdict.AGAIN)


@pytest.mark.parametrize("attempts", [0, 2])
def test_a_drain_does_not_undo_a_verdict_that_has_fallen(ledger: TestLedger, attempts: int) -> None:
    """Or the message would be given back beside its copy with a higher count, or beside its dead letter."""
    entry = out(ledger, A, attempts=attempts)
    assert ledger.connection_closed([entry], death=True) == [entry]
    verdict = entry.verdict
    assert verdict in {Verdict.STRIKE, Verdict.DEAD_LETTER}
    counted = ledger.dead_letters_in_a_row
    assert ledger.give_back(entry) == []
    assert entry.verdict is verdict
    assert ledger.dead_letters_in_a_row == counted


def test_what_was_put_back_waits_for_a_late_result_of_its_earlier_life_under_the_same_id(
    ledger: TestLedger,
) -> None:
    """It is published once, and acknowledged only when that is safe."""
    entry = out(ledger)
    ledger.refuse_result([A], "outside the volume")
    assert ledger.done(A) == (entry, [entry])
    assert entry.verdict is Verdict.DEAD_LETTER
    ledger.close(entry)
    late = ledger.take_result([A], None, ["x"])
    assert late.late
    second = out(ledger)
    again = ledger.take_result([A], None, ["x"])
    assert (again.output_id, again.repeated) == (late.output_id, True)
    assert ledger.done(A) == (second, [])
    assert ledger.output_safe(late) == [second]
    assert second.verdict is Verdict.ACKNOWLEDGE


@pytest.mark.parametrize(("attempts", "suspect"), [(1, False), (0, True)])
def test_what_a_second_delivery_tells_of_deaths_makes_a_suspect_and_none_clears_one(
    ledger: TestLedger, attempts: int, suspect: bool
) -> None:
    """Or poison that has killed elsewhere is handed out beside innocents."""
    entry = out(ledger)
    ledger.admit(A, FILES, 2, None, attempts=attempts, suspect=suspect)
    assert entry.suspect
    ledger.admit(A, FILES, 3, None)
    assert entry.suspect


def test_what_waits_to_be_handed_out_again_is_given_back_at_a_drain(ledger: TestLedger) -> None:
    entry = out(ledger)
    assert ledger.connection_closed([entry], death=False) == [entry]
    verdicts = [entry.verdict]
    assert ledger.give_back(entry) == [entry]
    assert [*verdicts, entry.verdict] == [Verdict.AGAIN, Verdict.GIVE_BACK]


def test_a_late_result_is_told_apart_from_those_before_it(ledger: TestLedger) -> None:
    """Under the ID of the first it would overwrite what that one was."""
    entry = out(ledger)
    first = ledger.take_result([A], None, ["x"])
    assert ledger.done(A) == (entry, [])
    assert ledger.output_safe(first) == [entry]
    ledger.close(entry)
    late = ledger.take_result([A], None, ["x"])
    assert late.late
    assert late.output_id != first.output_id


def test_an_older_copy_does_not_change_the_count_with_which_a_fragment_is_being_struck(
    ledger: TestLedger,
) -> None:
    """Or its own next life would be taken for a copy too, and be acknowledged unworked."""
    entry = out(ledger)
    ledger.breach("not JSON")
    ledger.connection_closed([entry], death=False)
    ledger.again(entry)
    ledger.hand_out(entry)
    assert ledger.connection_closed([entry], death=True) == [entry]
    assert (entry.verdict, entry.attempts) == (Verdict.STRIKE, 2)
    assert ledger.admit(A, FILES, 2, None, attempts=1) == (Admission.JOINED, entry)
    assert entry.attempts == 2
    assert ledger.admit(A, FILES, 3, None, attempts=2)[0] is Admission.NEW


def test_a_connection_that_closes_does_not_undo_a_done(ledger: TestLedger) -> None:
    entry = out(ledger)
    output = ledger.take_result([A], None, ["x"])
    assert ledger.done(A) == (entry, [])
    assert ledger.connection_closed([entry], death=True) == []
    assert (entry.attempts, entry.suspect) == (0, False)
    assert ledger.output_safe(output) == [entry]
    assert entry.verdict is Verdict.ACKNOWLEDGE


def test_what_is_with_the_transformation_cannot_be_rejected(ledger: TestLedger) -> None:
    entry = out(ledger)
    with pytest.raises(AssertionError, match="should be WAITING"):
        ledger.reject(entry, "not found", DeadLetterKind.INPUT_MISSING)
    assert (entry.verdict, entry.reason) == (None, "")


def test_a_verdict_is_carried_out_once(ledger: TestLedger) -> None:
    entry = out(ledger)
    ledger.done(A)
    ledger.close(entry)
    with pytest.raises(AssertionError, match="no verdict that closes it"):
        ledger.close(entry)
