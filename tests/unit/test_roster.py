from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iterum_sidecar.entries import Entry
from iterum_sidecar.roster import ISOLATION_PATIENCE, MAX_DEPTH, STARVED_AFTER, Roster, Seat

TestEntry = Entry[int, None]
TestSeat = Seat[int, None]
TestRoster = Roster[int, None]


def entry(number: int = 0, *, suspect: bool = False) -> TestEntry:
    made: TestEntry = Entry(f"{number:064}", None, number, None)
    made.suspect = suspect
    return made


def fill(roster: TestRoster, count: int, *, suspect: bool = False) -> list[TestEntry]:
    entries = [entry(number, suspect=suspect) for number in range(count)]
    for each in entries:
        roster.add(each)
    return entries


def assign(roster: TestRoster, now: float = 0.0) -> list[tuple[TestSeat, TestEntry]]:
    return list(roster.assign(now))


# -- depth and turns


def test_a_connection_holds_one_at_a_time_and_gets_the_next_when_it_is_done() -> None:
    roster: TestRoster = Roster(1)
    seat = roster.sit()
    entries = fill(roster, 3)
    for each in entries:
        assert assign(roster) == [(seat, each)]
        assert assign(roster) == []
        assert (seat.held, roster.held) == ([each], 1)
        roster.done(each, 0.0)
        assert (seat.held, roster.held) == ([], 0)
    assert roster.waiting == 0


def test_who_comes_and_goes_while_nothing_is_ready_is_forgotten() -> None:
    roster: TestRoster = Roster(1)
    stays = roster.sit()
    for _ in range(3):
        goes = roster.sit()
        assert assign(roster) == []
        roster.leave(goes)
    assert list(roster._vacant) == [stays]
    (only,) = fill(roster, 1)
    assert assign(roster) == [(stays, only)]


@pytest.mark.parametrize("depth", [2, 5])
def test_a_connection_holds_as_many_as_the_depth_says(depth: int) -> None:
    roster: TestRoster = Roster(depth)
    seat = roster.sit()
    entries = fill(roster, depth + 3)
    assert [each for _, each in assign(roster)] == entries[:depth]
    assert seat.held == entries[:depth]
    roster.done(entries[1], 0.0)
    assert [each for _, each in assign(roster)] == [entries[depth]]


def test_entries_are_handed_out_in_the_order_they_became_ready_and_spread_evenly() -> None:
    roster: TestRoster = Roster(4)
    seats = [roster.sit() for _ in range(50)]
    entries = fill(roster, 120)
    assert [each for _, each in assign(roster)] == entries
    assert {len(seat.held) for seat in seats} == {2, 3}


def test_seats_take_turns() -> None:
    roster: TestRoster = Roster(1)
    seats = [roster.sit() for _ in range(7)]
    turns = []
    for number in range(70):
        roster.add(entry(number))
        ((seat, each),) = assign(roster)
        turns.append(seats.index(seat))
        roster.done(each, 0.0)
    assert all(turns.count(number) == 10 for number in range(7))


def test_what_was_yielded_is_held_even_when_the_rest_is_not_asked_for() -> None:
    roster: TestRoster = Roster(1)
    roster.sit(), roster.sit()
    first, second = fill(roster, 2)
    for _, each in roster.assign(0.0):
        assert each is first
        break
    assert (roster.held, roster.waiting) == (1, 1)
    assert [each for _, each in assign(roster)] == [second]


def test_without_a_connection_everything_waits() -> None:
    roster: TestRoster = Roster(1)
    fill(roster, 2)
    assert assign(roster) == []
    assert (roster.seats, roster.held, roster.waiting) == (0, 0, 2)


def test_a_done_for_what_nobody_holds_changes_nothing() -> None:
    roster: TestRoster = Roster(1)
    (each,) = fill(roster, 1)
    roster.done(each, 5.0)
    seat = roster.sit()
    assert assign(roster, 6.0) == [(seat, each)]
    roster.done(each, 7.0)
    roster.done(each, 8.0)
    assert (seat.held, roster.idle_for(9.0)) == ([], 2.0)


# -- leaving


def test_a_connection_that_leaves_tells_what_it_held_and_gets_nothing_more() -> None:
    roster: TestRoster = Roster(2)
    seat, other = roster.sit(), roster.sit()
    entries = fill(roster, 6)
    assign(roster)
    assert roster.leave(seat) == [entries[0], entries[2]]
    assert (roster.seats, roster.held, roster.waiting) == (1, 2, 2)
    assert assign(roster) == []
    roster.done(entries[0], 0.0)
    assert assign(roster) == []
    roster.done(entries[1], 0.0)
    assert assign(roster) == [(other, entries[4])]


def test_take_back_returns_what_is_ready_and_ends_handing_out() -> None:
    roster: TestRoster = Roster(1)
    roster.sit()
    out, ready = fill(roster, 2)
    (suspect,) = fill(roster, 1, suspect=True)
    roster_of_one = assign(roster)
    assert roster_of_one[0][1] is suspect
    roster.done(suspect, 0.0)
    roster.add(suspect)
    assert roster.take_back() == [suspect, out, ready]
    assert roster.closed
    roster.add(entry(9))
    assert assign(roster) == []
    roster.sit()
    assert assign(roster) == []


def test_take_back_in_the_middle_of_handing_out_ends_it() -> None:
    roster: TestRoster = Roster(1)
    for _ in range(3):
        roster.sit()
    entries = fill(roster, 3)
    handed = []
    for _, each in roster.assign(0.0):
        handed.append(each)
        assert roster.take_back() == entries[1:]
    assert handed == entries[:1]


# -- suspects


def test_suspects_are_handed_out_alone_and_one_at_a_time() -> None:
    roster: TestRoster = Roster(3)
    seats = [roster.sit() for _ in range(3)]
    suspects = fill(roster, 2, suspect=True)
    others = fill(roster, 20)
    handed = assign(roster)
    ((with_suspect, first),) = [(seat, each) for seat, each in handed if each.suspect]
    assert first is suspects[0]
    assert with_suspect.held == [first]
    assert [each for _, each in handed if not each.suspect] == others[:6]
    assert sorted(len(seat.held) for seat in seats) == [1, 3, 3]
    roster.done(first, 0.0)
    assert assign(roster) == [(with_suspect, suspects[1])]
    roster.done(suspects[1], 0.0)
    assert [each for _, each in assign(roster)] == others[6:9]


def test_a_seat_empties_before_it_gets_a_suspect() -> None:
    roster: TestRoster = Roster(2)
    seat = roster.sit()
    first, second = fill(roster, 2)
    assign(roster)
    (suspect,) = fill(roster, 1, suspect=True)
    fill(roster, 1)
    roster.done(first, 0.0)
    assert assign(roster) == []
    roster.done(second, 0.0)
    assert assign(roster) == [(seat, suspect)]


def test_the_next_suspect_goes_out_when_the_end_of_the_last_has_been_judged() -> None:
    """Before that it could die of the same death, and nobody would know which of them was to blame."""
    roster: TestRoster = Roster(1)
    seat = roster.sit()
    first, second = fill(roster, 2, suspect=True)
    assert assign(roster) == [(seat, first)]
    other = roster.sit()
    assert assign(roster) == []
    assert roster.leave(seat) == [first]
    assert assign(roster) == []
    roster.judged(first)
    assert assign(roster) == [(other, second)]


def test_a_suspect_whose_done_comes_after_its_seat_has_left_keeps_no_other_waiting() -> None:
    roster: TestRoster = Roster(1)
    seat = roster.sit()
    first, second = fill(roster, 2, suspect=True)
    assign(roster)
    roster.leave(seat)
    roster.done(first, 1.0)
    other = roster.sit()
    assert assign(roster) == [(other, second)]


def on_its_last_attempt(roster: TestRoster) -> TestEntry:
    last = entry(99, suspect=True)
    last.attempts = 2
    roster.add(last)
    return last


def test_a_suspect_on_its_last_attempt_goes_out_when_nothing_else_is() -> None:
    """Of what is handed out for the first time beside it, something may be poison too."""
    roster: TestRoster = Roster(1, attempts=3)
    one, other = roster.sit(), roster.sit()
    first, second, third = fill(roster, 3)
    assert assign(roster) == [(one, first), (other, second)]
    last = on_its_last_attempt(roster)
    roster.done(first, 1.0)
    assert assign(roster, 1.0) == [], "the seat is kept free"
    roster.done(second, 2.0)
    ((seat, handed),) = assign(roster, 2.0)
    assert handed is last
    roster.done(last, 3.0)
    assert [each for _, each in assign(roster, 3.0)] == [third]
    assert seat.held in ([], [third])


def test_it_does_not_wait_for_ever_for_what_hangs() -> None:
    roster: TestRoster = Roster(1, attempts=3)
    roster.sit()
    other = roster.sit()
    fill(roster, 1)
    assign(roster, 5.0)
    last = on_its_last_attempt(roster)
    assert assign(roster, 5.0 + ISOLATION_PATIENCE - 0.1) == []
    assert assign(roster, 5.0 + ISOLATION_PATIENCE) == [(other, last)]


def test_it_does_not_wait_beside_a_connection_that_gathers() -> None:
    """That one would wait for more, and never be empty."""
    roster: TestRoster = Roster(1, attempts=3)
    gathering = roster.sit()
    (first,) = fill(roster, 1)
    assert assign(roster) == [(gathering, first)]
    roster.deepen(gathering)
    last = on_its_last_attempt(roster)
    assert assign(roster) == [(gathering, last)]


# -- starvation


def test_starved_is_who_has_read_everything_and_for_a_second_finished_none() -> None:
    roster: TestRoster = Roster(1)
    roster.sit()
    first, second = fill(roster, 2)
    assert not roster.is_starved(100.0, 0)
    assign(roster, 100.0)
    assert not roster.is_starved(100.0 + STARVED_AFTER - 0.01, 0)
    assert roster.is_starved(100.0 + STARVED_AFTER, 0)
    assert not roster.is_starved(100.0 + STARVED_AFTER, 1)
    roster.done(first, 101.5)
    assign(roster, 101.5)
    assert not roster.is_starved(102.0, 0)
    roster.done(second, 102.0)
    assert not roster.is_starved(200.0, 0)


def test_a_connection_that_gathers_gets_twice_as_many_and_keeps_it() -> None:
    roster: TestRoster = Roster(1)
    seat = roster.sit()
    fill(roster, 31)
    for depth in (1, 2, 4, 8):
        assign(roster, 1.0)
        assert (len(seat.held), seat.depth) == (depth, depth)
        roster.deepen(seat)
    assign(roster, 2.0)
    for each in list(seat.held):
        roster.done(each, 3.0)
    assert seat.depth == 16
    assert roster.sit().depth == 1


@pytest.mark.parametrize("depth", [1, 3, 3000, MAX_DEPTH])
def test_no_depth_is_above_the_highest(depth: int) -> None:
    roster: TestRoster = Roster(depth)
    seat = roster.sit()
    for _ in range(20):
        roster.deepen(seat)
        assert seat.depth <= MAX_DEPTH
    assert seat.depth == MAX_DEPTH


def test_a_gathering_connection_gets_suspects_together_lest_it_starves_for_ever() -> None:
    roster: TestRoster = Roster(1)
    seat = roster.sit()
    suspects = fill(roster, 4, suspect=True)
    assert assign(roster) == [(seat, suspects[0])]
    roster.deepen(seat)
    assert assign(roster, 1.0) == [(seat, suspects[1])]
    roster.deepen(seat)
    assert [each for _, each in assign(roster, 2.0)] == suspects[2:]


def test_what_does_not_fit_one_connection_goes_to_another() -> None:
    roster: TestRoster = Roster(1)
    narrow, wide = roster.sit(), roster.sit()
    first, second = fill(roster, 2)
    assert list(roster.assign(0.0, lambda seat, _: seat is not narrow)) == [(wide, first)]
    assert roster.waiting == 1
    assert list(roster.assign(0.0)) == [(narrow, second)]


def test_the_entries_of_which_a_done_may_never_come_are_known() -> None:
    roster: TestRoster = Roster(2)
    roster.sit()
    first, second = fill(roster, 2)
    first.void = True
    assert roster.unsure_held() == []
    assign(roster)
    assert roster.unsure_held() == [first]
    assert roster.idle_for(3.0) == 3.0
    roster.done(first, 4.0)
    assert roster.unsure_held() == []
    assign(roster, 5.0)
    second.doubted_by = frozenset({1})
    assert roster.unsure_held() == [second]


# -- all together


@dataclass
class Play:
    """A roster under random events, and what a naive observer knows of it."""

    depth: int
    roster: TestRoster = field(init=False)
    seats: list[TestSeat] = field(default_factory=list)
    added: list[TestEntry] = field(default_factory=list)
    handed: list[TestEntry] = field(default_factory=list)
    ended: list[TestEntry] = field(default_factory=list)
    unjudged: list[TestEntry] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.roster = Roster(self.depth)

    def act(self, what: str, which: int) -> None:
        self.now += 0.5
        held = [each for seat in self.seats for each in seat.held]
        if what == "sit":
            self.seats.append(self.roster.sit())
        elif what in {"add", "add a suspect"}:
            self.added.append(entry(len(self.added), suspect=what != "add"))
            self.roster.add(self.added[-1])
        elif what == "leave" and self.seats:
            left = self.roster.leave(self.seats.pop(which % len(self.seats)))
            self.ended += left
            self.unjudged += left
        elif what == "judge":
            while self.unjudged:
                self.roster.judged(self.unjudged.pop())
        elif what == "done" and held:
            self.ended.append(held[which % len(held)])
            self.roster.done(self.ended[-1], self.now)
        elif what == "deepen" and self.seats:
            self.roster.deepen(self.seats[which % len(self.seats)])
        self.assign()

    def assign(self) -> None:
        for seat, each in self.roster.assign(self.now):
            assert seat in self.seats
            assert each in seat.held
            assert len(seat.held) <= seat.depth
            if not seat.gathers:
                assert not any(one.suspect for one in seat.held) or len(seat.held) == 1
            self.handed.append(each)
        assert self.roster.waiting == len(self.added) - len(self.handed)
        assert self.roster.held == len(self.handed) - len(self.ended)


EVENTS = st.sampled_from(["sit", "add", "add", "add a suspect", "done", "leave", "judge", "deepen"])


@given(depth=st.integers(1, 3), events=st.lists(st.tuples(EVENTS, st.integers(0, 9)), max_size=60))
def test_everything_that_is_added_is_handed_out_exactly_once(
    depth: int, events: list[tuple[str, int]]
) -> None:
    play = Play(depth)
    for what, which in events:
        play.act(what, which)
    play.act("sit", 0)
    play.act("judge", 0)
    for _ in range(2 * len(events) + 2):
        play.act("done", 0)
    assert sorted(each.fragment_id for each in play.handed) == [
        each.fragment_id for each in play.added
    ]
    assert play.roster.waiting == play.roster.held == 0
