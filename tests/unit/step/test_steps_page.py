"""`docs/steps.md` against the code: every example of it is run. `test_steps_page_words.py` looks at the rest."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from iterum_sidecar.exit_codes import ExitCode
from iterum_sidecar.pipeline.lint import lint_file
from iterum_sidecar.step import Result, Transform, run_on
from iterum_sidecar.step.calling import describe

from .steps_page import BLOCK, blocks, page, programs, told_anywhere

if TYPE_CHECKING:
    from collections.abc import Mapping

TEST = "test_shout.py"
PYTERUM = "old_shout.py"
DEBUGGED = "try_shout.py"


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, which is the working directory, with all programs of the page and what they ask for."""
    monkeypatch.chdir(tmp_path)
    for name, program in programs().items():
        (tmp_path / name).write_text(program, encoding="utf-8")
    (tmp_path / "words.txt").write_text("cat dog")
    (tmp_path / "texts" / "animals").mkdir(parents=True)
    for name, text in TEXTS.items():
        (tmp_path / "texts" / name).write_text(text)
    (tmp_path / "pipeline.json").write_text(pipeline())
    return tmp_path


#: The event loop of a step that names one.
BACKEND = {"reversed_text": 'backend="trio"'}
TEXTS = {"short.txt": "a cat", "animals/long.txt": "a dog and a cat and a bird"}


def pipeline() -> str:
    (block,) = blocks("json")
    return block


def test_every_block_is_of_a_kind_that_is_checked_here() -> None:
    assert {language for language, _ in BLOCK.findall(page())} == {"python", "json", "sh", "text"}
    assert page().count("\n```") == 2 * len(BLOCK.findall(page()))


# -- Python


@dataclass
class Example:
    """What a step of the page is tried on, and what it makes: for each result its channel, its metadata, and its files."""

    inputs: Mapping[str, str]
    results: list[tuple[str | None, dict[str, object], dict[str, str]]]
    config: Mapping[str, Any] = field(default_factory=dict)
    custom: Mapping[str, Any] = field(default_factory=dict)


def plain(files: dict[str, str]) -> tuple[None, dict[str, object], dict[str, str]]:
    """What a result of these files is, without a channel and metadata of its own."""
    return None, {}, files


EXAMPLES = {
    "shout.py": Example({"a.txt": "cat"}, [plain({"loud/a.txt": "CAT"})]),
    "halves.py": Example(
        {"a.txt": "1\n2\n"},
        [plain({"a.txt": "1\n2\n", "top/a.txt": "1\n", "bottom/a.txt": "2\n"})],
    ),
    "sorted_lines.py": Example({"a.txt": "2\n1\n"}, [plain({"a.txt.sorted": "1\n2\n"})]),
    "parts.py": Example(
        {"a b": "x\ny\n"}, [plain({"a b/part-aa": "x\n"}), plain({"a b/part-ab": "y\n"})]
    ),
    "capitals.py": Example({"a": "cat\ndog"}, [plain({"a": "CAT\nDOG"})]),
    "lines.py": Example(
        {"a.txt": "x\ny\n"}, [plain({"a.txt/0001.txt": "x"}), plain({"a.txt/0002.txt": "y"})]
    ),
    "reversed_text.py": Example({"a.txt": "cat"}, [plain({"a.txt": "tac"})]),
    "without_words.py": Example(
        {"a": "a cat or a mouse"},
        [plain({"a": "a or a mouse"})],
        config={"config_files": {"words": "words.txt"}},
    ),
    "chapters.py": Example(
        {"b": "B", "a": "A", "c": "C"},
        [plain({"chapter-a": "AB"}), plain({"chapter-c": "C"})],
    ),
    "longest.py": Example(
        {"a": "cat", "b": "longer", "c": ""},
        [(None, {"k": 1, "of": 3}, {"b": "longer"})],
        custom={"k": 1},
    ),
    "lengths.py": Example(
        {"a": "cat", "b": ""},
        [(None, {"k": 1}, {"a.length": "3\n"}), (None, {"k": 1}, {"b.length": "0\n"})],
        custom={"k": 1},
    ),
    "by_length.py": Example({"a": "a cat"}, [("short", {}, {"a": "a cat"})]),
    "counted.py": Example(
        {"a": "a cat"}, [(None, {"k": 1, "words": 2}, {"a": "a cat"})], custom={"k": 1}
    ),
    "replace.py": Example(
        {"a": "a cat, no dog"},
        [plain({"a": "a ---, no ---"})],
        config={"by": "-", "config_files": {"words": "words.txt"}},
    ),
    "summed.py": Example({"a": "1 2"}, [plain({"sum.txt": "3\n"})]),
    "tolerant.py": Example(
        {"a": "cat"},
        [
            (
                "bad",
                {"why": "invalid literal for int() with base 10: 'cat'"},
                {"a": "cat"},
            )
        ],
    ),
    "on_device.py": Example({"a": "cat"}, [plain({"a": "cat"})], config={"device": "words.txt"}),
    "told.py": Example({"a": "cat"}, [plain({"a": "cat"})]),
    # What the seed of `run_on`'s first fragment draws, in every process.
    "sampled.py": Example({"a": "1\n2\n3\n4\n"}, [plain({"a": "3\n4\n"})]),
}


def load(path: Path) -> Transform[..., object]:
    """Run a program of the page, as an import would, and return the step in it."""
    names = runpy.run_path(str(path), run_name="example")
    (step,) = [value for value in names.values() if isinstance(value, Transform)]
    return step


def told(result: Result) -> tuple[str | None, dict[str, Any], dict[str, str]]:
    return (
        result.channel,
        result.custom,
        {file.name: file.path.read_text() for file in result.files},
    )


def test_every_program_is_run_by_one_of_these_tests() -> None:
    assert set(programs()) == {*EXAMPLES, TEST, PYTERUM, DEBUGGED}
    assert len(programs()) == len(blocks("python"))
    for name in EXAMPLES:
        step = name.removesuffix(".py")
        assert programs()[name].endswith(
            f'if __name__ == "__main__":\n    {step}.run({BACKEND.get(step, "")})\n'
        )


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_step_makes_what_the_page_says(name: str, examples: Path) -> None:
    step, example = load(examples / name), EXAMPLES[name]
    for file, text in example.inputs.items():
        (examples / file).write_text(text)
    results = run_on(step, *example.inputs, custom=example.custom, config=example.config)
    assert [told(result) for result in results] == example.results


def test_the_step_that_routes_has_the_plain_channel_too(examples: Path) -> None:
    (result,) = run_on(load(examples / "by_length.py"), examples / "texts" / "animals" / "long.txt")
    assert result.channel is None


def test_the_step_that_tolerates_makes_a_sum_where_it_can(examples: Path) -> None:
    (examples / "a").write_text("1 2")
    (result,) = run_on(load(examples / "tolerant.py"), "a")
    assert told(result) == plain({"a.sum": "3\n"})


def test_the_reason_of_the_failure_is_what_the_page_shows(examples: Path) -> None:
    step = load(examples / "summed.py")
    (examples / "empty.txt").touch()
    with pytest.raises(ValueError, match="no numbers") as failed:
        run_on(step, "empty.txt")
    assert f"{describe(failed.value, step.function)}\n" in blocks("text")


def test_the_step_that_ends_its_process_does(examples: Path) -> None:
    with pytest.raises(SystemExit, match="the device is gone"):
        run_on(load(examples / "on_device.py"), "words.txt", config={"device": "absent"})


def test_a_step_without_a_sidecar_says_what_the_page_shows(examples: Path) -> None:
    run = subprocess.run(
        [sys.executable, "shout.py"], capture_output=True, text=True, env={}, check=False
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr in blocks("text")


def test_the_refusal_of_a_channel_is_what_the_page_quotes(examples: Path) -> None:
    mapping = {"queue_mapping": {"short": "short-texts"}}
    step = (examples / "by_length.py").read_text()
    (examples / "misspelt.py").write_text(step.replace('"short"', '"shrot"'))
    with pytest.raises(ValueError, match="shrot") as refused:
        run_on(load(examples / "misspelt.py"), "texts/short.txt", config=mapping)
    assert told_anywhere(f"`{str(refused.value).partition(';')[0]}`")


# -- the shell's blocks, and the pipeline


def environment() -> dict[str, str]:
    """Return an environment in which `python` and `iterum-sidecar` are those of these tests."""
    scripts = os.path.dirname(sys.executable)
    return {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "PYTEST_ADDOPTS": ""}


@pytest.mark.parametrize("block", blocks("sh"), ids=lambda block: block.split("\n")[0])
def test_what_is_to_be_typed_works(block: str, examples: Path) -> None:
    run = subprocess.run(
        ["sh", "-ec", block],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.usefixtures("examples")
def test_nothing_is_wrong_with_the_pipeline() -> None:
    read, problems = lint_file("pipeline.json")
    assert problems == []
    assert read is not None


def run_pipeline(text: str, output: str, *, expected_code: int = 0) -> dict[str, str]:
    """Run a pipeline on the texts, and return its results."""
    Path("tried.json").write_text(text)
    command = ["local", "tried.json", "--input", "texts", "--output", output]
    run = subprocess.run(
        [sys.executable, "-m", "iterum_sidecar", *command],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert run.returncode == expected_code, run.stdout + run.stderr
    delivered = [
        path
        for path in Path(output).rglob("*.txt")
        if path.relative_to(output).parts[0] not in {".iterum", "logs"}
    ]
    return {str(path.relative_to(output)): path.read_text() for path in delivered}


@pytest.mark.usefixtures("examples")
def test_the_pipeline_leads_each_text_where_the_page_says() -> None:
    assert run_pipeline(pipeline(), "results") == {
        "loud/short.txt": "A CAT",
        "animals/long.txt": "a --- and a --- and a bird",
    }


def pipeline_of(*command: str) -> str:
    """Return a pipeline of one step."""
    step = {
        "name": "step",
        "command": command,
        "input_channel": "texts",
        "output_channel": "results",
    }
    return json.dumps(
        {
            "name": "tried",
            "fragmenter": {"output_channel": "texts"},
            "steps": [step],
            "combiner": {"input_channel": "results"},
        }
    )


SHOUTED = {"loud/short.txt": "A CAT", "loud/animals/long.txt": "A DOG AND A CAT AND A BIRD"}


@pytest.mark.usefixtures("examples")
@pytest.mark.parametrize("program", [PYTERUM, "shout.py"])
def test_the_step_of_pyterum_and_the_step_of_the_page_do_the_same(program: str) -> None:
    assert run_pipeline(pipeline_of("python", program), "results") == SHOUTED


def test_another_interpreter_is_a_path_relative_to_the_pipeline_file(examples: Path) -> None:
    (examples / "venv").symlink_to(sys.prefix)
    assert run_pipeline(pipeline_of("venv/bin/python", "shout.py"), "results") == SHOUTED


def test_what_a_step_logs_is_where_the_page_says(examples: Path) -> None:
    run_pipeline(pipeline_of("python", "told.py"), "results")
    log = (examples / "results" / "logs" / "step-1.log").read_text()
    assert len(re.findall(r"^INFO:root:\S{64} has 1 files$", log, re.MULTILINE)) == len(TEXTS)


@pytest.mark.parametrize(
    ("call", "error"), [("input()", "EOFError"), ("breakpoint()", "bdb.BdbQuit")]
)
def test_a_step_has_nobody_to_ask(examples: Path, call: str, error: str) -> None:
    step = (examples / "shout.py").read_text()
    (examples / "asks.py").write_text(step.replace("    for file", f"    {call}\n    for file"))
    run_pipeline(pipeline_of("python", "asks.py"), "results", expected_code=ExitCode.DEAD_LETTERS)
    log = (examples / "results" / "logs" / "step-1.log").read_text()
    assert re.search(rf"^{re.escape(error)}", log, re.MULTILINE)
    assert len([*(examples / "results" / "failed").glob("step/*/input/*")]) == len(TEXTS)


def test_the_debugger_stops_where_the_step_fails(examples: Path) -> None:
    step = (examples / "shout.py").read_text()
    (examples / "shout.py").write_text(step.replace("        with", "        1 / 0\n        with"))
    (command,) = [block for block in blocks("sh") if DEBUGGED in block]
    run = subprocess.run(
        ["sh", "-ec", command],
        input="p file.name\nq\n",
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert "'short.txt'" in run.stdout
