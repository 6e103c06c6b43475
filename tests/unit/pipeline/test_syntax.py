"""The text of a pipeline file: mistakes in it, and what JSON cannot say."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.pipeline.reading import read_pipeline
from tests.unit.pipeline.files import JSON, TOML, YAML, only, place_and_remedy, refused
from tests.unit.pipeline.made import values, write

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "place", "remedy"),
    [
        ('{"a": 1,\n  "b": [1,\n  2,]}', ":3:", "remove the comma before the closing"),
        ('{"a": 1,}', ":1:", "remove the comma before the closing"),
        ('{"a": 1\n  "b": 2}', ":2:3", "put a comma between"),
        ("{'a': 1}", ":1:2", "double quotation marks"),
        ('{\n// so\n"a": 1}', ":2:1", "JSON has no comments"),
        ('{"a": [1, 2', ":1:12", "ends too early"),
        ('{"a": yes}', ":1:7", "correct the text there"),
    ],
)
def test_a_mistake_in_json_has_its_line_column_and_remedy(
    tmp_path: Path, text: str, place: str, remedy: str
) -> None:
    found_place, message, found_remedy = only(write(tmp_path, text))
    assert found_place.startswith(place)
    assert message.startswith("is no JSON: ")
    assert remedy in found_remedy


def test_a_mistake_in_toml_has_its_line_and_column(tmp_path: Path) -> None:
    place, message, _ = only(write(tmp_path, 'name = "demo"\nsteps = ]\n', "p.toml"))
    assert (place, message) == (":2:9", "is no TOML: Invalid value")


def test_a_key_twice_in_toml_is_a_mistake(tmp_path: Path) -> None:
    assert only(write(tmp_path, "a = 1\na = 2\n", "p.toml"))[0].startswith(":2:")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("name: demo\nsteps: [a\n", ":3:1"),
        ("name: demo\n\tsteps: []\n", ":2:1"),
        ("a: !!python/name:os.system\n", ":1:4"),
        ("? [a]\n: 1\n", ":1:3"),
        ("a: &a {b: *a}", ":1:"),
        ("a: 2020-13-45\n", ""),
        ("a: \x07\n", ""),
    ],
)
def test_a_mistake_in_yaml_has_its_line_and_column(tmp_path: Path, text: str, place: str) -> None:
    found, message, _ = only(write(tmp_path, text, "p.yaml"))
    assert found.startswith(place)
    assert message.startswith("is ")
    assert "YAML" in message


def test_yaml_without_pyyaml_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    _, message, remedy = only(write(tmp_path, YAML, "p.yaml"))
    assert "PyYAML" in message
    assert "pip install 'iterum-sidecar[local]'" in remedy
    read_pipeline(write(tmp_path, JSON))


def test_another_ending_is_read_as_json_and_told_when_it_is_none(tmp_path: Path) -> None:
    place, message, _ = only(write(tmp_path, "name: demo\n", "p.txt"))
    assert place == ":1:1"
    assert "read as JSON, for its name ends in none of .json, .toml, .yaml, .yml" in message


@pytest.mark.parametrize("name", ["p.json", "p.yaml"])
def test_a_file_nested_too_deeply(tmp_path: Path, name: str) -> None:
    text = "[" * 100_000 + "]" * 100_000 if name == "p.json" else "[" * 3000 + "]" * 3000
    assert only(write(tmp_path, text, name))[1] == "is nested too deeply"


def test_a_list_in_yaml_that_holds_itself(tmp_path: Path) -> None:
    place, message, _ = only(write(tmp_path, "a: &a [*a]\n", "p.yaml"))
    assert (place, "recursive" in message) == (":1:4", True)


def test_a_small_yaml_file_that_stands_for_millions_of_values(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "more than 200,000 values" in only(write(tmp_path, "\n".join(lines), "p.yaml"))[1]


def test_a_yaml_file_may_share_and_replace_what_it_says_once(tmp_path: Path) -> None:
    text = YAML.replace("config: {n: 1}", "config: &shared {n: 1, y: 2}")
    text = text.replace("config: {blur: 2.5, files: [a]}", "config: {<<: *shared, n: 3}")
    read = read_pipeline(write(tmp_path, text, "p.yaml"))
    assert read.fragmenter.config == {"n": 1, "y": 2}
    assert read.steps[0].config == {"n": 3, "y": 2}


# -- what JSON cannot say


@pytest.mark.parametrize("name", ["p.json", "p.yaml"])
def test_keys_that_are_there_twice_are_refused_with_their_places(tmp_path: Path, name: str) -> None:
    text = json.dumps(values(config={"x": {"k": 1}, "y": 1}))
    text = text.replace('"k": 1', '"k": 1, "k": 2, "k": 3')
    text = text.replace('"input_channel": "first"', '"input_channel": "z", "input_channel": "f"')
    problems = refused(write(tmp_path, text, name))
    places = [problem.place.rpartition(": ")[2] for problem in problems]
    assert places == ["steps[0].input_channel", "config.x.k"]
    assert {problem.remedy for problem in problems} == {"remove all but one"}


@pytest.mark.parametrize(
    ("name", "config", "place"),
    [
        ("p.toml", "day = 2024-05-01", "config.day"),
        ("p.toml", "list = [1, inf]", "config.list[1]"),
        ("p.yaml", "day: 2024-05-01", "config.day"),
        ("p.yaml", "n: .nan", "config.n"),
        ("p.yaml", "5: five", 'config."5"'),
        ("p.yaml", "on: five", "config.True"),
        ("p.yaml", "s: !!set {a, b}", "config.s"),
        ("p.json", '{"n": NaN}', "config.n"),
        ("p.json", '{"n": -Infinity}', "config.n"),
        ("p.json", '{"n": "\\ud800"}', "config.n"),
    ],
)
def test_what_no_container_could_be_told_is_refused(
    tmp_path: Path, name: str, config: str, place: str
) -> None:
    text = {
        "p.toml": TOML.replace("config = { all = true }", f"config = {{ {config} }}"),
        "p.yaml": YAML.replace("config: {all: true}", f"config: {{{config}}}"),
        "p.json": JSON.replace('{"all": true}', config),
    }[name]
    assert place_and_remedy(write(tmp_path, text, name))[0] == f": {place}"


def test_a_number_too_long_to_be_read(tmp_path: Path) -> None:
    text = JSON.replace("2.5", "1" * 5000)
    assert only(write(tmp_path, text))[2] == "write a shorter number"
