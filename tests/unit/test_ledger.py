"""One plain test and more for each of the design's "Cases that decide the ledger"; the state machine is `test_ledger_model.py`."""

from __future__ import annotations

import pytest

from iterum_sidecar import fencing, ordinals
from iterum_sidecar import ledger as ledger_module
from iterum_sidecar.entries import Admission, DeadLetterKind, Entry, State, Verdict
from iterum_sidecar.identity import OutputIdentity
from iterum_sidecar.ledger import Ledger

A, B, C = "a" * 64, "b" * 64, "c" * 64
#: The output connection of a process that has come after another one, which is that of all that names none.
NEXT = "the next"
FILES = ("some files",)
OTHER_FILES = ("other files",)
TestEntry = Entry[int, None]
TestLedger = Ledger[int, None]


@pytest.fixture
def ledger() -> TestLedger:
    """A ledger that allows three attempts."""
    return Ledger(OutputIdentity("pipeline", "step"), attempts_allowed=3)


def admit(
    ledger: TestLedger, fragment_id: str = A, delivery: int = 1, *, attempts: int = 0
) -> TestEntry:
    admission, entry = ledger.admit(fragment_id, FILES, delivery, None, attempts=attempts)
    assert admission is Admission.NEW
    assert entry is not None
    return entry


def hand_out(ledger: TestLedger, *fragment_ids: str, attempts: int = 0) -> list[TestEntry]:
    """Admit those fragments and hand them out."""
    entries = [admit(ledger, fragment_id, attempts=attempts) for fragment_id in fragment_ids]
    for entry in entries:
        ledger.is_ready(entry)
        ledger.hand_out(entry)
    return entries


def hand_out_again(ledger: TestLedger, entry: TestEntry) -> None:
    assert entry.verdict is Verdict.AGAIN
    ledger.again(entry)
    ledger.hand_out(entry)


def settle(ledger: TestLedger, fragment_id: str = A) -> None:
    (entry,) = hand_out(ledger, fragment_id)
    assert ledger.done(fragment_id) == (entry, [entry])
    ledger.close(entry)


# -- a delivery of an old connection


def test_a_delivery_that_comes_again_settles_together_with_the_first(ledger: TestLedger) -> None:
    (entry,) = hand_out(ledger, A)
    output = ledger.take_result([A], None, ["x"])
    assert ledger.admit(A, FILES, 2, None) == (Admission.JOINED, entry)
    assert len(ledger) == 1
    assert ledger.done(A) == (entry, [])
    assert ledger.admit(A, FILES, 3, None) == (Admission.JOINED, entry)
    assert ledger.output_safe(output) == [entry]
    assert (entry.verdict, entry.deliveries) == (Verdict.ACKNOWLEDGE, [1, 2, 3])


def test_two_dones_of_what_was_dropped_once_acknowledge_nothing(ledger: TestLedger) -> None:
    """A step that gathers, and was handed a fragment again after a breach, may hold it twice and say so twice."""
    a, b = hand_out(ledger, A, B)
    ledger.breach("unreadable")
    for entry in ledger.connection_closed([a, b], death=False):
        ledger.again(entry)
    ledger.hand_out(a)
    assert ledger.take_result([A, B], None, ["x"], source=1).stray
    assert ledger.done(B, source=1) == (None, [])
    assert ledger.done(A, source=1) == (None, [])
    assert ledger.done(A, source=1) == (None, [])
    assert a.doubted
    assert ledger.give_up_doubted(a) == [a]
    assert a.verdict is Verdict.AGAIN


def test_the_count_of_a_delivery_that_comes_again_is_not_lost_nor_made_twice(
    ledger: TestLedger,
) -> None:
    """It was struck in another life, and both messages of it are in the queue: what is struck now is the third."""
    admission, entry = ledger.admit(A, FILES, 1, None, attempts=0, edition="0 attempts")
    assert admission is Admission.NEW
    assert entry is not None
    ledger.is_ready(entry)
    ledger.hand_out(entry)
    admission, joined = ledger.admit(A, FILES, 2, None, attempts=1, edition="1 attempt")
    assert (admission, joined) == (Admission.JOINED, entry)
    assert ledger.connection_closed([entry], death=True) == [entry]
    assert (entry.verdict, entry.attempts) == (Verdict.STRIKE, 2)


def test_what_is_struck_here_and_elsewhere_is_published_as_what_neither_has_seen(
    ledger: TestLedger,
) -> None:
    """Or the message would be taken for the other one of its count, acknowledged with that, and the fragment be lost."""
    _, entry = ledger.admit(A, FILES, 1, None, attempts=0, edition="0 attempts")
    assert entry is not None
    ledger.is_ready(entry)
    ledger.hand_out(entry)
    assert ledger.breach("unreadable") == [entry]
    ledger.admit(A, FILES, 2, None, attempts=1, edition="1 attempt, counted elsewhere")
    assert ledger.connection_closed([entry], death=True) == [entry]
    assert (entry.verdict, entry.attempts) == (Verdict.STRIKE, 2)
    admission, _ = ledger.admit(A, FILES, 3, None, attempts=1, edition="1 attempt, again")
    assert (admission, entry.attempts) == (Admission.JOINED, 2)
    assert ledger.admit(A, FILES, 4, None, attempts=2, edition="2")[0] is Admission.NEW


def test_an_attempt_that_was_the_last_elsewhere_makes_a_dead_letter_with_a_reason(
    ledger: TestLedger,
) -> None:
    entry = admit(ledger)
    ledger.is_ready(entry)
    ledger.hand_out(entry)
    ledger.admit(A, FILES, 2, None, attempts=3)
    assert ledger.connection_closed([entry], death=False) == [entry]
    assert entry.verdict is Verdict.DEAD_LETTER
    assert entry.kind is DeadLetterKind.TRANSFORMATION_DIED
    assert entry.reason == "the transformation died on it (3 attempts)"


def test_a_delivery_of_one_id_and_other_files_is_a_conflict(ledger: TestLedger) -> None:
    entry = admit(ledger)
    assert ledger.admit(A, OTHER_FILES, 2, None) == (Admission.CONFLICT, None)
    assert entry.deliveries == [1]


def test_a_delivery_of_what_was_settled_is_recognised_and_only_the_last_are(
    ledger: TestLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ledger_module.REMEMBERED == 100_000
    monkeypatch.setattr(ledger_module, "REMEMBERED", 2)
    for fragment_id in (A, B, C):
        settle(ledger, fragment_id)
    assert [ledger.was_settled(each, FILES) for each in (A, B, C)] == [False, True, True]
    assert ledger.admit(B, FILES, 2, None) == (Admission.SETTLED, None)
    assert ledger.admit(B, OTHER_FILES, 2, None) == (Admission.CONFLICT, None)
    assert not ledger.was_settled(B, OTHER_FILES)
    assert ledger.admit(A, FILES, 2, None)[0] is Admission.NEW


def test_the_edition_of_a_dead_letter_is_remembered_and_no_other_of_its_id(
    ledger: TestLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "REMEMBERED", 2)
    _, entry = ledger.admit(A, FILES, 1, None, edition=(A, 0, 0))
    assert entry is not None
    ledger.admit(A, FILES, 2, None, edition=(A, 1, 0))
    ledger.reject(entry, "no such object")
    assert not ledger.was_dismissed((A, 0, 0)), "before its verdict is carried out it is in flight"
    ledger.close(entry)
    assert ledger.was_dismissed((A, 0, 0))
    assert ledger.was_dismissed((A, 1, 0))
    assert not ledger.was_dismissed((A, 0, 1))
    ledger.close(ledger.admit_unreadable(3, None, "no JSON", edition="digest"))
    assert ledger.was_dismissed("digest")
    assert not ledger.was_dismissed((A, 0, 0)), "only the last are remembered"


def test_what_was_acknowledged_or_given_back_is_not_dismissed(ledger: TestLedger) -> None:
    _, entry = ledger.admit(A, FILES, 1, None, edition=(A, 0, 0))
    assert entry is not None
    ledger.close(ledger.give_back(entry)[0])
    assert not ledger.was_dismissed((A, 0, 0))


def test_a_dead_letter_is_not_remembered_so_that_a_retry_is_worked(ledger: TestLedger) -> None:
    entry = admit(ledger)
    assert ledger.reject(entry, "no such object") == [entry]
    assert (entry.verdict, entry.reason) == (Verdict.DEAD_LETTER, "no such object")
    ledger.close(entry)
    assert not ledger.was_settled(A, FILES)
    assert ledger.admit(A, FILES, 2, None)[0] is Admission.NEW


# -- a done that comes before its last result has been uploaded


def test_a_done_waits_for_every_result_that_came_before_it(ledger: TestLedger) -> None:
    (entry,) = hand_out(ledger, A)
    first, second = (ledger.take_result([A], None, [name]) for name in ("x", "y"))
    assert ledger.done(A) == (entry, [])
    assert (entry.state, entry.pending) == (State.DONE, 2)
    assert ledger.output_safe(second) == []
    assert ledger.output_safe(first) == [entry]
    assert entry.verdict is Verdict.ACKNOWLEDGE


def test_a_result_of_several_holds_each_of_them(ledger: TestLedger) -> None:
    one, other = hand_out(ledger, A, B)
    output = ledger.take_result([B, A, B], None, ["x"])
    assert ledger.done(A) == (one, [])
    assert ledger.done(B) == (other, [])
    assert set(ledger.output_safe(output)) == {one, other}


def test_a_fragment_without_results_is_acknowledged_at_its_done(ledger: TestLedger) -> None:
    settle(ledger)
    assert (len(ledger), ledger.out(), ledger.was_settled(A, FILES)) == (0, 0, True)


# -- a result whose predecessors are all settled, or were never here


@pytest.mark.parametrize("predecessors", [[A], [B], [A, B]])
def test_a_result_of_nothing_in_flight_is_late_and_nothing_waits_for_it(
    ledger: TestLedger, predecessors: list[str]
) -> None:
    settle(ledger, A)
    output = ledger.take_result(predecessors, None, ["x"])
    assert (output.late, output.repeated, output.entries) == (True, False, [])
    assert ledger.output_safe(output) == []


def test_late_results_have_ordinals_too_and_only_the_last_kinds_keep_them(
    ledger: TestLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordinals, "LATE_KINDS", 2)
    ids = [ledger.take_result([A], None, ["x"]).output_id for _ in range(3)]
    assert len(set(ids)) == 3
    for name in ("y", "z"):
        ledger.take_result([A], None, [name])
    # Its ordinals begin again; the first of its ID is pending still.
    assert ledger.take_result([A], None, ["x"]).output_id == ids[0]


def test_a_result_is_not_late_while_one_of_its_predecessors_is_in_flight(
    ledger: TestLedger,
) -> None:
    settle(ledger, A)
    (entry,) = hand_out(ledger, B)
    output = ledger.take_result([A, B], None, ["x"])
    assert (output.late, output.entries) == (False, [entry])


# -- a result that is refused


def test_a_refused_result_makes_its_predecessors_dead_letters_when_their_done_comes(
    ledger: TestLedger,
) -> None:
    one, other, third = hand_out(ledger, A, B, C)
    output = ledger.take_result([A], None, ["x"])
    assert ledger.refuse_result([A, B, B, "d" * 64], "outside the volume") == 2
    assert ledger.refuse_result([A], "a second reason") == 1
    assert ledger.output_safe(output) == []
    assert ledger.done(A) == (one, [one])
    assert ledger.done(B) == (other, [other])
    assert (one.verdict, one.reason) == (Verdict.DEAD_LETTER, "outside the volume")
    assert other.verdict is Verdict.DEAD_LETTER
    assert ledger.done(C) == (third, [third])
    assert third.verdict is Verdict.ACKNOWLEDGE


def test_a_refused_result_leaves_a_predecessor_that_is_done(ledger: TestLedger) -> None:
    (entry,) = hand_out(ledger, A)
    output = ledger.take_result([A], None, ["x"])
    assert ledger.done(A) == (entry, [])
    assert ledger.refuse_result([A], "no such file") == 0
    assert ledger.output_safe(output) == [entry]
    assert entry.verdict is Verdict.ACKNOWLEDGE


def test_a_result_that_cannot_be_stored_makes_its_predecessors_dead_letters_even_after_their_done(
    ledger: TestLedger,
) -> None:
    (entry,) = hand_out(ledger, A)
    first, second = (ledger.take_result([A], None, [name]) for name in ("x", "y"))
    assert ledger.done(A) == (entry, [])
    assert ledger.output_refused(first, "it shrank") == []
    assert ledger.output_safe(second) == [entry]
    assert (entry.verdict, entry.reason) == (Verdict.DEAD_LETTER, "it shrank")


# -- a frame that cannot be read


def test_all_that_were_out_lose_an_attempt_and_are_handed_out_again_before_a_done_counts(
    ledger: TestLedger,
) -> None:
    one, other = hand_out(ledger, A, B)
    ready = admit(ledger, C)
    ledger.is_ready(ready)
    assert set(ledger.breach("not JSON")) == {one, other}
    assert [each.attempts for each in (one, other, ready)] == [1, 1, 0]
    assert ledger.done(A) == (one, [one])
    hand_out_again(ledger, one)
    assert ledger.done(A) == (one, [one])
    assert one.verdict is Verdict.ACKNOWLEDGE


def test_a_second_breach_before_the_done_costs_no_second_attempt(ledger: TestLedger) -> None:
    (entry,) = hand_out(ledger, A)
    assert ledger.breach("not JSON") == [entry]
    assert ledger.breach("not JSON") == []
    assert entry.attempts == 1


def test_breaches_use_the_attempts_up(ledger: TestLedger) -> None:
    (entry,) = hand_out(ledger, A, attempts=1)
    ledger.breach("not JSON")
    assert ledger.done(A) == (entry, [entry])
    hand_out_again(ledger, entry)
    ledger.breach("not JSON")
    assert ledger.done(A) == (entry, [entry])
    assert (entry.verdict, entry.reason) == (Verdict.DEAD_LETTER, "not JSON (3 attempts)")


def test_a_void_hand_out_whose_done_was_lost_is_given_up_and_owes_one_done(
    ledger: TestLedger,
) -> None:
    (entry,) = hand_out(ledger, A)
    ledger.breach("not JSON")
    assert ledger.give_up_void(entry) == [entry]
    hand_out_again(ledger, entry)
    assert ledger.done(A) == (entry, [entry])
    assert entry.verdict in {Verdict.AGAIN, Verdict.STRIKE}, "it may be the first hand-out's done"


# -- handed out again


def test_what_a_dead_transformation_held_is_handed_out_again_when_its_results_are_finished(
    ledger: TestLedger,
) -> None:
    one, other = hand_out(ledger, A, B)
    first = ledger.take_result([A], None, ["x"])
    assert ledger.connection_closed([one, other], death=True) == [other]
    assert ledger.output_safe(first) == [one]
    hand_out_again(ledger, one)
    again = ledger.take_result([A], None, ["x"], NEXT)
    assert (again.output_id, again.repeated) == (first.output_id, True)
    more = ledger.take_result([A], None, ["x"], NEXT)
    assert (more.output_id != first.output_id, more.repeated) == (True, False)
    assert ledger.done(A, NEXT) == (one, [])
    assert ledger.output_safe(more) == [one]
    assert one.verdict is Verdict.ACKNOWLEDGE


def test_the_first_that_condemns_a_hand_out_is_kept_until_it_is_handed_out_again(
    ledger: TestLedger,
) -> None:
    (entry,) = hand_out(ledger, A)
    ledger.refuse_result([A], "another's file")
    assert (entry.reason, entry.kind) == ("another's file", DeadLetterKind.RESULT_REFUSED)
    assert ledger.connection_closed([entry], death=False) == [entry]
    hand_out_again(ledger, entry)
    assert (entry.reason, entry.kind) == ("", None)
    ledger.refuse_result([A], "it failed", DeadLetterKind.TRANSFORMATION_FAILED, NEXT)
    ledger.refuse_result([A], "another's file", source=NEXT)
    assert ledger.done(A, NEXT) == (entry, [entry])
    assert entry.verdict is Verdict.DEAD_LETTER
    assert (entry.reason, entry.kind) == ("it failed", DeadLetterKind.TRANSFORMATION_FAILED)


def test_a_result_dropped_before_it_was_handed_out_again_is_published_then(
    ledger: TestLedger,
) -> None:
    (entry,) = hand_out(ledger, A)
    first = ledger.take_result([A], None, ["x"])
    assert ledger.connection_closed([entry], death=False) == []
    assert ledger.output_refused(first, "it shrank") == [entry]
    hand_out_again(ledger, entry)
    assert entry.reason == ""
    again = ledger.take_result([A], None, ["x"], NEXT)
    assert (again.output_id, again.repeated) == (first.output_id, False)


def test_the_ids_of_work_done_again_by_another_process_are_the_same() -> None:
    def work(order: list[str]) -> set[str]:
        ledger: TestLedger = Ledger(OutputIdentity("pipeline", "step"), attempts_allowed=3)
        hand_out(ledger, A, B)
        return {ledger.take_result([B, A], None, [name]).output_id for name in order}

    assert work(["x", "y", "x"]) == work(["x", "x", "y"])
    assert len(work(["x", "y", "x"])) == 3


def test_a_second_done_is_a_no_op(ledger: TestLedger) -> None:
    (entry,) = hand_out(ledger, A)
    output = ledger.take_result([A], None, ["x"])
    assert ledger.done(A) == (entry, [])
    assert ledger.done(A) == (None, [])
    ledger.output_safe(output)
    assert ledger.done(A) == (None, [])
    assert ledger.done(B) == (None, [])


def test_a_done_between_two_hand_outs_is_a_no_op(ledger: TestLedger) -> None:
    (entry,) = hand_out(ledger, A)
    assert ledger.connection_closed([entry], death=False) == [entry]
    assert ledger.done(A) == (None, [])
    ledger.again(entry)
    assert ledger.done(A) == (None, [])
    assert entry.state is State.READY


# -- what a process that was given up goes on sending


def given_up(ledger: TestLedger, *fragment_ids: str) -> list[TestEntry]:
    """Hand those fragments out to a process that is given up, and again."""
    entries = hand_out(ledger, *fragment_ids)
    ledger.connection_closed(entries, death=False)
    for entry in entries:
        hand_out_again(ledger, entry)
    return entries


def is_stray(ledger: TestLedger, *predecessors: str, source: object = None) -> bool:
    return ledger.take_result(predecessors, None, ["x"], source).stray


def test_what_comes_between_two_hand_outs_is_made_again(ledger: TestLedger) -> None:
    (entry,) = hand_out(ledger, A)
    pending = ledger.take_result([A], None, ["x"])
    assert ledger.connection_closed([entry], death=False) == []
    assert is_stray(ledger, A), "its hand-out has ended, and its first result is pending"
    assert ledger.output_safe(pending) == [entry]
    assert is_stray(ledger, A), "it is on its way back"
    ledger.again(entry)
    assert is_stray(ledger, A), "it is ready"
    assert entry.pending == 0


def test_what_comes_between_two_lives_is_made_again(ledger: TestLedger) -> None:
    (entry,) = hand_out(ledger, A)
    ledger.connection_closed([entry], death=True)
    assert is_stray(ledger, A), "it is on its way into the queue"
    ledger.close(entry)
    assert is_stray(ledger, A), "it is in the queue"
    again = admit(ledger, attempts=1)
    assert is_stray(ledger, A), "its files are on their way"
    ledger.is_ready(again)
    ledger.hand_out(again)
    assert ledger.done(A) == (None, []), "of this run all results were dropped"
    assert again.doubted
    assert ledger.done(A, NEXT) == (again, [again])
    assert again.verdict is Verdict.ACKNOWLEDGE


def test_what_is_safe_already_is_not_published_again_by_its_next_life(ledger: TestLedger) -> None:
    (entry,) = hand_out(ledger, A)
    first = ledger.take_result([A], None, ["x"])
    ledger.output_safe(first)
    ledger.connection_closed([entry], death=True)
    ledger.close(entry)
    hand_out(ledger, A, attempts=1)
    again = ledger.take_result([A], None, ["x"], NEXT)
    assert (again.output_id, again.repeated) == (first.output_id, True)


def test_a_dead_letter_that_is_put_back_is_published_anew(ledger: TestLedger) -> None:
    (entry,) = hand_out(ledger, A, attempts=2)
    first = ledger.take_result([A], None, ["x"])
    ledger.output_safe(first)
    ledger.connection_closed([entry], death=True)
    ledger.close(entry)
    hand_out(ledger, A)
    again = ledger.take_result([A], None, ["x"], NEXT)
    assert (again.output_id, again.repeated) == (first.output_id, False)


def test_of_a_hand_out_that_is_not_the_first_one_connection_may_speak(ledger: TestLedger) -> None:
    (entry,) = given_up(ledger, A)
    assert not is_stray(ledger, A, source=NEXT)
    assert is_stray(ledger, A), "the process that was given up has woken"
    assert ledger.done(A) == (None, [])
    assert ledger.done(A, "another") == (None, []), "nor may one that has sent no result"
    assert not is_stray(ledger, A, source=NEXT)
    assert ledger.done(A, NEXT) == (entry, [])
    assert is_stray(ledger, A, source=NEXT)
    assert entry.pending == 2


def test_a_process_that_wakes_first_may_finish_what_it_has_lost(ledger: TestLedger) -> None:
    """Its run is whole; that of whoever has the fragment now comes too late."""
    (entry,) = given_up(ledger, A)
    output = ledger.take_result([A], None, ["x"])
    assert not output.stray
    assert is_stray(ledger, A, source=NEXT)
    assert ledger.done(A) == (entry, [])
    assert ledger.done(A, NEXT) == (None, [])
    assert ledger.output_safe(output) == [entry]
    assert entry.verdict is Verdict.ACKNOWLEDGE


def test_a_run_that_began_before_the_hand_out_does_not_count(ledger: TestLedger) -> None:
    """Its ordinals would begin again in the middle of it."""
    (entry,) = hand_out(ledger, A)
    first = ledger.take_result([A], None, ["x"])
    ledger.connection_closed([entry], death=False)
    assert ledger.output_safe(first) == [entry]
    hand_out_again(ledger, entry)
    assert is_stray(ledger, A)
    assert ledger.done(A) == (None, [])
    assert not is_stray(ledger, A), "by that done the run has ended; this is another"


def test_a_hand_out_that_only_such_a_run_has_spoken_of_is_given_up_in_the_end(
    ledger: TestLedger,
) -> None:
    (entry,) = hand_out(ledger, A)
    first = ledger.take_result([A], None, ["x"])
    ledger.connection_closed([entry], death=False)
    ledger.output_safe(first)
    for _ in range(3):
        hand_out_again(ledger, entry)
        ledger.take_result([A], None, ["x"])
        ledger.done(A, "the connection for dones")
        assert ledger.give_up_doubted(entry) == [entry]
    hand_out_again(ledger, entry)
    ledger.done(A)
    assert ledger.give_up_doubted(entry) == [entry]
    assert (entry.verdict, entry.kind) == (Verdict.DEAD_LETTER, DeadLetterKind.BREACH)
    assert "several output connections" in entry.reason


def test_a_late_result_of_what_was_handed_out_again_is_dropped(ledger: TestLedger) -> None:
    (entry,) = given_up(ledger, A)
    settle(ledger, B)
    assert ledger.done(A, NEXT) == (entry, [entry])
    assert is_stray(ledger, A)
    ledger.close(entry)
    assert is_stray(ledger, A)
    assert is_stray(ledger, A, B)
    assert not is_stray(ledger, B)


def test_only_the_last_that_were_handed_out_again_are_known(
    ledger: TestLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fencing.GIVEN_UP_REMEMBERED == 100_000
    monkeypatch.setattr(fencing, "GIVEN_UP_REMEMBERED", 2)
    for fragment_id in (A, B, C):
        (entry,) = given_up(ledger, fragment_id)
        ledger.done(fragment_id)
        ledger.close(entry)
    assert [is_stray(ledger, each) for each in (A, B, C)] == [False, True, True]


def test_a_late_result_of_what_became_a_dead_letter_is_dropped(ledger: TestLedger) -> None:
    (entry,) = hand_out(ledger, A, attempts=2)
    ledger.connection_closed([entry], death=True)
    assert is_stray(ledger, A)
    ledger.close(entry)
    assert is_stray(ledger, A)


def test_a_refused_result_of_a_process_that_was_given_up_condemns_nothing(
    ledger: TestLedger,
) -> None:
    (entry,) = given_up(ledger, A)
    ledger.take_result([A], None, ["x"], NEXT)
    assert ledger.refuse_result([A], "it is gone") == 0
    assert entry.reason == ""
    assert ledger.refuse_result([A], "outside the volume", source=NEXT) == 1


def test_a_gathered_result_that_one_of_its_fragments_counts_on_is_no_stray(
    ledger: TestLedger,
) -> None:
    one, other = hand_out(ledger, A, B)
    ledger.connection_closed([other], death=False)
    output = ledger.take_result([A, B], None, ["x"])
    assert (output.stray, output.entries) == (False, [one])
    assert other.pending == 0, "it is made again"
    hand_out_again(ledger, other)
    assert ledger.done(B) == (None, [])


def test_a_gathered_result_that_nothing_counts_on_is_stray_for_all(ledger: TestLedger) -> None:
    one, other = hand_out(ledger, A, B)
    ledger.connection_closed([one, other], death=False)
    hand_out_again(ledger, one)
    assert is_stray(ledger, A, B), "the other waits"
    assert ledger.done(A) == (None, []), "or its share in that result would be lost"
    assert not is_stray(ledger, A, source=NEXT)
    assert ledger.done(A, NEXT) == (one, [])


# -- blame


def test_a_death_counts_against_what_was_held_alone_and_is_written_into_the_message(
    ledger: TestLedger,
) -> None:
    (entry,) = hand_out(ledger, A)
    assert ledger.connection_closed([entry], death=True) == [entry]
    assert (entry.verdict, entry.attempts) == (Verdict.STRIKE, 1)
    admission, second_life = ledger.admit(A, FILES, 2, None, attempts=1)
    assert admission is Admission.NEW
    assert second_life is not None
    assert (second_life.suspect, second_life.attempts) == (True, 1)
    ledger.close(entry)
    assert ledger.in_flight([A]) == [second_life]


def test_of_several_none_is_blamed_and_all_become_suspects(ledger: TestLedger) -> None:
    held = hand_out(ledger, A, B, C)
    assert set(ledger.connection_closed(held, death=True)) == set(held)
    assert all(entry.suspect and entry.attempts == 0 for entry in held)
    assert {entry.verdict for entry in held} == {Verdict.AGAIN}


def test_suspects_that_die_together_were_gathered_and_all_lose_an_attempt(
    ledger: TestLedger,
) -> None:
    """Otherwise a step that dies of its batch would die of it for ever."""
    held = hand_out(ledger, A, B, C)
    ledger.connection_closed(held, death=True)
    for entry in held[:2]:
        hand_out_again(ledger, entry)
    ledger.again(held[2])
    fresh = hand_out(ledger, "d" * 64)
    ledger.connection_closed([*held[:2], *fresh], death=True)
    assert [entry.attempts for entry in (*held, *fresh)] == [1, 1, 0, 0]
    assert fresh[0].suspect


def test_no_fragment_loses_its_last_attempt_beside_others_that_may_be_poison(
    ledger: TestLedger,
) -> None:
    (suspect,) = hand_out(ledger, A, attempts=2)
    fresh = hand_out(ledger, B, C)
    ledger.connection_closed([suspect, *fresh], death=True)
    assert (suspect.attempts, suspect.verdict) == (2, Verdict.AGAIN)
    assert all(entry.suspect for entry in fresh)
    hand_out_again(ledger, suspect)
    assert ledger.connection_closed([suspect], death=True) == [suspect]
    assert suspect.verdict is Verdict.DEAD_LETTER


def test_what_was_not_finished_in_time_says_so(ledger: TestLedger) -> None:
    (entry,) = hand_out(ledger, A, attempts=2)
    kind = DeadLetterKind.TIMED_OUT
    ledger.connection_closed([entry], death=True, reason="not within 5 s", kind=kind)
    assert (entry.verdict, entry.kind) == (Verdict.DEAD_LETTER, kind)
    assert entry.reason == "not within 5 s (3 attempts)"


def test_an_end_that_was_asked_for_blames_nobody(ledger: TestLedger) -> None:
    (entry,) = hand_out(ledger, A)
    assert ledger.connection_closed([entry], death=False) == [entry]
    assert (entry.verdict, entry.attempts, entry.suspect) == (Verdict.AGAIN, 0, False)


def test_the_last_death_makes_a_dead_letter_with_the_reason(ledger: TestLedger) -> None:
    (entry,) = hand_out(ledger, A, attempts=2)
    assert ledger.connection_closed([entry], death=True) == [entry]
    assert entry.verdict is Verdict.DEAD_LETTER
    assert entry.reason == "the transformation died on it (3 attempts)"


def test_the_brokers_own_count_makes_a_suspect_at_most(ledger: TestLedger) -> None:
    _, entry = ledger.admit(A, FILES, 1, None, suspect=True)
    assert entry is not None
    assert (entry.suspect, entry.attempts) == (True, 0)


def test_a_drain_gives_back_what_is_not_done_and_finishes_what_is(ledger: TestLedger) -> None:
    done, out = hand_out(ledger, A, B)
    waiting = admit(ledger, C)
    outputs = [ledger.take_result([each], None, ["x"]) for each in (A, B)]
    ledger.done(A)
    assert ledger.give_back(done) == []
    assert ledger.give_back(out) == []
    assert ledger.give_back(waiting) == [waiting]
    assert [ledger.output_safe(each) for each in outputs] == [[done], [out]]
    verdicts = [each.verdict for each in (done, out, waiting)]
    assert verdicts == [Verdict.ACKNOWLEDGE, Verdict.GIVE_BACK, Verdict.GIVE_BACK]


@pytest.mark.parametrize(("attempts", "verdict"), [(0, Verdict.STRIKE), (2, Verdict.DEAD_LETTER)])
def test_blame_that_is_in_no_message_yet_is_not_given_back(
    ledger: TestLedger, attempts: int, verdict: Verdict
) -> None:
    (entry,) = hand_out(ledger, A, attempts=attempts)
    ledger.breach("not JSON")
    assert ledger.give_back(entry) == [entry]
    assert entry.verdict is verdict


# -- dead letters in a row


def test_dead_letters_are_counted_until_something_is_processed(ledger: TestLedger) -> None:
    for number in range(20):
        entry = ledger.admit_unreadable(number, None, "not JSON")
        assert (entry.verdict, entry.reason) == (Verdict.DEAD_LETTER, "not JSON")
        ledger.close(entry)
    assert ledger.dead_letters_in_a_row == 20
    ledger.give_back(admit(ledger, B))
    assert ledger.dead_letters_in_a_row == 20
    settle(ledger)
    assert ledger.dead_letters_in_a_row == 0


# -- its own discipline


def test_the_ledger_refuses_what_cannot_happen(ledger: TestLedger) -> None:
    entry = admit(ledger)
    for act in (ledger.hand_out, ledger.again, ledger.close, ledger.give_up_void):
        with pytest.raises(AssertionError, match="<Entry aaaaaaaa WAITING"):
            act(entry)
    ledger.is_ready(entry)
    with pytest.raises(AssertionError, match="should be WAITING"):
        ledger.is_ready(entry)
