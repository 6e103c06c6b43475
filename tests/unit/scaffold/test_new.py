"""`iterum-sidecar new`: what it makes works, and what it cannot make it refuses in one line."""

from __future__ import annotations

import errno
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.cli import main
from iterum_sidecar.exit_codes import ExitCode
from iterum_sidecar.pipeline.lint import lint_file
from iterum_sidecar.scaffold.command import PLACEHOLDER, new_pipeline

if TYPE_CHECKING:
    from collections.abc import Sequence

TEMPLATE = Path(__file__).parents[3] / "iterum_sidecar" / "scaffold" / "template"
SHOUTED = {
    path.name: path.read_text(encoding="utf-8").upper() for path in (TEMPLATE / "input").iterdir()
}
SECONDS = 60


@pytest.fixture(autouse=True)
def beside_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(command: Sequence[str], directory: Path) -> subprocess.CompletedProcess[str]:
    # Without the repository's own settings of pytest, which are found by no file from a temporary folder.
    return subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def make(name: str) -> str:
    told = io.StringIO()
    assert new_pipeline(name, told) == ExitCode.DONE
    return told.getvalue()


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def assert_refused(name: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_in(Path())
    told = io.StringIO()
    assert new_pipeline(name, told) == ExitCode.CONFIGURATION
    assert told.getvalue() == ""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("iterum-sidecar: ")
    assert reason in line
    assert files_in(Path()) == before


# -- what is made


def test_every_file_of_the_template_is_made_and_none_keeps_the_placeholder() -> None:
    make("mine")
    expected = {name for name in files_in(TEMPLATE) if "__pycache__" not in name}
    assert files_in(Path("mine")) == expected
    for name in expected:
        assert PLACEHOLDER not in Path("mine", name).read_text(encoding="utf-8")


def test_lint_has_nothing_to_say_and_the_pipeline_bears_the_name() -> None:
    make("mine")
    pipeline, problems = lint_file("mine/pipeline.json")
    assert problems == []
    assert pipeline is not None
    assert pipeline.name == "mine"


def test_the_command_that_is_told_runs_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Away from PATH, so that the command that is told names the interpreter that runs us.
    monkeypatch.setenv("PATH", os.defpath)
    told = make("mine")
    (command,) = [line.strip() for line in told.splitlines() if line.startswith("    ")]
    ended = run(shlex.split(command), tmp_path)
    assert ended.returncode == ExitCode.DONE, ended.stdout + ended.stderr
    results = {
        path.name: path.read_text(encoding="utf-8") for path in Path("mine/results").glob("*.txt")
    }
    assert results == SHOUTED


def test_the_command_that_is_told_is_a_short_one_where_the_program_is_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "iterum-sidecar"
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    expected = (
        "    iterum-sidecar local mine/pipeline.json --input mine/input --output mine/results\n"
    )
    assert expected in make("mine")


def test_a_path_with_a_space_is_told_in_quotation_marks() -> None:
    Path("my things").mkdir()
    assert "'my things/mine/pipeline.json'" in make("my things/mine")


@pytest.mark.parametrize(
    "command", [["test_shout.py"], ["-m", "pytest", "-q", "-p", "no:cacheprovider"]]
)
def test_its_test_passes_by_itself_and_under_pytest(command: list[str], tmp_path: Path) -> None:
    make("mine")
    ended = run([sys.executable, *command], tmp_path / "mine")
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_its_test_fails_when_the_step_is_broken(tmp_path: Path) -> None:
    make("mine")
    step = Path("mine/shout.py")
    step.write_text(step.read_text(encoding="utf-8").replace(".upper()", ""), encoding="utf-8")
    assert run([sys.executable, "test_shout.py"], tmp_path / "mine").returncode == 1


def test_an_empty_folder_that_is_there_is_used() -> None:
    Path("mine").mkdir()
    make("mine")
    assert Path("mine/pipeline.json").exists()


def test_the_last_part_of_a_path_is_the_name(tmp_path: Path) -> None:
    Path("projects").mkdir()
    make(f"{tmp_path}/projects/été-2")
    assert '"name": "été-2"' in Path("projects/été-2/pipeline.json").read_text(encoding="utf-8")


def test_the_command_line_reaches_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "mine"]) == ExitCode.DONE
    assert "mine has a pipeline" in capsys.readouterr().out


# -- what is refused


@pytest.mark.parametrize("name", ["", ".hidden", "a b", "mine\n", "-x", "_", 'a"b', "/"])
def test_a_name_that_cannot_be_one_is_refused(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(name, "cannot be a pipeline's name", capsys)


def test_a_folder_with_something_in_it_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/.note").write_text("mine", encoding="utf-8")
    assert_refused("mine", "has files in it already", capsys)


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_a_name_that_is_taken_is_refused(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    if kind == "file":
        Path("mine").touch()
    else:
        Path("mine").symlink_to("nowhere")
    assert_refused("mine", "is a file already", capsys)


def test_a_parent_that_is_not_there_is_not_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused("nowhere/mine", "make that first", capsys)


@pytest.mark.parametrize("was_there", [True, False])
def test_nothing_is_left_when_there_is_no_room(
    was_there: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if was_there:
        Path("mine").mkdir()
    write_text = Path.write_text

    def fail_at_the_last(path: Path, text: str, encoding: str) -> int:
        if len(files_in(Path("mine"))) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_text(path, text, encoding)

    monkeypatch.setattr(Path, "write_text", fail_at_the_last)
    assert new_pipeline("mine", io.StringIO()) == ExitCode.VOLUME
    assert (
        capsys.readouterr().err == "iterum-sidecar: mine cannot be made: No space left on device\n"
    )
    assert list(Path("mine").glob("*")) == []
    assert Path("mine").exists() == was_there
