from __future__ import annotations

from datetime import UTC, datetime

import pytest

from iterum_sidecar.dead_letters.choosing import Choosing, Selection, by_kind
from iterum_sidecar.dead_letters.errors import NotDone

from .letters import ID, body_of, letter

OTHER = "abcdefgh" + "x" * 56
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


def takes(selection: Selection, **headers: str | None) -> bool:
    return Choosing(selection, "dead").takes(letter(body_of(ID), **headers))


@pytest.mark.parametrize(
    ("selection", "fits"),
    [
        (Selection(), True),
        (Selection(everything=True), True),
        (Selection(kinds=frozenset({"conflict", "input_missing"})), True),
        (Selection(kinds=frozenset({"conflict"})), False),
        (Selection(reason="nosuchkey"), True),
        (Selection(reason="no such key"), False),
        (Selection(ids=("abcd",)), True),
        (Selection(ids=("b", ID)), True),
        (Selection(ids=("b",)), False),
        (Selection(ids=("body:",)), True),
        (Selection(ids=("body:0000",)), False),
        (Selection(before=NOON), True),
        (Selection(after=NOON), False),
        (Selection(kinds=frozenset({"input_missing"}), reason="nothing like it"), False),
    ],
)
def test_all_that_is_said_must_fit(selection: Selection, fits: bool) -> None:
    assert takes(selection) is fits


def test_a_letter_without_a_time_is_neither_before_nor_after() -> None:
    assert not takes(Selection(before=NOON), x_iterum_time=None)
    assert not takes(Selection(after=NOON), x_iterum_time=None)
    exactly = NOON.isoformat()
    assert takes(Selection(after=NOON), x_iterum_time=exactly)
    assert not takes(Selection(before=NOON), x_iterum_time=exactly)


def test_a_limit_alone_says_nothing() -> None:
    assert not Selection(limit=3).is_said
    assert Selection(everything=True, limit=3).is_said
    assert Selection(reason="x").is_said


def test_a_limit_takes_the_first_and_counts_the_rest() -> None:
    choosing = Choosing(Selection(limit=2), "dead")
    assert [choosing.takes(letter()) for _ in range(4)] == [True, True, False, False]
    assert (choosing.chosen, choosing.fitting.total(), choosing.seen.total()) == (2, 4, 4)
    choosing.conclude()


def test_the_beginning_of_two_ids_is_neither() -> None:
    choosing = Choosing(Selection(ids=("abcdefgh",)), "dead")
    assert choosing.takes(letter())
    before = choosing.is_ambiguous
    assert choosing.takes(letter(body_of(OTHER)))
    assert (before, choosing.is_ambiguous) == (False, True)
    with pytest.raises(NotDone, match="beginning of several") as told:
        choosing.conclude()
    assert ID in str(told.value)
    assert OTHER in str(told.value)


def test_the_beginning_of_very_many_names_a_few() -> None:
    choosing = Choosing(Selection(ids=("a",)), "dead")
    for number in range(1000):
        choosing.takes(letter(body_of(f"a{number:063}")))
    with pytest.raises(NotDone, match="and more") as told:
        choosing.conclude()
    assert len(str(told.value)) < 500


def test_an_id_fits_all_letters_of_it() -> None:
    choosing = Choosing(Selection(ids=(ID, "zzz")), "dead")
    assert choosing.takes(letter())
    assert choosing.takes(letter(body_of(ID) + b" "))
    choosing.conclude()
    assert choosing.missing == ["zzz"]


def test_where_nothing_fits_it_is_told_what_there_is() -> None:
    choosing = Choosing(Selection(kinds=frozenset({"unreadible"})), "a-dead-letter")
    with pytest.raises(NotDone, match="no dead letters in a-dead-letter"):
        choosing.conclude()
    for kind in ("unreadable", "conflict", "unreadable"):
        choosing.takes(letter(x_iterum_kind=kind))
    with pytest.raises(NotDone) as told:
        choosing.conclude()
    assert str(told.value) == (
        "none of 3 dead letters in a-dead-letter fits; there are 2 unreadable, 1 conflict"
    )


def test_kinds_are_told_the_most_first_and_cannot_steer_a_terminal() -> None:
    choosing = Choosing(Selection(), "dead")
    for kind in ("b", "a", "\x1b[2J", "b"):
        choosing.takes(letter(x_iterum_kind=kind))
    assert by_kind(choosing.seen) == "2 b, 1 \\x1b[2J, 1 a"
