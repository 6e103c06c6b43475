"""The words of a local run, held against all that the sidecars can say: nothing names a variable of a pod."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.local.run import TOLD_OTHERWISE
from iterum_sidecar.local.wording import WARNINGS, in_words_of_a_pipeline
from iterum_sidecar.telemetry.logs import get_log, tell_warnings
from iterum_sidecar.variables import CONTRACT, EXTENSIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).parents[3] / "iterum_sidecar"
#: What of the sidecar runs in a local run too.
MODULES = [
    *sorted((PACKAGE / "stages").glob("*.py")),
    *(
        PACKAGE / f"{name}.py"
        for name in (
            "brokers/publishing",
            "config_files",
            "deaths",
            "hangs",
            "input_connection",
            "patience",
            "shortages",
            "sidecar",
            "store_faults",
            "unix_sockets",
            "volume",
            "volume_budget",
        )
    ),
]
#: Warnings that cannot come there: the queue is the journal, and nothing pauses.
OF_A_POD = {
    "the broker did not take a message; offering it again",
    "pausing: nothing but dead letters",
    "the broker took the place in the queue's line away; taking another, and going on with what is in flight",
    "a result is refused; its description is too long",
    "the broker does not take back a message that it has delivered; offering it again once a minute",
}
VARIABLES = re.compile("|".join(rf"\b{each.name}\b" for each in (*CONTRACT, *EXTENSIONS)))


def warnings() -> Iterator[tuple[str, set[str]]]:
    """Every warning that is written out in these modules, and the names of its fields."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "_log.warning":
                event = node.args[0]
                fields = {keyword.arg or "" for keyword in node.keywords}
                if isinstance(event, ast.Constant):
                    yield str(event.value), fields
                else:
                    assert ast.unparse(event) == "f'waiting for {self._service}'"
                    yield "waiting for the store", fields


def texts() -> Iterator[str]:
    """Every text in these modules that names a variable, without the docstrings."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Expr):
                node.value = (
                    ast.Constant(None) if isinstance(node.value, ast.Constant) else node.value
                )
            if isinstance(node, ast.Constant) and VARIABLES.search(str(node.value)):
                yield str(node.value)


def test_every_warning_of_a_sidecar_has_words_of_its_own_here() -> None:
    assert {event for event, _ in warnings()} == {*WARNINGS, *TOLD_OTHERWISE, *OF_A_POD}


def test_the_words_have_no_other_fields_than_the_warning() -> None:
    for event, fields in warnings():
        used = {name for _, name, _, _ in Formatter().parse(WARNINGS.get(event, "")) if name}
        assert used <= fields, event


def test_a_warning_is_told_in_these_words() -> None:
    told: list[str] = []
    with tell_warnings(told.append, but=(), words=WARNINGS):
        get_log("iterum_sidecar.test").warning("waiting for the transformation", seconds=10)
    assert told == ["its program has not connected for 10 s"]


def test_no_error_of_a_sidecar_names_a_variable() -> None:
    found = [text for text in texts() if text not in WARNINGS]
    assert found
    for text in found:
        assert not VARIABLES.search(in_words_of_a_pipeline(text)), text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "the transformation did not connect to s within 30 s (SIDECAR_TRANSFORMATION_START_TIMEOUT)",
            'the transformation did not connect to s within 30 s ("transformation_start_timeout" of "sidecar" in its config)',
        ),
        (
            "did not answer the kill message within 5 s (SIDECAR_KILL_TIMEOUT)",
            'did not answer the kill message within 5 s ("kill_timeout" of "sidecar" in its config)',
        ),
        (
            "ITERUM_CONFIG maps no queue to the output channel 'x'",
            "queue_mapping in its config has no output channel 'x'",
        ),
        (
            "a file cannot be written to the volume: No space left on device; make room on it",
            "a file cannot be written to the output folder: No space left on device; make room on it",
        ),
        ("ValueError: bad image", "ValueError: bad image"),
    ],
)
def test_errors_and_reasons_name_keys_of_the_file(text: str, told: str) -> None:
    assert in_words_of_a_pipeline(text) == told
