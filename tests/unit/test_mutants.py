"""The mutants that `tests/mutation` tries: each is Python, and says something else than the module."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.checks import CHECKS
from tests.mutation.mutants import mutants_of

SOURCE = '''
LIMIT = 3


def grade(number: int = 0) -> str:
    """Say how large it is."""
    if number < LIMIT and number != 1:
        return "small"
    return "large"
'''


def test_each_fault_is_told_as_it_is() -> None:
    told = {(each.line, each.before, each.after) for each in mutants_of(SOURCE)}
    assert told == {
        (7, "number < LIMIT and number != 1", "not (number < LIMIT and number != 1)"),
        (7, "number < LIMIT and number != 1", "number < LIMIT or number != 1"),
        (7, "number < LIMIT and number != 1", "number < LIMIT and number < LIMIT"),
        (7, "number < LIMIT and number != 1", "number != 1 and number != 1"),
        (7, "number < LIMIT", "number <= LIMIT"),
        (7, "number != 1", "number == 1"),
        (7, "1", "2"),
        (8, "return 'small'", "nothing"),
        (9, "return 'large'", "nothing"),
    }


def test_each_fault_is_in_the_code_of_its_own_mutant_alone() -> None:
    answers = set()
    for number in range(len(list(mutants_of(SOURCE)))):
        namespace: dict[str, Any] = {}
        exec(list(mutants_of(SOURCE))[number].compiled("grade.py"), namespace)
        answers.add(tuple(map(namespace["grade"], range(5))))
    right = ("small", "large", "small", "large", "large")
    assert right not in answers
    assert len(answers) == 9


@pytest.mark.parametrize("module", CHECKS)
def test_every_mutant_of_a_module_can_be_tried(module: str) -> None:
    source = Path("iterum_sidecar", f"{module}.py").read_text(encoding="utf-8")
    count = len(list(mutants_of(source)))
    assert count >= 15
    plain = ast.dump(ast.parse(source))
    for number in range(0, count, 40):
        mutant = list(mutants_of(source))[number]
        mutant.compiled(f"{module}.py")
        assert ast.dump(mutant.tree) != plain


@pytest.mark.parametrize("module", CHECKS)
def test_the_tests_that_are_named_for_a_module_are_there(module: str) -> None:
    assert all(Path(file).is_file() for file in CHECKS[module].files)
