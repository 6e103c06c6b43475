"""The examples do what they show: each is run by the command line, and its results are looked at."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageStat

EXAMPLES = Path(__file__).parents[2] / "examples"
PICTURES = {path.stem for path in (EXAMPLES / "images" / "pictures").iterdir()}
TEXTS = EXAMPLES / "text" / "constitution"
SECONDS = 60


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """A copy, for pyterum writes its log to where it is started."""
    leave_out = shutil.ignore_patterns("__pycache__", "*.log")
    return Path(shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=leave_out))


def run(pipeline: Path, inputs: str, output: Path) -> dict[str, Any]:
    """Run a pipeline until it ends well, and return its summary."""
    command = [sys.executable, "-m", "iterum_sidecar", "local", str(pipeline), "--json"]
    command += ["--input", str(pipeline.parent / inputs), "--output", str(output)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    summary: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert summary["event"] == "summary"
    return summary


def results_in(output: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*.*")
        if path.is_file() and path.relative_to(output).parts[0] not in {".iterum", "logs"}
        if path.name != "lineage.jsonl"
    }


def rows_of(table: Path) -> list[list[str]]:
    with open(table, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_images_become_thumbnails_edges_and_one_sheet(examples: Path, tmp_path: Path) -> None:
    output = tmp_path / "results"
    pipeline = examples / "images" / "pipeline.json"
    assert run(pipeline, "pictures", output)["results_new"] == 2 * len(PICTURES) + 1
    made = {f"{kind}/{name}.jpg" for kind in ("thumbnails", "edges") for name in PICTURES}
    assert results_in(output).keys() == made | {"contact-sheet.jpg"}
    for name in PICTURES:
        with (
            Image.open(output / "thumbnails" / f"{name}.jpg") as small,
            Image.open(output / "edges" / f"{name}.jpg") as edges,
        ):
            assert max(small.size) == 240
            assert edges.mode == "L"
            # Dark but for the edges, and those are there.
            assert ImageStat.Stat(edges).mean[0] < 90
            assert edges.getextrema() == (0, 255)
    with Image.open(output / "contact-sheet.jpg") as sheet:
        assert sheet.width > 4 * 240
        assert sheet.height > len(PICTURES) // 4 * 2 * 240

    again = run(pipeline, "pictures", output)
    assert (again["outcome"], again["results_new"]) == ("nothing to do", 0)

    (examples / "images" / "pictures" / "cat.jpg").unlink()
    less = run(pipeline, "pictures", output)
    assert less["results_new"] == 1  # the sheet
    assert sorted(less["stale"]) == ["edges/cat.jpg", "thumbnails/cat.jpg"]


def test_the_step_in_pyterum_makes_the_same_pictures(examples: Path, tmp_path: Path) -> None:
    ours, pyterums = tmp_path / "ours", tmp_path / "pyterums"
    run(examples / "images" / "pipeline.json", "pictures", ours)
    run(examples / "images" / "pyterum.json", "pictures", pyterums)
    assert results_in(pyterums) == results_in(ours)


def test_the_two_pipelines_of_images_differ_in_one_command_alone() -> None:
    ours, pyterums = (
        (EXAMPLES / "images" / name).read_text(encoding="utf-8").splitlines()
        for name in ("pipeline.json", "pyterum.json")
    )
    differing = [pair for pair in zip(ours, pyterums, strict=True) if pair[0] != pair[1]]
    assert [each.strip() for pair in differing for each in pair] == [
        '"name": "images",',
        '"name": "images-pyterum",',
        '"command": ["python", "edges.py"],',
        '"command": ["python", "edges_pyterum.py"],',
    ]


def test_the_words_of_the_texts_are_counted(examples: Path, tmp_path: Path) -> None:
    output = tmp_path / "results"
    assert run(examples / "text" / "pipeline.toml", "constitution", output)["results_new"] == 2
    texts = {
        str(path.relative_to(TEXTS)): path.read_text(encoding="utf-8").lower()
        for path in TEXTS.rglob("*.txt")
    }
    assert len(texts) == 35
    words = {name: re.findall(r"[a-z]+(?:-[a-z]+)*", text) for name, text in texts.items()}
    left_out = (EXAMPLES / "text" / "left-out.txt").read_text(encoding="utf-8").split()
    expected = Counter(word for each in words.values() for word in each)
    for word in left_out:
        del expected[word]

    head, *rows = rows_of(output / "words.csv")
    assert head == ["word", "times"]
    assert {word: int(times) for word, times in rows} == expected
    assert [int(times) for _, times in rows] == sorted(expected.values(), reverse=True)

    head, *rows = rows_of(output / "texts.csv")
    assert head == ["text", "words"]
    assert {name: int(number) for name, number in rows} == {
        name: len(each) for name, each in words.items()
    }


@pytest.mark.parametrize("example", ["images", "text"])
def test_the_sources_of_what_is_in_the_repository_are_named(example: str) -> None:
    folder = EXAMPLES / example
    told = (folder / "SOURCES.md").read_text(encoding="utf-8")
    if example == "images":
        for picture in (folder / "pictures").iterdir():
            assert f"| `{picture.name}` |" in told
    else:
        assert "`constitution/`" in told
    assert "public domain" in told
