"""`docs/steps.md` against the code: every example is run, every name, number and text that it quotes is held against its source."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from iterum_sidecar.messages import MOST_GATHERED, Failed, Gathers, decode_transformation_message
from iterum_sidecar.pipeline.lint import lint_file
from iterum_sidecar.step import Result, Transform, attempts, run_on
from iterum_sidecar.step.calling import LONGEST_REASON, describe

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "steps.md"
CLIENT = ROOT / "iterum_sidecar" / "step"
TEST = "test_shout.py"
PYTERUM = "old_shout.py"

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@cache
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def told_anywhere(text: str) -> bool:
    """Whether the page says this, in however many lines."""
    return text in " ".join(page().split())


def blocks(language: str) -> list[str]:
    return [text for found, text in _BLOCK.findall(page()) if found == language]


def programs() -> dict[str, str]:
    """Return the Python blocks by the file names in their first lines."""
    return {block.partition("\n")[0].removeprefix("# "): block for block in blocks("python")}


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
    assert {language for language, _ in _BLOCK.findall(page())} == {"python", "json", "sh", "text"}
    assert page().count("\n```") == 2 * len(_BLOCK.findall(page()))


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
    "lines.py": Example(
        {"a.txt": "x\ny\n"}, [plain({"a.txt/0001.txt": "x"}), plain({"a.txt/0002.txt": "y"})]
    ),
    "reversed_text.py": Example({"a.txt": "cat"}, [plain({"a.txt": "tac"})]),
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
    assert set(programs()) == {*EXAMPLES, TEST, PYTERUM}
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


# -- the shell's blocks, and the pipeline


def environment() -> dict[str, str]:
    """Return an environment in which `python` and `iterum-sidecar` are those of these tests."""
    scripts = os.path.dirname(sys.executable)
    return {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "PYTEST_ADDOPTS": ""}


@pytest.mark.parametrize("block", blocks("sh"), ids=lambda block: block.split("\n")[0])
def test_what_is_to_be_typed_works(block: str, examples: Path) -> None:
    run = subprocess.run(
        ["sh", "-ec", block], capture_output=True, text=True, env=environment(), check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.usefixtures("examples")
def test_nothing_is_wrong_with_the_pipeline() -> None:
    read, problems = lint_file("pipeline.json")
    assert problems == []
    assert read is not None


def run_pipeline(text: str, output: str) -> dict[str, str]:
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
    assert run.returncode == 0, run.stdout + run.stderr
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


@pytest.mark.usefixtures("examples")
def test_the_step_of_pyterum_and_the_step_of_the_page_do_the_same() -> None:
    results = []
    for program in (PYTERUM, "shout.py"):
        ported = {
            "name": "ported",
            "fragmenter": {"output_channel": "texts"},
            "steps": [
                {
                    "name": "shout",
                    "command": ["python", program],
                    "input_channel": "texts",
                    "output_channel": "results",
                }
            ],
            "combiner": {"input_channel": "results"},
        }
        results.append(run_pipeline(json.dumps(ported), f"of-{program}"))
    assert (
        results
        == [{"loud/short.txt": "A CAT", "loud/animals/long.txt": "A DOG AND A CAT AND A BIRD"}] * 2
    )


# -- what is quoted


def section(title: str) -> str:
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", page(), re.MULTILINE | re.DOTALL)
    return str(text)


def first_cells(text: str) -> list[str]:
    return re.findall(r"^\| `?([^|`]+?)`? \|", text, re.MULTILINE)[1:]


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
        "ITERUM_CONFIG maps no queue to the output channel",
        "the transformation is at work and finishes nothing",
    ):
        assert told_anywhere(quoted)
        assert quoted in source


def test_everything_that_can_be_imported_is_told_of() -> None:
    from iterum_sidecar import step

    for name in step.__all__:
        if name != "Transform":  # what `@transform` makes; nobody needs its name
            assert re.search(rf"`@?{name}\b|\b{name}\(", page()), name


def test_links_lead_to_pages() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page()):
        assert (PAGE.parent / target).is_file(), target
