"""The command line, as far as it goes without a broker; `tests/wire/test_dead_letters.py` has one."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from iterum_sidecar import cli
from iterum_sidecar.dead_letters import arguments, command
from iterum_sidecar.dead_letters.choosing import Selection
from iterum_sidecar.dead_letters.command import Options
from iterum_sidecar.exit_codes import DEAD_LETTERS_MEANINGS, ExitCode

PAGE = Path(__file__).parents[3] / "docs" / "dead-letters.md"
NOWHERE = "amqp://user:swordfish@127.0.0.1:1"


def options(monkeypatch: pytest.MonkeyPatch, *given: str) -> Options:
    """What a command line means."""
    found: list[Options] = []

    def note(_: object, meant: Options, __: object) -> int:
        found.append(meant)
        return 0

    monkeypatch.setattr(command, "work_on_dead_letters", note)
    assert cli.main(["dead-letters", *given]) == 0
    return found[0]


def test_nothing_but_an_action_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options(monkeypatch, "list") == Options("list")
    assert options(monkeypatch, "retry") == Options("retry")


def test_everything_that_can_be_said_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    selection = Selection(
        ids=("a", "b"),
        kinds=frozenset({"breach", "conflict"}),
        reason="x y",
        after=datetime(2026, 11, 25, tzinfo=UTC),
        before=datetime(2026, 11, 25, 11, 30, tzinfo=UTC),
        limit=3,
        everything=True,
    )
    said = ["--id", "a", "b", "--id", "a", "--kind", "breach", "--kind", "conflict"]
    said += ["--limit", "3", "--all"]
    said += ["--reason", "x y", "--after", "2026-11-25", "--before", "2026-11-25T13:30+02:00"]
    where = f"--queue q --broker {NOWHERE} --timeout 3 --dry-run --json".split()
    retry = options(monkeypatch, "retry", *said, *where, "--to", "other")
    assert retry == Options("retry", "q", NOWHERE, 3.0, "json", selection, to="other", dry_run=True)
    discard = options(monkeypatch, "discard", "--all", "--save", "f", "--yes", "--wide")
    assert discard == Options(
        "discard", form="wide", selection=Selection(everything=True), save=Path("f"), yes=True
    )
    show = options(monkeypatch, "show", "body:0f", "--raw")
    assert show == Options("show", selection=Selection(ids=("body:0f",)), raw=True)


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["show"],
        ["show", ""],
        ["show", "a.b"],
        ["show", "body:"],
        ["show", "body:xyz"],
        ["show", "a" * 65],
        ["list", "--id"],
        ["list", "--limit", "0"],
        ["list", "--after", "soon"],
        ["list", "--before", "0001-01-01T00:00+14:00"],
        ["list", "--all"],
        ["list", "--json", "--wide"],
        ["list", "--queue", ""],
        ["list", "--queue", "-dead-letter"],
        ["list", "--queue", "q" * 256],
        ["list", "--broker", "http://user:swordfish@host"],
        ["list", "--broker", "amqp://user:sword#fish@host"],
        ["retry", "--to", ""],
        ["retry", "--yes"],
        ["discard", "--save", ""],
        ["discard", "--to", "q"],
    ],
)
def test_what_makes_no_sense_is_refused_and_no_secret_repeated(
    capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["dead-letters", *given])
    assert ended.value.code == ExitCode.USAGE
    assert not re.search("sword", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["retry"], "retry: say which dead letters, by --id, --kind"),
        (["retry", "--limit", "3"], "retry: say which dead letters, by --id, --kind"),
        (["discard", "--yes"], "discard: say which dead letters, by --id, --kind"),
        (["discard", "--all"], "discard asks before it does so, and there is nobody to ask"),
    ],
)
def test_what_changes_something_wants_to_be_told_what(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    told: str,
) -> None:
    monkeypatch.setattr("sys.stdin", open("/dev/null", encoding="ascii"))  # noqa: SIM115
    assert cli.main(["dead-letters", *given, "--queue", "q", "--broker", NOWHERE]) == (
        ExitCode.USAGE
    )
    sys.stdin.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"iterum-sidecar: {told}")


def test_a_broker_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.environ", {})
    code = cli.main(["dead-letters", "list", "--queue", "q", "--broker", NOWHERE])
    captured = capsys.readouterr()
    assert (code, captured.out) == (ExitCode.SERVICE, "")
    assert captured.err == (
        "iterum-sidecar: 127.0.0.1:1 (127.0.0.1): Connection refused;"
        " start it, or mend host and port in --broker\n"
    )


@pytest.mark.parametrize("action", [[], ["list"], ["show"], ["retry"], ["discard"]])
def test_help_tells_every_exit_code(capsys: pytest.CaptureFixture[str], action: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["dead-letters", *action, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    told = re.findall(r"^ +(\d+)  (.+)$", printed, re.MULTILINE)
    assert told == [(str(int(code)), text) for code, text in DEAD_LETTERS_MEANINGS.items()]


def test_other_commands_start_without_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it is not wanted")

    monkeypatch.setattr(arguments, "add_arguments", fail)
    assert cli.main([]) == ExitCode.USAGE


def test_the_page_tells_each_exit_code_as_help_does() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == {
        int(code): meaning for code, meaning in DEAD_LETTERS_MEANINGS.items()
    }
