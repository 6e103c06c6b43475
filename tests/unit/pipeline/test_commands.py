from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from iterum_sidecar.pipeline.commands import missing_scripts, named_files, resolve_command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("edges.py", "run", "table.csv", "-x", "sub/deep.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_words_that_are_files_beside_the_pipeline_become_absolute(folder: Path) -> None:
    command = ["run", "edges.py", "sub/deep.py", "./table.csv", "sub", "other.py", "-x", "5"]
    assert resolve_command(command, folder) == [
        f"{folder}/run",
        f"{folder}/edges.py",
        f"{folder}/sub/deep.py",
        f"{folder}/table.csv",
        "sub",
        "other.py",
        "-x",
        "5",
    ]


@pytest.mark.parametrize("python", ["python", "python3"])
def test_python_is_the_interpreter_that_runs_us(folder: Path, python: str) -> None:
    assert resolve_command([python, "edges.py"], folder) == [sys.executable, f"{folder}/edges.py"]
    assert resolve_command(["env", python], folder) == ["env", python]
    (folder / python).touch()
    assert resolve_command([python], folder) == [f"{folder}/{python}"]


def test_a_first_word_is_a_path_or_is_left_to_path(folder: Path) -> None:
    assert resolve_command(["bin/tool"], folder) == [f"{folder}/bin/tool"]
    assert resolve_command(["/bin/cat", "/dev/null"], folder) == ["/bin/cat", "/dev/null"]
    assert resolve_command(["cat"], folder) == ["cat"]
    assert resolve_command([], folder) == []


def test_a_relative_folder_is_made_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    relative = folder.relative_to(folder.parent)
    assert resolve_command(["run"], relative) == [f"{folder}/run"]
    monkeypatch.chdir(folder)
    assert named_files(["edges.py"], Path()) == [folder / "edges.py"]


def test_named_files_are_the_regular_files_each_once(folder: Path) -> None:
    (folder / "link.py").symlink_to("edges.py")
    os.mkfifo(folder / "pipe")
    command = ["run", "edges.py", "./edges.py", "link.py", "sub", "pipe", "-x", "none", "/dev/null"]
    assert named_files(command, folder) == [folder / "run", folder / "edges.py", folder / "link.py"]
    assert named_files(["python", "edges.py"], folder) == [folder / "edges.py"]


@pytest.mark.parametrize("word", ["x" * 300, "a\0b", "", "y/" * 3000, "\n"])
def test_words_that_can_be_no_file_are_left_alone(folder: Path, word: str) -> None:
    assert resolve_command(["sh", "-c", word], folder) == ["sh", "-c", word]
    assert named_files(["sh", word], folder) == []


def test_words_that_look_like_a_script_and_are_none_are_found(folder: Path) -> None:
    command = ["Rscript", "plot.R", "edges.py", "sub/no.sh", "out.csv", "/opt/x.jl", "gone.py"]
    assert list(missing_scripts(command, folder)) == [
        (1, folder / "plot.R"),
        (3, folder / "sub/no.sh"),
        (5, Path("/opt/x.jl")),
        (6, folder / "gone.py"),
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["-c", "cp x.py"],
        ["-c", "run.sh"],
        ["-m", "package.js"],
        ["--file=x.py"],
        ["-x.py"],
        ["https://host/x.js"],
        ["*.py"],
        ["copy a.py"],
        ["py"],
        ["a.pyx"],
    ],
)
def test_what_is_no_script_is_not_missed(folder: Path, words: list[str]) -> None:
    assert list(missing_scripts(["tool", *words], folder)) == []
