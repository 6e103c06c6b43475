"""What the verdicts of the ledger rest on where two things happen to a fragment: found by what no other test noticed (`tests/mutation`)."""

from __future__ import annotations

import pytest

from iterum_sidecar import ledger as ledger_module
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


def test_each_dead_letter_counts_once_whatever_made_it(ledger: TestLedger) -> None:
    """Of so many in a row intake makes a pause."""
    _, waiting = ledger.admit(B, FILES, 1, None)
    assert waiting is not None
    assert ledger.reject(waiting, "not found") == [waiting]
    assert ledger.dead_letters_in_a_row == 1
    ledger.connection_closed([out(ledger, attempts=2)], death=True)
    assert ledger.dead_letters_in_a_row == 2
    ledger.connection_closed([out(ledger, C)], death=True)
    assert ledger.dead_letters_in_a_row == 2, "it is tried again"


def test_what_has_a_verdict_is_in_flight_no_more(ledger: TestLedger) -> None:
    entry = out(ledger)
    assert ledger.in_flight([A, B]) == [entry]
    ledger.done(A)
    assert ledger.in_flight([A, B]) == []


def test_a_fragment_says_what_its_last_attempt_was_lost_to(ledger: TestLedger) -> None:
    entry = out(ledger)
    ledger.connection_closed([entry], death=True, kind=DeadLetterKind.TIMED_OUT)
    assert (entry.verdict, entry.lost_to) == (Verdict.STRIKE, DeadLetterKind.TIMED_OUT)


def test_what_came_of_the_last_that_were_struck_is_known_and_of_no_more(
    ledger: TestLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing grows with the length of a queue."""
    monkeypatch.setattr(ledger_module, "STRUCK", 2)
    for fragment_id in (A, B, C):
        entry = out(ledger, fragment_id)
        ledger.output_safe(ledger.take_result([fragment_id], None, ["x"], 1))
        assert ledger.connection_closed([entry], death=True) == [entry]
        ledger.close(entry)
    known = []
    for fragment_id in (A, B, C):
        out(ledger, fragment_id, attempts=1)
        known.append(ledger.take_result([fragment_id], None, ["x"], 2).repeated)
    assert known == [False, True, True]


def test_what_is_to_be_handed_out_again_cannot_be_closed(ledger: TestLedger) -> None:
    entry = out(ledger)
    assert ledger.connection_closed([entry], death=False) == [entry]
    with pytest.raises(AssertionError, match="no verdict that closes it"):
        ledger.close(entry)
    assert len(ledger) == 1


def test_a_second_delivery_that_tells_of_no_death_makes_no_suspect(ledger: TestLedger) -> None:
    """Whenever a connection to the broker is lost, all that is in flight is delivered again."""
    entry = out(ledger)
    assert ledger.admit(A, FILES, 2, None) == (Admission.JOINED, entry)
    assert not entry.suspect


def test_a_second_result_of_several_is_another_though_one_of_them_was_settled_between(
    ledger: TestLedger,
) -> None:
    one, other = out(ledger, A), out(ledger, B)
    first = ledger.take_result([A, B], None, ["x"])
    ledger.output_safe(first)
    assert ledger.done(A) == (one, [one])
    ledger.close(one)
    second = ledger.take_result([A, B], None, ["x"])
    assert (second.repeated, second.entries) == (False, [other])
    assert second.output_id != first.output_id


def test_what_comes_of_two_counts_on_when_one_of_them_has_become_a_dead_letter(
    ledger: TestLedger,
) -> None:
    """Otherwise the next result of both would be taken for the first one, and not be published."""
    a, b = out(ledger, A), out(ledger, B)
    first = ledger.take_result([A, B], None, ["x"], 1)
    assert ledger.refuse_result([A], "outside the volume", source=1) == 1
    ledger.output_safe(first)
    assert ledger.done(A, 1) == (a, [a])
    assert a.verdict is Verdict.DEAD_LETTER
    ledger.close(a)
    second = ledger.take_result([A, B], None, ["x"], 1)
    assert (second.repeated, second.stray) == (False, False)
    assert second.output_id != first.output_id
    assert ledger.done(B, 1) == (b, [])
    assert ledger.output_safe(second) == [b]
    ledger.close(b)
    late = ledger.take_result([A, B], None, ["x"], 1)
    assert len({first.output_id, second.output_id, late.output_id}) == 3
