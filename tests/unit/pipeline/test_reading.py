from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from iterum_sidecar.pipeline.model import Combiner, Fragmenter, Pipeline, Step
from iterum_sidecar.pipeline.reading import LARGEST_FILE, read_pipeline
from tests.unit.pipeline.files import JSON, TOML, YAML, only, refused
from tests.unit.pipeline.made import step_values, values, write

if TYPE_CHECKING:
    from pathlib import Path


# -- what is right


@pytest.mark.parametrize(
    ("name", "text"),
    [("p.json", JSON), ("p.toml", TOML), ("p.yaml", YAML), ("p.YML", YAML), ("p.pipeline", JSON)],
)
def test_all_formats_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    path = write(tmp_path, text, name)
    assert read_pipeline(path) == Pipeline(
        name="demo",
        input_dataset="cats",
        input_dataset_commit_hash="abc",
        fragmenter=Fragmenter(image="fragmenter:1", output_channel="first", config={"n": 1}),
        steps=(
            Step(
                name="edges",
                image="edges:1",
                command=["python", "edges.py"],
                input_channel="first",
                output_channel="last",
                instance_count=2,
                prefetch_count=5,
                version="3",
                config={"blur": 2.5, "files": ["a"]},
            ),
        ),
        combiner=Combiner(input_channel="last"),
        config={"all": True},
        source=str(path),
    )


def test_what_may_be_left_out_may_be_null_too(tmp_path: Path) -> None:
    optional = ("image", "command", "instance_count", "prefetch_count", "version", "config")
    bare = values({k: v for k, v in step_values().items() if k != "command"})
    with_nulls = values(step_values(**dict.fromkeys(optional)), config=None, input_dataset=None)
    read = read_pipeline(write(tmp_path, with_nulls))
    assert read == read_pipeline(write(tmp_path, bare))
    (only_step,) = read.steps
    assert (only_step.instance_count, only_step.prefetch_count, only_step.config) == (1, None, {})


@pytest.mark.parametrize(("version", "text"), [("2024-1", "2024-1"), (7, "7"), (1.5, "1.5")])
def test_a_version_may_be_a_number(tmp_path: Path, version: object, text: str) -> None:
    read = read_pipeline(write(tmp_path, values(step_values(version=version))))
    assert read.steps[0].version == text


def test_unknown_keys_are_carried_with_their_places_and_those_of_the_manager_are_not(
    tmp_path: Path,
) -> None:
    written = values(step_values(imagee="x"), pipeline_run_hash="h", stepz=[])
    written["fragmenter"]["config_files_all"] = {}
    read = read_pipeline(write(tmp_path, written))
    assert read.unknown_keys == (("stepz",), ("steps", 0, "imagee"))


# -- the file


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "nothing.json"
    place, message, remedy = only(path)
    assert (place, message) == ("", "is not there")
    assert str(path) in remedy


def test_a_folder(tmp_path: Path) -> None:
    place, message, remedy = only(tmp_path)
    assert (place, message) == ("", "is a folder, not a pipeline file")
    assert str(tmp_path / "pipeline.json") in remedy


def test_what_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    os.mknod(path, stat.S_IFSOCK | 0o600)
    assert only(path)[1:] == (
        "cannot be read: No such device or address",
        "make it a file that you may read",
    )


def test_a_path_through_a_file(tmp_path: Path) -> None:
    assert only(write(tmp_path, JSON) / "p.json")[1] == "cannot be read: Not a directory"


@pytest.mark.parametrize("content", [b"", b" \n\t"])
def test_an_empty_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content)
    assert only(path)[:2] == ("", "is empty")


def test_a_file_that_is_not_utf_8_says_the_line(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(b'{\n"name": "caf\xe9"}')
    _, message, remedy = only(path)
    assert message == "is not UTF-8: byte 14, in line 2"
    assert "UTF-8" in remedy


def test_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(JSON.encode("utf-8-sig"))
    assert "byte order mark" in only(path)[1]


def test_a_file_of_data_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    with path.open("wb") as file:
        file.truncate(LARGEST_FILE + 1)
    assert only(path)[1] == "is larger than 16 MiB"


# -- types


@pytest.mark.parametrize(
    ("key", "value", "told", "remedy"),
    [
        ("name", 5, "5, and should be a text", "put it in quotation marks"),
        ("name", False, "false, and should be a text", "put it in quotation marks"),
        (
            "command",
            "python 'a b.py'",
            "\"python 'a b.py'\", and should be a list of texts",
            '["python","a b.py"]',
        ),
        ("command", 'say "', "a list of texts", '["say","\\""]'),
        ("command", ["a", 5], "a list with 5 in it", 'write a list of texts, as ["python"'),
        ("command", {"a": 1}, "an object, and should be a list of texts", "write a list of texts"),
        ("image", ["a"], "a list, and should be a text", "write a text there"),
        ("instance_count", "2", '"2", and should be a whole number', "without quotation marks"),
        ("instance_count", 1.5, "1.5, and should be a whole number from 1 up", "write a whole"),
        ("instance_count", True, "true, and should be a whole number", "write a whole number"),
        (
            "prefetch_count",
            [],
            "a list, and should be a whole number from 0 to 65535",
            "0 to 65535",
        ),
        ("version", [1], "a list, and should be a text or a number", "write a text or a number"),
        ("version", True, "true, and should be a text or a number", "write a text or a number"),
        ("config", [1], "a list, and should be an object", "write an object there"),
        ("input_channel", 1, "1, and should be the name of a channel", "put it in quotation marks"),
    ],
)
def test_a_value_of_a_wrong_type_is_told_with_what_it_should_be(
    tmp_path: Path, key: str, value: object, told: str, remedy: str
) -> None:
    place, message, found_remedy = only(write(tmp_path, values(step_values(**{key: value}))))
    assert place == f": steps[0].{key}"
    assert told in message
    assert remedy in found_remedy


@pytest.mark.parametrize("content", [[], 5, "text", None, True])
def test_a_file_that_holds_no_object(tmp_path: Path, content: object) -> None:
    place, message, remedy = only(write(tmp_path, json.dumps(content)))
    assert place == ""
    assert message.endswith(", and should be an object")
    assert remedy == 'write an object with "name", "fragmenter", "steps", "combiner"'


def test_all_that_is_missing_is_told_at_once_and_once_each(tmp_path: Path) -> None:
    places = [problem.place.rpartition(": ")[2] for problem in refused(write(tmp_path, {}))]
    assert places == ["name", "fragmenter", "steps", "combiner"]


def test_problems_of_several_steps_and_parts_are_told_at_once(tmp_path: Path) -> None:
    written: dict[str, Any] = values(
        step_values(name=1, command="x"),
        {"name": "b"},
        step_values(instance_count="1"),
    )
    written |= {"fragmenter": {"image": 5}, "combiner": [], "config": 5}
    written["steps"].append("text")
    problems = refused(write(tmp_path, written))
    places = sorted(problem.place.rpartition(": ")[2] for problem in problems)
    assert places == [
        "combiner",
        "config",
        "fragmenter.image",
        "fragmenter.output_channel",
        "steps[0].command",
        "steps[0].name",
        "steps[1].input_channel",
        "steps[1].output_channel",
        "steps[2].instance_count",
        "steps[3]",
    ]
