from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from iterum_sidecar.pipeline.lint import LARGEST_CONFIG, lint_file, lint_for_local
from iterum_sidecar.pipeline.model import Fragmenter
from tests.unit.pipeline.made import found, only, pipeline, step, step_values, told, values, write

if TYPE_CHECKING:
    from pathlib import Path

    from iterum_sidecar.pipeline.model import Pipeline


def commanded(*command: str) -> Pipeline:
    return pipeline(step("a", "first", "last", command=list(command)))


def configured(config: dict[str, Any]) -> Pipeline:
    return pipeline(step("a", "first", "last", config=config))


def test_a_right_pipeline_has_no_problem(tmp_path: Path) -> None:
    (tmp_path / "w.bin").touch()
    right = pipeline(
        step("edges", "first", "pictures", config={"queue_mapping": {"bad": "errors"}}),
        step("sheet", "pictures", "last", image="sheet:1", prefetch_count=0, instance_count=3),
        step("report", "errors", "last", config={"config_files": {"w": "./w.bin"}}),
        config={"config_files": None, "queue_mapping": None, "any": [1]},
    )
    assert found(right, tmp_path) == []
    assert found(pipeline(last="first"), tmp_path) == []


# -- steps


def test_two_steps_of_one_name(tmp_path: Path) -> None:
    twins = pipeline(step("a", "first", "x"), step("a", "x", "last"))
    place, message, remedy = only(twins, tmp_path)
    assert (place, remedy) == ("steps[1].name", "give one of them another name")
    assert message.startswith('steps[0] is named "a" too')


@pytest.mark.parametrize("name", ["", "Edges", "a_b", "-a", "a-", "a.b", "a/b", "é", "a\n", "a b"])
def test_a_name_that_no_pod_can_have(tmp_path: Path, name: str) -> None:
    place, message, remedy = only(pipeline(step(name, "first", "last")), tmp_path)
    assert place == "steps[0].name"
    assert message.endswith("cannot be the name of a pod, a bucket and a folder")
    assert remedy == "use small letters a to z, digits, and - between them"


@pytest.mark.parametrize("name", ["a", "0", "a-b", "a--b", "x" * 23])
def test_a_name_that_a_pod_can_have(tmp_path: Path, name: str) -> None:
    assert found(pipeline(step(name, "first", "last")), tmp_path) == []


def test_a_long_name_is_a_warning_and_a_very_long_one_an_error(tmp_path: Path) -> None:
    long = found(pipeline(step("x" * 24, "first", "last")), tmp_path)
    assert told(long) == [("steps[0].name", "warning")]
    assert "it may have 23" in long[0].message
    assert told(found(pipeline(step("x" * 183, "first", "last")), tmp_path))[0][1] == "warning"
    assert only(pipeline(step("x" * 184, "first", "last")), tmp_path)[0] == "steps[0].name"


@pytest.mark.parametrize("name", ["fragmenter", "combiner"])
def test_the_names_of_the_two_ends_are_taken(tmp_path: Path, name: str) -> None:
    place, _, remedy = only(pipeline(step(name, "first", "last")), tmp_path)
    assert (place, remedy) == ("steps[0].name", "give the step another name")


def test_a_step_with_neither_command_nor_image(tmp_path: Path) -> None:
    place, message, remedy = only(pipeline(step("a", "first", "last", command=None)), tmp_path)
    assert (place, message) == ("steps[0]", 'step "a" has neither a command nor an image')
    assert 'add a "command"' in remedy
    assert found(pipeline(step("a", "first", "last", command=None, image="a:1")), tmp_path) == []


@pytest.mark.parametrize("count", [0, -1])
def test_no_instances(tmp_path: Path, count: int) -> None:
    made = pipeline(step("a", "first", "last", instance_count=count))
    assert only(made, tmp_path)[0] == "steps[0].instance_count"


@pytest.mark.parametrize("count", [-1, 65_536])
def test_a_prefetch_that_no_broker_takes(tmp_path: Path, count: int) -> None:
    made = pipeline(step("a", "first", "last", prefetch_count=count))
    place, message, _ = only(made, tmp_path)
    assert (place, "0 to 65,535" in message) == ("steps[0].prefetch_count", True)
    assert found(pipeline(step("a", "first", "last", prefetch_count=65_535)), tmp_path) == []


# -- commands


def test_programs_are_found_on_path_or_are_our_python(tmp_path: Path) -> None:
    assert found(commanded("cat", "-"), tmp_path) == []
    assert found(commanded("python3", "-V"), tmp_path) == []


def test_a_program_that_cannot_be_found(tmp_path: Path) -> None:
    place, message, _ = only(commanded("nosuch"), tmp_path)
    assert place == "steps[0].command[0]"
    assert message == (f'the program "nosuch" cannot be found, neither in {tmp_path} nor on PATH')


def test_a_program_beside_the_pipeline_file(tmp_path: Path) -> None:
    place, message, _ = only(commanded("bin/tool"), tmp_path)
    assert (place, f"looked for it at {tmp_path}/bin/tool" in message) == (
        "steps[0].command[0]",
        True,
    )
    tool = tmp_path / "bin" / "tool"
    tool.mkdir(parents=True)
    assert only(commanded("bin/tool"), tmp_path)[2] == "name the program itself"
    tool.rmdir()
    tool.touch(0o755)
    assert found(commanded("bin/tool"), tmp_path) == []


def test_a_program_that_is_not_executable(tmp_path: Path) -> None:
    (tmp_path / "edges.py").touch(0o644)
    place, message, remedy = only(commanded("edges.py"), tmp_path)
    assert (place, message) == ("steps[0].command[0]", f"{tmp_path}/edges.py is not executable")
    assert remedy == 'make it executable (chmod +x edges.py), or write "python" before it'
    (tmp_path / "tool").touch(0o644)
    assert only(commanded("tool"), tmp_path)[2] == "make it executable (chmod +x tool)"


def test_a_script_that_is_not_there_says_where_it_was_looked_for(tmp_path: Path) -> None:
    place, message, remedy = only(commanded("python", "-u", "steps/edges.py", "5"), tmp_path)
    assert place == "steps[0].command[2]"
    assert f"looked for it at {tmp_path}/steps/edges.py" in message
    assert "as seen from the pipeline file" in remedy


@pytest.mark.parametrize("command", [[], [""]])
def test_a_command_without_a_program(tmp_path: Path, command: list[str]) -> None:
    assert only(commanded(*command), tmp_path)[:2] == ("steps[0].command", "names no program")


def test_a_word_with_a_nul(tmp_path: Path) -> None:
    assert only(commanded("cat", "a\0b"), tmp_path)[0] == "steps[0].command[1]"


def test_the_fragmenters_command_is_looked_at_too(tmp_path: Path) -> None:
    fragmenter = Fragmenter(output_channel="last", command=["python", "split.py"])
    assert only(pipeline(fragmenter=fragmenter), tmp_path)[0] == "fragmenter.command[1]"


# -- configuration


def test_config_files_that_are_not_there_are_named_wherever_they_are_asked_for(
    tmp_path: Path,
) -> None:
    (tmp_path / "there").touch()
    (tmp_path / "folder").mkdir()
    files = {"config_files": {"a": "there", "b": "gone.bin"}}
    made = pipeline(
        step("a", "first", "last", config={"config_files": {"my file": "folder"}}),
        fragmenter=Fragmenter(output_channel="first", config=files),
        config=files,
    )
    problems = found(made, tmp_path)
    assert told(problems) == [
        ("fragmenter.config.config_files.b", "error"),
        ('steps[0].config.config_files."my file"', "error"),
        ("config.config_files.b", "error"),
    ]
    assert f"is not there: looked for it at {tmp_path}/gone.bin" in problems[0].message
    assert "is no file" in problems[1].message


@pytest.mark.parametrize("file", ["/etc/passwd", "../x", "a/../b", "", ".", "a\0b", ".."])
def test_a_config_file_that_leads_out(tmp_path: Path, file: str) -> None:
    (tmp_path / "b").touch()
    place, message, remedy = only(configured({"config_files": {"a": file}}), tmp_path)
    assert place == "steps[0].config.config_files.a"
    assert message.endswith("leads out of the pipeline file's folder")
    assert remedy.startswith("put the file beside the pipeline file")


@pytest.mark.parametrize("key", ["config_files", "queue_mapping"])
def test_what_should_be_an_object_of_texts(tmp_path: Path, key: str) -> None:
    for value, place in (
        ([], f"steps[0].config.{key}"),
        ("text", f"steps[0].config.{key}"),
        ({"a": 5}, f"steps[0].config.{key}.a"),
        ({"a": None}, f"steps[0].config.{key}.a"),
    ):
        found_place, message, _ = only(configured({key: value}), tmp_path)
        assert found_place == place
        assert "and should be a" in message


def test_settings_of_a_sidecar_are_named_as_the_file_has_them(tmp_path: Path) -> None:
    config = {"sidecar": {"attemps": 5, "frame_limit": "long", "attempts": [1], "lineage": None}}
    problems = found(configured(config), tmp_path)
    assert [
        (*each, problem.message) for each, problem in zip(told(problems), problems, strict=True)
    ] == [
        (
            "steps[0].config.sidecar.attemps",
            "error",
            'the key "attemps" is unknown, and a sidecar does not start with it',
        ),
        (
            "steps[0].config.sidecar.frame_limit",
            "error",
            'is "long", and should be bytes, from 1024: the longest frame that the transformation may send',
        ),
        (
            "steps[0].config.sidecar.attempts",
            "error",
            "is a list, and should be a whole number from 1 to 1000: deaths of the transformation on one fragment"
            " before it is dead-lettered",
        ),
    ]
    assert problems[0].remedy == 'did you mean "attempts"? Otherwise remove it'


@pytest.mark.parametrize("value", [None, [], "text", 5])
def test_settings_of_a_sidecar_are_an_object(tmp_path: Path, value: object) -> None:
    place, message, _ = only(configured({"sidecar": value}), tmp_path)
    assert place == "steps[0].config.sidecar"
    assert message.endswith(", and should be an object")


@pytest.mark.parametrize(
    "settings",
    [
        {"attempts": 5},
        {"attempts": "5"},
        {"attempts": ""},
        {"kill_on_error": False},
        {"drain_seconds": 2.5},
        {"s3_session_token": "x"},
    ],
    ids=str,
)
def test_settings_that_a_sidecar_takes_are_right(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    assert found(configured({"sidecar": settings}), tmp_path) == []


def test_a_configuration_that_no_process_could_be_given(tmp_path: Path) -> None:
    fits = {"x": "x" * (LARGEST_CONFIG - len('{"x":""}'))}
    assert found(configured(fits), tmp_path) == []
    too_large = {"x": fits["x"] + "x"}
    place, _, remedy = only(configured(too_large), tmp_path)
    assert (place, remedy) == ("steps[0].config", "put what is so large into a config file")


def test_the_largest_configuration_is_what_a_process_can_be_given_in_truth() -> None:
    at_most = {"ITERUM_CONFIG": "x" * LARGEST_CONFIG}
    child = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], at_most)
    assert os.waitpid(child, 0) == (child, 0)
    with pytest.raises(OSError, match="too long"):
        os.posix_spawn(
            sys.executable, [sys.executable], {"ITERUM_CONFIG": "x" * (LARGEST_CONFIG + 1)}
        )


# -- unknown keys


def test_an_unknown_key_is_a_warning_with_the_nearest_known_name(tmp_path: Path) -> None:
    written = values(step_values(instance_cuont=2), combinr={}, note="mine")
    written["fragmenter"]["comand"] = []
    _, problems = lint_file(write(tmp_path, written))
    assert [
        (*each, problem.remedy) for each, problem in zip(told(problems), problems, strict=True)
    ] == [
        ("combinr", "warning", 'did you mean "combiner"? Otherwise remove it'),
        ("note", "warning", "remove it"),
        ("fragmenter.comand", "warning", 'did you mean "command"? Otherwise remove it'),
        (
            "steps[0].instance_cuont",
            "warning",
            'did you mean "instance_count"? Otherwise remove it',
        ),
    ]


def test_a_misspelt_required_key_is_told_with_what_it_stands_for(tmp_path: Path) -> None:
    written = values(step_values(inputchannel="first", output_chanel="last", comand=["x"]))
    del written["steps"][0]["input_channel"], written["steps"][0]["output_channel"]
    _, problems = lint_file(write(tmp_path, written | {"confg": {}}))
    assert [
        (*each, problem.remedy) for each, problem in zip(told(problems), problems, strict=True)
    ] == [
        (
            "steps[0].input_channel",
            "error",
            'did you mean "input_channel" by "inputchannel"? Otherwise add it: the name of a channel',
        ),
        (
            "steps[0].output_channel",
            "error",
            'did you mean "output_channel" by "output_chanel"? Otherwise add it: the name of a channel',
        ),
        ("confg", "warning", 'did you mean "config"? Otherwise remove it'),
        ("steps[0].comand", "warning", 'did you mean "command"? Otherwise remove it'),
    ]


def test_a_key_stands_for_the_one_that_it_is_most_like(tmp_path: Path) -> None:
    written = values(step_values(outputchannel="last"))
    del written["steps"][0]["input_channel"], written["steps"][0]["output_channel"]
    _, problems = lint_file(write(tmp_path, written))
    assert [problem.message for problem in problems] == [
        '"input_channel" is missing',
        '"output_channel" is missing, and "outputchannel" is no key that anyone reads',
    ]


# -- a file as a whole


def test_a_file_is_linted_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "edges.py").touch()
    path = write(tmp_path, values(step_values(command=["python", "edges.py"])))
    made, problems = lint_file(path)
    assert made is not None
    assert (made.source, problems) == (str(path), [])


def test_what_is_wrong_beside_wrong_types_is_told_with_them(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        values(
            step_values(command="python edges.py"),
            step_values(name="b", input_channel="nowhere", instance_count="2"),
        ),
    )
    made, problems = lint_file(path)
    assert made is None
    assert told(problems) == [
        ("steps[0].command", "error"),
        ("steps[1].instance_count", "error"),
        ("steps[1].input_channel", "error"),
    ]


def test_nothing_is_said_of_channels_when_a_configuration_could_not_be_read(
    tmp_path: Path,
) -> None:
    path = write(
        tmp_path, values(step_values(config=5), step_values(name="b", input_channel="errors"))
    )
    assert told(lint_file(path)[1]) == [("steps[0].config", "error")]


# -- local runs


def test_an_image_alone_needs_a_container_tool_here(tmp_path: Path) -> None:
    made = pipeline(
        step("a", "first", "x", image="a:1", command=None),
        step("b", "x", "last", image="b:1"),
        fragmenter=Fragmenter(output_channel="first", image="f:1"),
    )
    assert found(made, tmp_path) == []
    (problem,) = lint_for_local(made, tmp_path, None)
    assert (problem.place, problem.severity) == ("pipeline.json: steps[0]", "error")
    assert problem.remedy == 'add a "command", such as ["python", "step.py"], or install podman'
    assert lint_for_local(made, tmp_path, "podman") == []
