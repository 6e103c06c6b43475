from __future__ import annotations

import io
import json
import logging
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from iterum_sidecar.telemetry.logs import configure, get_log

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG = get_log("iterum_sidecar.tests")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logger() -> Iterator[logging.Logger]:
    """The sidecar's logger, which is given back as it was."""
    logger = logging.getLogger("iterum_sidecar")
    before = logger.handlers[:], logger.level, logger.propagate
    yield logger
    logger.handlers[:], logger.level, logger.propagate = before[0], before[1], before[2]


def written(form: str, event: str = "event", **fields: object) -> str:
    stream = io.StringIO()
    configure("debug", form, stream)
    LOG.warning(event, **fields)
    return stream.getvalue()


def as_json(**fields: object) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(written("json", "event", **fields))
    return line


# -- the two forms


def test_a_json_line_has_its_time_severity_constants_and_fields() -> None:
    stream = io.StringIO()
    configure("info", "json", stream, step="edges", pipeline="hash")
    LOG.error("dead letter", fragment_id="a" * 64, attempts=3, seconds=1.25, none=None, ids=["x"])
    line = json.loads(stream.getvalue())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "severity": "ERROR",
        "message": "dead letter",
        "step": "edges",
        "pipeline": "hash",
        "fragment_id": "a" * 64,
        "attempts": 3,
        "seconds": 1.25,
        "none": None,
        "ids": ["x"],
    }


def test_a_text_line_is_for_reading() -> None:
    line = written("text", "at work", queue="in", reason="no such key", seconds=1.23456, empty="")
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d warning at work  queue=in  reason='no such key'  seconds=1\.23  empty=''\n",
        line,
    )


def test_auto_is_text_on_a_terminal_and_json_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    configure("info", "auto", terminal)
    LOG.info("event")
    configure("info", "auto", pipe)
    LOG.info("event")
    assert terminal.getvalue().endswith("info    event\n")
    assert json.loads(pipe.getvalue())["message"] == "event"


@pytest.mark.parametrize(
    ("level", "told"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_only_what_is_at_the_level_or_above_is_written(level: str, told: list[str]) -> None:
    stream = io.StringIO()
    configure(level, "json", stream)
    for each in ("debug", "info", "warning", "error"):
        getattr(LOG, each)(each)
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == told


def test_to_configure_again_replaces_the_first_and_nothing_is_written_twice() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure("info", "json", first)
    configure("info", "json", second)
    LOG.info("event")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_fault_of_our_own_has_its_traceback(form: str) -> None:
    stream = io.StringIO()
    configure("info", form, stream)
    try:
        raise ValueError("what went wrong")
    except ValueError as error:
        LOG.exception("fault", error, stage="intake")
    text = json.loads(stream.getvalue())["traceback"] if form == "json" else stream.getvalue()
    assert "test_a_fault_of_our_own_has_its_traceback" in text
    assert text.rstrip().endswith("ValueError: what went wrong")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_value_of_any_type_is_shown(form: str) -> None:
    line = written(form, error=ValueError("why"), path=re.compile("x"), number=float("nan"))
    assert "why" in line
    assert line.count("\n") == 1


# -- what comes from peers


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    "value",
    ["x" * 1_000_000, ValueError("x" * 1_000_000), ["x" * 64] * 20_000, ["x" * 1_000_000]],
    ids=["text", "error", "many", "long member"],
)
def test_a_long_value_is_cut(form: str, value: object) -> None:
    line = written(form, value=value)
    assert "x" * 64 in line
    assert len(line) < 4000


def test_a_value_that_is_not_long_is_whole() -> None:
    assert as_json(value="x" * 2000)["value"] == "x" * 2000


ENDS_OF_LINES = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]  # fmt: skip


@pytest.mark.parametrize("end", ENDS_OF_LINES)
@pytest.mark.parametrize("form", ["text", "json"])
def test_no_value_can_forge_a_line(form: str, end: str) -> None:
    line = written(form, reason=f"x{end}12:00:00_error_forged")
    assert line.endswith("\n")
    if form == "json":  # for collectors, to whom only a newline ends a line
        assert not set("\r\n") & set(line[:-1])
        assert json.loads(line)["reason"] == f"x{end}12:00:00_error_forged"
    else:
        assert end not in line[:-1]


@given(value=st.text(st.characters(codec="utf-8")))
@example(value="\x1b[2K\rforged")
@example(value="\x9b2K")
@example(value="\u202egnp.exe")
def test_no_value_can_steer_a_terminal(value: str) -> None:
    line = written("text", reason=value)
    assert re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", line[:-1]) is None


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_value_that_is_not_unicode_is_shown_and_loses_no_line(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="utf-8", errors="backslashreplace")
    configure("info", form, stream)
    LOG.warning("event", path="/data-volume/\udcff")
    LOG.warning("next")
    stream.flush()
    assert [b"event" in line for line in buffer.getvalue().splitlines()] == [True, False]
    assert capsys.readouterr().err == ""
    stream.detach()
