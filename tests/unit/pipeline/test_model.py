from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iterum_sidecar.pipeline.model import (
    Circular,
    Combiner,
    Fragmenter,
    Pipeline,
    Step,
    output_bucket,
    queue_name,
    step_name,
)
from tests.unit.pipeline.made import pipeline, step

DIAMOND = pipeline(
    step("sheet", "small", "last"),
    step("shrink", "pictures", "small"),
    step("edges", "first", "pictures", config={"queue_mapping": {"plain": "small", "x": "no one"}}),
)


def names(steps: tuple[Step, ...]) -> list[str]:
    return [each.name for each in steps]


# -- names


def test_queues_steps_and_buckets_are_named_as_the_contract_says() -> None:
    assert queue_name("hash", "pictures") == "hash-pictures"
    assert step_name("hash", "edges") == "hash-edges"
    assert output_bucket("hash", "edges") == "hash-edges-output"


# -- channels


def test_every_channel_is_named_once_in_the_order_of_the_file() -> None:
    assert DIAMOND.channels == ("first", "small", "last", "pictures")


def test_a_step_writes_its_output_channel_and_what_its_mapping_leads_to() -> None:
    edges = DIAMOND.step("edges")
    assert DIAMOND.routes_of(edges) == {"plain": "small"}
    assert DIAMOND.written_by(edges) == ("pictures", "small")
    assert DIAMOND.written_by(DIAMOND.step("sheet")) == ("last",)


def test_a_channel_has_writers_readers_and_one_consumer() -> None:
    assert DIAMOND.writers_of("small") == ("shrink", "edges")
    assert DIAMOND.writers_of("first") == ("fragmenter",)
    assert DIAMOND.readers_of("small") == ("sheet",)
    assert DIAMOND.readers_of("last") == ("combiner",)
    assert DIAMOND.consumer_of("pictures") == DIAMOND.step("shrink")
    assert DIAMOND.consumer_of("last") == Combiner(input_channel="last")
    assert DIAMOND.consumer_of("no one") is None
    assert (DIAMOND.writers_of("no one"), DIAMOND.readers_of("no one")) == ((), ())


def test_upstream_of_a_step_are_all_that_may_write_what_it_reads() -> None:
    upstream = {each.name: DIAMOND.upstream_steps(each) for each in DIAMOND.steps}
    assert upstream == {"sheet": ("shrink", "edges"), "shrink": ("edges",), "edges": ()}
    assert DIAMOND.upstream_steps(DIAMOND.combiner) == ("sheet",)
    follows = {each.name: DIAMOND.follows_fragmenter(each) for each in DIAMOND.steps}
    assert follows == {"sheet": False, "shrink": False, "edges": True}
    assert not DIAMOND.follows_fragmenter(DIAMOND.combiner)


def test_a_mapping_of_the_pipeline_is_every_steps_unless_a_step_has_its_own() -> None:
    mapped = pipeline(
        step("a", "first", "last"),
        step("b", "errors", "last", config={"queue_mapping": {}}),
        config={"queue_mapping": {"bad": "errors"}},
    )
    assert mapped.upstream_steps(mapped.step("b")) == ("a",)


def test_no_steps_are_a_pipeline_too() -> None:
    straight = pipeline(last="first")
    assert straight.follows_fragmenter(straight.combiner)
    assert (straight.in_order, straight.upstream_steps(straight.combiner)) == ((), ())


def test_a_step_that_is_not_there_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="nobody"):
        DIAMOND.step("nobody")


# -- order


@given(data=st.data(), size=st.integers(1, 9))
def test_every_step_comes_after_all_that_feed_it(data: st.DataObject, size: int) -> None:
    # Step n reads channel n and may write to those of later steps only, so that there is an order; then they are shuffled.
    steps = []
    for number in range(size):
        later = st.integers(number + 1, size).map("c{}".format)
        writes = data.draw(later)
        mapping = data.draw(st.dictionaries(st.sampled_from("xyz"), later))
        config = {"queue_mapping": mapping}
        steps.append(step(f"s{number}", f"c{number}", writes, config=config))
    shuffled = data.draw(st.permutations(steps))
    made = pipeline(*shuffled, first="c0", last=f"c{size}")
    order = names(made.in_order)
    assert sorted(order) == sorted(each.name for each in steps)
    for each in made.steps:
        for before in made.upstream_steps(each):
            assert order.index(before) < order.index(each.name)
    assert list(made.circles()) == []


@given(data=st.data(), size=st.integers(1, 8))
def test_there_is_an_order_or_a_circle_that_is_one(data: st.DataObject, size: int) -> None:
    channels = st.integers(0, size).map("c{}".format)
    made = pipeline(
        *(step(f"s{number}", f"c{number}", data.draw(channels)) for number in range(size)),
        first="c0",
        last=f"c{size}",
    )
    circles = list(made.circles())
    for circle in circles:
        assert circle[0] == min(circle)
        for one, fed in zip(circle, [*circle[1:], circle[0]], strict=True):
            assert made.steps[one].output_channel == made.steps[fed].input_channel
    seen = [number for circle in circles for number in circle]
    assert len(seen) == len(set(seen))
    # Whoever follows the outputs from any step for as many steps as there are comes to the end or is in a circle.
    endless = set()
    for number in range(size):
        at = number
        for _ in range(size):
            at = int(made.steps[at].output_channel[1:]) if at < size else at
        if at < size:
            endless.add(at)
    assert endless <= set(seen)
    if circles:
        with pytest.raises(Circular):
            _ = made.in_order
    else:
        assert len(made.in_order) == size


def test_a_circle_names_its_steps_each_before_the_one_that_it_feeds() -> None:
    turning = pipeline(
        step("a", "first", "x"),
        step("b", "y", "z"),
        step("c", "x", "y"),
        step("d", "z", "x"),
        last="z",
    )
    assert list(turning.circles()) == [[1, 3, 2]]
    with pytest.raises(Circular) as refusal:
        _ = turning.in_order
    doubled = "bdcbdc"
    assert "".join(refusal.value.steps) in {doubled[start : start + 3] for start in range(3)}


def test_what_the_fragmenter_reaches_is_known() -> None:
    parted = pipeline(
        step("b", "x", "last"), step("a", "first", "x"), step("c", "nowhere", "y"), last="last"
    )
    assert parted.reached() == {0, 1}


# -- configuration


def configured(of_pipeline: dict[str, Any], of_step: dict[str, Any]) -> tuple[Pipeline, Step]:
    made = pipeline(step("a", "first", "last", config=of_step), config=of_pipeline)
    return made, made.steps[0]


def test_a_steps_configuration_is_laid_over_the_pipelines() -> None:
    made, a = configured({"size": 1, "deep": {"x": 1, "y": 2}}, {"deep": {"x": 3}, "more": None})
    assert made.merged_config(a) == {"size": 1, "deep": {"x": 3}, "more": None}
    assert made.config == {"size": 1, "deep": {"x": 1, "y": 2}}


def test_config_files_are_joined_name_by_name() -> None:
    made, a = configured(
        {"config_files": {"both": "of pipeline", "one": "1"}},
        {"config_files": {"both": "of step", "two": "2"}},
    )
    files = {"both": "of step", "one": "1", "two": "2"}
    assert made.merged_config(a) == {"config_files": files}
    assert made.merged_config(made.fragmenter)["config_files"] == made.config["config_files"]


def test_iterum_config_has_the_queues_of_channels_and_leaves_all_else_alone() -> None:
    mapping = {"bad": "last", "literal": "hash-elsewhere"}
    made, a = configured({"queue_mapping": mapping, "größe": 1}, {"blur": 2.5})
    assert json.loads(made.iterum_config(a, "hash")) == {
        "queue_mapping": {"bad": "hash-last", "literal": "hash-elsewhere"},
        "größe": 1,
        "blur": 2.5,
    }
    assert made.config["queue_mapping"] == mapping


def test_iterum_config_of_nothing_is_an_empty_object_because_pyterum_dies_of_an_empty_text() -> (
    None
):
    made, a = configured({}, {})
    assert made.iterum_config(a, "hash") == "{}"


def test_the_fragmenter_has_a_configuration_too() -> None:
    fragmenter = Fragmenter(output_channel="last", config={"n": 2})
    made = pipeline(fragmenter=fragmenter, config={"n": 1, "m": 1})
    assert json.loads(made.iterum_config(made.fragmenter, "hash")) == {"n": 2, "m": 1}


@pytest.mark.parametrize("wrong", [None, 5, "text", ["list"], {"a": 1}])
def test_what_a_configuration_should_not_hold_is_carried_and_stops_nothing(wrong: object) -> None:
    made, a = configured({}, {"queue_mapping": wrong, "config_files": wrong})
    assert json.loads(made.iterum_config(a, "hash")) == a.config
    assert made.written_by(a) == ("last",)
