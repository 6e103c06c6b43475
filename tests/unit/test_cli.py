"""The command line as a newcomer and a shell meet it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.cli import main
from iterum_sidecar.exit_codes import (
    LINT_MEANINGS,
    LOCAL_MEANINGS,
    NEW_MEANINGS,
    PROBE_MEANINGS,
    ExitCode,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "meanings"),
    [
        ("run", {code: code.meaning for code in ExitCode}),
        ("local", LOCAL_MEANINGS),
        ("lint", LINT_MEANINGS),
        ("new", NEW_MEANINGS),
        ("probe", PROBE_MEANINGS),
    ],
)
def test_each_command_lists_its_own_exit_codes(
    capsys: pytest.CaptureFixture[str], command: str, meanings: Mapping[ExitCode, str]
) -> None:
    told = re.findall(r"^ +(\d+)  (.+)$", help_of(capsys, command), re.MULTILINE)
    assert told == [(str(int(code)), meaning) for code, meaning in meanings.items()]


def test_the_help_of_the_program_leads_to_that_of_the_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = help_of(capsys)
    assert "exit codes of a command" in shown
    assert "SIDECAR_" not in shown


@pytest.mark.parametrize("arguments", [["lint", "missing.json"], ["new", "mine"], ["--help"]])
def test_a_reader_that_has_gone_ends_it_quietly(tmp_path: Path, arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", "iterum_sidecar", *arguments],
        cwd=tmp_path,
        stdout=writing,
        stderr=subprocess.PIPE,
        # Unbuffered, argparse meets the error itself, and is as quiet.
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        check=False,
        timeout=60,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")
