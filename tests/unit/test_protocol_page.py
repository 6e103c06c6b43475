"""`docs/protocol.md` against the code: what is said to happen when a rule is broken is shown by a test that exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from iterum_sidecar.entries import DeadLetterKind
from iterum_sidecar.exit_codes import ExitCode

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "protocol.md"
HEADING = "## When a rule is broken"
PARTS = (
    "The environment",
    "The input socket",
    "The output socket",
    "A result and its files",
    "The queues",
    "Objects and the store",
    "The manager",
    "ITERUM_CONFIG",
    "Acknowledgement",
    "A fragmenter",
)
WHO = {
    "operator",
    "transformation",
    "publisher",
    "broker",
    "store",
    "manager",
    "fragmenter",
    "anyone",
}
REFERENCE = re.compile(r"`((?:unit|wire|faults)/[\w/]+\.py)::(test_\w+)`")
#: Ends that are not a rule's: done, a fault of our own, the command line, told to stop, came back, an address, dead letters.
OTHER_ENDS = {0, 1, 2, 16, 17, 18, 19, 130, 143}


@cache
def section() -> str:
    return PAGE.read_text(encoding="utf-8").partition(HEADING)[2]


@cache
def rows() -> list[list[str]]:
    """The cells of every row of the section's tables."""
    return [
        [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        for line in section().splitlines()
        if line.startswith("|") and not line.startswith(("|---", "| rule"))
    ]


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_part_of_the_contract_has_a_table() -> None:
    heading = re.compile(r"^\*\*(.+)\*\*(?: \(.+\))?$", re.MULTILINE)
    names = heading.findall(section())
    assert tuple(names) == PARTS
    for part in heading.split(section())[2::2]:
        assert part.count("\n| ") >= 3, part[:200]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:60])
def test_every_row_says_who_breaks_the_rule_what_happens_and_what_shows_it(row: list[str]) -> None:
    rule, who, happens, shown = row
    assert rule
    assert set(who.split(", ")) <= WHO
    assert happens
    references = REFERENCE.findall(shown)
    assert references
    assert re.sub(REFERENCE, "", shown).strip(", ") == "", "nothing but tests"
    for file, name in references:
        assert (TESTS / file).is_file(), file
        assert name in names_in(file), f"{file} has no {name}"


def test_every_kind_of_dead_letter_is_that_of_a_broken_rule() -> None:
    told = set(re.findall(r"`(\w+)`", section()))
    assert {str(kind) for kind in DeadLetterKind} <= told


def test_every_end_that_a_broken_rule_can_bring_is_told() -> None:
    told = {int(code) for row in rows() for code in re.findall(r"exit (\d+)", row[2])}
    assert told == {int(code) for code in ExitCode} - OTHER_ENDS
