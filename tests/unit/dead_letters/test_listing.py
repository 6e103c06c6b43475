from __future__ import annotations

import io
import json
import unicodedata
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iterum_sidecar.dead_letters.choosing import Choosing, Selection
from iterum_sidecar.dead_letters.listing import Form, Listing, cut

from .letters import ID, letter

if TYPE_CHECKING:
    from iterum_sidecar.dead_letters.letter import Letter


def told(form: Form, *letters: Letter, width: int = 80, selection: Selection | None = None) -> str:
    selection = selection or Selection()
    listing = Listing(form, "a-dead-letter", width=width, narrows=selection.narrows)
    choosing = Choosing(selection, "a-dead-letter")
    for each in letters:
        if choosing.takes(each):
            listing.add(each)
    output = io.StringIO()
    listing.tell(output, choosing)
    return output.getvalue()


def columns(line: str) -> int:
    """The columns of a terminal that a line takes."""
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1
        for each in line
    )


def test_a_table_has_two_lines_for_each_and_the_kinds_at_its_end() -> None:
    assert told("text", letter(), letter(b"x", x_iterum_kind="unreadable", x_iterum_reason="")) == (
        "2 dead letters in a-dead-letter\n"
        "\n"
        "ID            TIME (UTC)           KIND                   ATTEMPTS  STEP\n"
        "abcdefghabcd  2026-11-25 00:34:23  input_missing                 2  edges\n"
        "    get b/a: HTTP 404 NoSuchKey\n"
        "body:2d71164  2026-11-25 00:34:23  unreadable                    2  edges\n"
        "\n"
        "1 input_missing, 1 unreadable\n"
    )


def test_wide_cuts_nothing() -> None:
    reason = "because " * 50
    (row,) = (
        line
        for line in told("wide", letter(x_iterum_reason=reason)).splitlines()
        if line.startswith(ID)
    )
    assert row.endswith(reason.strip())
    assert "0f3a9c51b7de4e60a1c84d2f96b05e7d-edges" in row


def test_what_does_not_fit_and_what_is_not_shown_is_told() -> None:
    selection = Selection(kinds=frozenset({"conflict"}), limit=1)
    letters = [letter(x_iterum_kind=kind) for kind in ("conflict", "conflict", "breach")]
    assert told("text", *letters, selection=selection).splitlines()[-1] == (
        "2 of 3 fit: 2 conflict; the first one is shown"
    )
    whole = json.loads(told("json", *letters, selection=selection))
    letters_told = whole.pop("letters")
    assert [each["kind"] for each in letters_told] == ["conflict"]
    assert whole == {
        "queue": "a-dead-letter",
        "total": 3,
        "by_kind": {"conflict": 2, "breach": 1},
        "fitting": 2,
    }


def test_nothing_is_one_line() -> None:
    assert told("text") == "no dead letters in a-dead-letter\n"
    assert json.loads(told("json"))["letters"] == []


hostile = st.text(
    st.sampled_from("\x1b\x9b\x07\r\n\t\u202e\u0301\u200bab \x00\x7f漢👍é") | st.characters(),
    max_size=200,
)


@given(hostile, hostile, hostile, st.integers(80, 200))
def test_no_letter_makes_a_line_too_wide_or_steers_the_terminal(
    kind: str, reason: str, step: str, width: int
) -> None:
    strange = letter(x_iterum_kind=kind, x_iterum_reason=reason, x_iterum_step=step)
    _, _, *lines, _, _, _ = told("text", strange, width=width).split("\n")
    assert 2 <= len(lines) <= 3
    for line in lines:
        assert line.isprintable()
        assert columns(line) <= width
    assert all(line.isprintable() for line in told("json", strange).split("\n"))


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdefg", 6, "abcde…"),
        ("漢字漢字", 8, "漢字漢字"),
        ("漢字漢字a", 8, "漢字漢…"),
        ("a漢字", 4, "a漢…"),
        ("two\n  lines", 20, "two lines"),
    ],
)
def test_a_cut_keeps_as_much_as_fits(text: str, width: int, short: str) -> None:
    assert cut(text, width) == short
