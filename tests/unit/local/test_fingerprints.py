from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from iterum_sidecar.local.fingerprints import (
    ancestry,
    fingerprint,
    fingerprints,
    output_identity,
    pipeline_hash,
)
from iterum_sidecar.pipeline.model import Combiner, Fragmenter, Pipeline, Step

if TYPE_CHECKING:
    from pathlib import Path

STEP = Step(
    name="s",
    input_channel="in",
    output_channel="out",
    command=["python", "step.py", "word", "data.txt"],
    config={"size": 1, "of": {"x": 1, "y": 2}, "config_files": {"model": "model.txt"}},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("step.py", "data.txt", "model.txt", "other.py"):
        (tmp_path / name).write_text(name)
    return tmp_path


def pipeline_of(step: Step, **config: object) -> Pipeline:
    return Pipeline(
        name="p",
        fragmenter=Fragmenter(output_channel="in"),
        steps=(step,),
        combiner=Combiner(input_channel="out"),
        config=config,
    )


def print_of(folder: Path, step: Step = STEP, **config: object) -> str:
    return fingerprint(pipeline_of(step, **config), step, folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "t"},
        {"version": "2"},
        {"output_channel": "elsewhere"},
        {"command": ["python", "step.py", "other", "data.txt"]},
        {"command": ["python", "step.py", "word"]},
        {"command": ["python", "step.pyword", "data.txt"]},
        {"config": {**STEP.config, "size": 2}},
        {"config": {**STEP.config, "config_files": {"other": "model.txt"}}},
        {"config": {**STEP.config, "config_files": {}}},
    ],
    ids=str,
)
def test_a_step_that_may_make_something_else_has_another_fingerprint(
    folder: Path, changes: dict[str, Any]
) -> None:
    assert print_of(folder, msgspec.structs.replace(STEP, **changes)) != print_of(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"instance_count": 4},
        {"prefetch_count": 1},
        {"image": "not:run"},
        {"config": dict(reversed(STEP.config.items()))},
        {"config": {**STEP.config, "of": {"y": 2, "x": 1}}},
    ],
    ids=str,
)
def test_a_step_that_makes_the_same_keeps_its_fingerprint(
    folder: Path, changes: dict[str, Any]
) -> None:
    assert print_of(folder, msgspec.structs.replace(STEP, **changes)) == print_of(folder)


def test_an_image_counts_where_it_is_what_runs(folder: Path) -> None:
    one, two = (msgspec.structs.replace(STEP, command=None, image=f"image:{n}") for n in "12")
    assert print_of(folder, one) != print_of(folder, two)


def test_the_configuration_of_the_whole_pipeline_counts_unless_the_step_replaces_it(
    folder: Path,
) -> None:
    assert print_of(folder, more=1) != print_of(folder)
    assert print_of(folder, size=3) == print_of(folder)


@pytest.mark.parametrize("name", ["step.py", "data.txt", "model.txt"])
def test_the_content_of_its_files_counts_and_their_time_does_not(folder: Path, name: str) -> None:
    before = print_of(folder)
    (folder / "other.py").write_text("changed")
    (folder / name).touch()
    assert print_of(folder) == before
    (folder / name).write_text("changed")
    changed = print_of(folder)
    assert changed != before
    (folder / name).unlink()
    assert print_of(folder) not in {before, changed}
    (folder / name).write_text(name)
    assert print_of(folder) == before


def test_a_file_of_several_steps_is_read_once_as_long_as_it_stays_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    digest = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:  # noqa: ANN401 - as hashlib.file_digest has it
        read.append(os.path.basename(file.name))
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    model = {"config_files": {"model": "model.txt"}}
    steps = tuple(
        Step(name=name, input_channel="in", output_channel="out", config=model) for name in "ab"
    )
    pipeline = msgspec.structs.replace(pipeline_of(STEP), steps=steps)
    first = fingerprints(pipeline, folder)
    assert fingerprints(pipeline, folder) == first
    assert read == ["model.txt"]
    (folder / "model.txt").write_text("changed")
    changed = fingerprints(pipeline, folder)
    assert all(changed[name] != first[name] for name in "ab")
    assert read == ["model.txt"] * 2


def test_the_folder_that_the_pipeline_lies_in_does_not_count(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("step.py", "data.txt", "model.txt"):
        (moved / name).write_text(name)
    assert print_of(moved) == print_of(folder)


def test_two_files_that_have_exchanged_their_contents_are_a_change(folder: Path) -> None:
    before = print_of(folder)
    (folder / "step.py").write_text("data.txt")
    (folder / "data.txt").write_text("step.py")
    assert print_of(folder) != before


def test_ancestry_is_of_the_step_of_all_before_it_and_of_the_first_fragments() -> None:
    whole = ancestry("own", ["a", "b"], "first")
    assert ancestry("own", ["b", "a"], "first") == whole
    others = {
        ancestry("other", ["a", "b"], "first"),
        ancestry("own", ["a"], "first"),
        ancestry("own", ["a", "c"], "first"),
        ancestry("own", ["a", "b"], "second"),
    }
    assert whole not in others
    assert len(others) == 4


def test_fragments_keep_their_ids_as_long_as_the_pipeline_keeps_its_name(folder: Path) -> None:
    one = pipeline_of(STEP)
    changed = msgspec.structs.replace(one, steps=(), config={"more": 1})
    assert pipeline_hash(one) == pipeline_hash(changed)
    assert pipeline_hash(one) != pipeline_hash(msgspec.structs.replace(one, name="q"))
    assert output_identity("hash", STEP, "1") != output_identity("hash", STEP, "2")
