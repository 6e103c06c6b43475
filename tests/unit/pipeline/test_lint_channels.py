"""What is wrong with the channels of a pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.pipeline.made import found, only, pipeline, step, told

if TYPE_CHECKING:
    from pathlib import Path


def test_an_input_that_no_one_writes(tmp_path: Path) -> None:
    made = pipeline(step("a", "first", "last"), step("b", "lst", "last"))
    place, message, remedy = only(made, tmp_path)
    assert place == "steps[1].input_channel"
    assert message == 'no one writes the channel "lst", so step "b" would never get a fragment'
    assert remedy.startswith('did you mean "last"? ')
    assert remedy.endswith('written are "first", "last"')


def test_a_combiner_that_no_one_writes_to(tmp_path: Path) -> None:
    problems = found(pipeline(step("a", "first", "lst")), tmp_path)
    assert told(problems) == [
        ("combiner.input_channel", "error"),
        ("steps[0].output_channel", "error"),
    ]
    assert "so the combiner would never get a fragment" in problems[0].message
    assert problems[0].remedy.startswith('did you mean "lst"? ')


def test_outputs_that_no_one_reads(tmp_path: Path) -> None:
    made = pipeline(step("a", "x", "y"), first="frist", last="y")
    problems = found(made, tmp_path)
    assert told(problems) == [
        ("steps[0].input_channel", "error"),
        ("fragmenter.output_channel", "error"),
    ]
    assert problems[1].message == (
        'no one reads the channel "frist", so what the fragmenter makes would go nowhere'
    )
    made = pipeline(step("a", "first", "last"), step("b", "last2", "lost"), last="last")
    assert ("steps[1].output_channel", "error") in told(found(made, tmp_path))


@pytest.mark.parametrize("where", ["step", "pipeline"])
def test_a_mapping_that_leads_to_no_channel_that_is_read(tmp_path: Path, where: str) -> None:
    mapping = {"queue_mapping": {"bad": "lats", "good": "last"}}
    if where == "step":
        made, place = (
            pipeline(step("a", "first", "last", config=mapping)),
            "steps[0].config.queue_mapping.bad",
        )
    else:
        made = pipeline(step("a", "first", "last"), config=mapping)
        place = "config.queue_mapping.bad"
    found_place, message, remedy = only(made, tmp_path)
    assert found_place == place
    assert message == '"lats" is no channel that is read, so what goes to "bad" would be lost'
    assert remedy.startswith('did you mean "last"? ')


def test_two_readers_of_one_channel(tmp_path: Path) -> None:
    made = pipeline(step("a", "first", "last"), step("b", "first", "last"))
    place, message, remedy = only(made, tmp_path)
    assert place == "steps[1].input_channel"
    assert 'step "a" reads the channel "first" too' in message
    assert "a channel of its own" in remedy
    made = pipeline(step("a", "first", "last"), step("b", "last", "last"))
    assert ("combiner.input_channel", "error") in told(found(made, tmp_path))


def test_a_circle_names_its_steps(tmp_path: Path) -> None:
    made = pipeline(
        step("a", "first", "x", config={"queue_mapping": {"end": "last"}}),
        step("b", "y", "x"),
        step("c", "x", "y"),
    )
    place, message, remedy = only(made, tmp_path)
    assert place == "steps[1].input_channel"
    assert message.endswith('"b" → "c" → "b"')
    assert remedy == "lead one of their outputs to a step outside the circle"


def test_a_mapping_of_the_pipeline_that_leads_a_step_to_itself(tmp_path: Path) -> None:
    made = pipeline(
        step("a", "first", "last"),
        step("report", "errors", "last"),
        config={"queue_mapping": {"bad": "errors"}},
    )
    place, message, remedy = only(made, tmp_path)
    assert place == "steps[1].input_channel"
    assert message.endswith('"report" → "report"')
    assert "move it to the steps that use it" in remedy


def test_every_circle_is_found_and_what_hangs_behind_it(tmp_path: Path) -> None:
    made = pipeline(
        step("a", "a", "a"),
        step("b", "b", "b", config={"queue_mapping": {"out": "c"}}),
        step("c", "c", "last"),
        step("d", "first", "last"),
    )
    problems = found(made, tmp_path)
    places = ["steps[0].input_channel", "steps[1].input_channel", "steps[2].input_channel"]
    assert [place for place, _ in told(problems)] == places
    assert problems[2].message == (
        'nothing that the fragmenter makes reaches step "c": "b" before it gets nothing either'
    )


@pytest.mark.parametrize(
    ("channel", "remedy"),
    [
        ("", "give the channel a name"),
        ("a/b", "give the channel another name"),
        ("a\0b", "give the channel another name"),
        ("ü" * 101, "give the channel a shorter name"),
        ("lineage", "give the channel another name"),
        ("first-dead-letter", "give the channel another name"),
    ],
)
def test_a_name_that_no_channel_can_have(tmp_path: Path, channel: str, remedy: str) -> None:
    made = pipeline(step("a", "first", channel), step("b", channel, "last"))
    place, _, found_remedy = only(made, tmp_path)
    assert (place, found_remedy) == ("steps[0].output_channel", remedy)


@pytest.mark.parametrize("channel", ["ü" * 100, "other-dead-letter", "a.b c", "Lineage"])
def test_a_name_that_a_channel_can_have(tmp_path: Path, channel: str) -> None:
    made = pipeline(step("a", "first", channel), step("b", channel, "last"))
    assert found(made, tmp_path) == []
