from __future__ import annotations

import subprocess
import sys
from io import StringIO
from typing import TYPE_CHECKING

from iterum_sidecar.exit_codes import ExitCode
from iterum_sidecar.pipeline.lint_command import lint_command
from tests.unit.pipeline.made import step_values, values, write

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def run(path: Path) -> tuple[int, str]:
    stream = StringIO()
    return lint_command(path, stream), stream.getvalue()


def test_a_right_file_is_one_line_and_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, values())
    assert run(path) == (ExitCode.DONE, f"{path}: 1 step, nothing wrong\n")
    write(
        tmp_path, values(step_values(output_channel="x"), step_values(name="b", input_channel="x"))
    )
    monkeypatch.chdir(tmp_path)
    assert run(path.relative_to(tmp_path))[1] == "pipeline.json: 2 steps, nothing wrong\n"


def test_errors_are_reported_and_the_exit_code_tells(tmp_path: Path) -> None:
    path = write(tmp_path, values(step_values(input_channel="x"), note=1))
    code, text = run(path)
    assert code == ExitCode.CONFIGURATION
    assert f"{path}: steps[0].input_channel\n  error: " in text
    assert text.endswith("\n2 errors, 1 warning\n")


def test_warnings_alone_are_told_and_no_failure(tmp_path: Path) -> None:
    code, text = run(write(tmp_path, values(note=1)))
    assert (code, text.splitlines()[-1]) == (ExitCode.DONE, "1 warning")


def test_a_file_that_cannot_be_read_is_a_report_too(tmp_path: Path) -> None:
    code, text = run(write(tmp_path, "{"))
    assert code == ExitCode.CONFIGURATION
    assert "pipeline.json:1:2\n  error: is no JSON" in text


def test_an_image_alone_is_a_warning_where_nothing_runs_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, values(step_values(image="a:1", command=None)))
    monkeypatch.setenv("PATH", str(tmp_path))
    code, text = run(path)
    assert code == ExitCode.DONE
    assert "warning: for a run on this machine: " in text
    assert 'remedy: add a "command"' in text
    (tmp_path / "podman").touch(0o755)
    assert run(path) == (ExitCode.DONE, f"{path}: 1 step, nothing wrong\n")


def test_the_model_imports_nothing_of_local_runs_and_no_trio() -> None:
    program = (
        "import sys, iterum_sidecar.pipeline.lint_command\n"
        "bad = {'trio', 'anyio', 'yaml', 'iterum_sidecar.local', 'iterum_sidecar.sidecar'}\n"
        "sys.exit(', '.join(sorted(bad & set(sys.modules))) or None)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_no_name_of_a_file_can_steer_a_terminal(tmp_path: Path) -> None:
    written = values(step_values(command=["x\x1b[31m/y"]))
    _, text = run(write(tmp_path, written, "p\x1b[31m\n.json"))
    assert "\x1b" not in text
    assert text.splitlines()[0].endswith(".json: steps[0].command[0]")
