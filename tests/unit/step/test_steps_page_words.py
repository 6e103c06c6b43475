"""`docs/steps.md` against the code: every name, number and text that it quotes is held against its source."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar import step
from iterum_sidecar.messages import MOST_GATHERED, Failed, Gathers, decode_transformation_message
from iterum_sidecar.step import (
    Batch,
    File,
    Fragment,
    Result,
    Transform,
    attempts,
    config,
    config_file,
    run_on,
    transform,
)
from iterum_sidecar.step.calling import LONGEST_REASON

from .steps_page import CLIENT, PAGE, ROOT, first_cells, page, section, told_anywhere

if TYPE_CHECKING:
    from collections.abc import Callable


def test_the_variables_are_those_that_the_client_reads() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in CLIENT.glob("*.py"))
    read = set(re.findall(r'"((?:DATA|ITERUM|TRANSFORMATION)_[A-Z_]+)"', source))
    assert read == set(first_cells(section("Variables")))


def test_the_messages_beyond_the_contract_are_what_a_sidecar_reads() -> None:
    messages = [json.loads(cell) for cell in first_cells(section("Beside other sidecars"))]
    messages[0]["failed"]["fragment_id"] = 64 * "a"
    kinds = [type(decode_transformation_message(json.dumps(each).encode())) for each in messages]
    assert kinds == [Failed, Gathers]


@pytest.mark.parametrize(
    "limit",
    [
        f"{MOST_GATHERED:,}",
        f"{LONGEST_REASON:,} characters",
        f"in {attempts.FIRST_LIMIT / 60:.0f} minutes",
        f"in {attempts.RETURN_LIMIT:.0f} s",
    ],
)
def test_the_limits_are_those_of_the_code(limit: str) -> None:
    assert told_anywhere(limit)


def test_what_is_quoted_of_logs_is_what_the_code_says() -> None:
    source = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "iterum_sidecar").rglob("*.py")
    )
    for quoted in (
        "this sidecar is told of a failure by the end of the process only",
        "the transformation is at work and finishes nothing",
    ):
        assert told_anywhere(quoted)
        assert quoted in source


NAMES = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section("All names"), re.MULTILINE))


def test_all_names_are_those_that_can_be_imported() -> None:
    assert set(NAMES) == set(step.__all__)


@pytest.mark.parametrize("kind", [Transform, Fragment, Batch, File, Result])
def test_all_that_a_class_has_is_named_on_the_page(kind: type[object]) -> None:
    has = {*dir(kind), *vars(Transform(len))} if kind is Transform else {*dir(kind)}
    if kind is Batch:
        has -= {*dir(Sequence)}
    named = re.findall(r"`(\w+)`", NAMES[kind.__name__])
    assert {*named} == {name for name in has if not name.startswith("_")}


@pytest.mark.parametrize("function", [transform, config, config_file, run_on])
def test_all_that_a_function_takes_is_named_on_the_page(function: Callable[..., object]) -> None:
    named = re.findall(r"`\*?([a-z]\w+)(?:=([^`]*))?`", NAMES[function.__name__])
    parameters = inspect.signature(function).parameters
    assert [name for name, _ in named] == list(parameters)
    for name, default in named:
        if default:
            assert parameters[name].default == ast.literal_eval(default)


def test_links_lead_to_pages() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page()):
        assert (PAGE.parent / target).is_file(), target
