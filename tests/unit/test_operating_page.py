"""`docs/operating.md` against the code: no variable, default or exit code is told otherwise than it is."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from iterum_sidecar.cli import main
from iterum_sidecar.exit_codes import ExitCode
from iterum_sidecar.variables import CONTRACT, EXTENSIONS, Variable

PAGE = Path(__file__).parents[2] / "docs" / "operating.md"
VARIABLES = (*CONTRACT, *EXTENSIONS)
NAMES = {variable.name for variable in VARIABLES}
#: A name that can only be meant for one of ours; the contract's begin with one of the last four.
LOOKS_LIKE_OURS = re.compile(r"\b(?:SIDECAR|MQ|MINIO|ITERUM|TRANSFORMATION)_[A-Z0-9_]+\b")


@cache
def rows() -> list[list[str]]:
    """The cells of every row of every table, without the code marks around a whole cell."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("|") and not line.startswith("|---")
    ]


def rows_of(name: str) -> list[list[str]]:
    return [row for row in rows() if row[0] == name]


def default_as_told(variable: Variable) -> str:
    if variable.default is None:
        return "required"
    return variable.default or "empty"


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_every_variable_has_one_row_with_its_default_and_what_it_should_be(
    variable: Variable,
) -> None:
    ((_, default, expected, when),) = rows_of(variable.name)
    assert default == default_as_told(variable)
    assert expected == variable.expected
    assert when


def test_the_rows_that_begin_with_a_variable_are_those_that_exist() -> None:
    first = {row[0] for row in rows()}
    assert {name for name in first if re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+", name)} == NAMES


def test_no_variable_is_mentioned_that_does_not_exist() -> None:
    mentioned = set(LOOKS_LIKE_OURS.findall(PAGE.read_text(encoding="utf-8")))
    assert mentioned - NAMES == set()


def test_every_key_of_the_sidecar_object_in_the_example_exists() -> None:
    (example,) = re.findall(r'"sidecar": \{(.*)\}\}', PAGE.read_text(encoding="utf-8"))
    keys = re.findall(r'"(\w+)":', example)
    assert keys
    assert {f"SIDECAR_{key.upper()}" for key in keys} <= NAMES


@pytest.mark.parametrize("code", ExitCode, ids=lambda code: code.name)
def test_every_exit_code_has_one_row_with_its_meaning(code: ExitCode) -> None:
    ((_, meaning, what_to_do),) = [row for row in rows_of(str(int(code))) if len(row) == 3]
    assert meaning == code.meaning
    assert what_to_do


def test_no_exit_code_is_told_that_does_not_exist() -> None:
    told = {int(row[0]) for row in rows() if len(row) == 3 and row[0].isdigit()}
    assert told == {int(code) for code in ExitCode}


def test_help_prints_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for code in ExitCode:
        assert re.search(rf"^ *{int(code)}  {re.escape(code.meaning)}$", printed, re.MULTILINE)
