"""Steps that do something else than one of one: routes, batches, parts, fixed paths, several connections."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from testbed.contents import content, get_object

from .checks import check_mirrored

if TYPE_CHECKING:
    from .journey import Journey


@pytest.mark.parametrize("prefetch", [None, 1, 10])
def test_any_prefetch(journey: Journey, prefetch: int | None) -> None:
    for number in range(100):
        journey.seed({"a": content(number, 100)})
    outcome = journey.run("mirror", prefetch=prefetch)
    check_mirrored(outcome, journey.contents, journey.store)


def test_two_thousand_fragments(journey: Journey) -> None:
    for number in range(2000):
        journey.seed({"a": content(number, 4096)}, directly=True)
    outcome = journey.run("mirror", prefetch=100)
    assert len(outcome.outputs) == 2000
    sample = dataclasses.replace(outcome, taken=outcome.taken[::50])
    check_mirrored(sample, journey.contents, journey.store)


def test_an_output_channel_leads_to_its_queue(journey: Journey) -> None:
    other = f"{journey.step.pipeline_hash}-another-channel"
    journey.config["queue_mapping"] = {"special": other}
    for number in range(10):
        journey.seed({"a": content(number, 100)})
    journey.queue_inputs()
    sidecar = journey.start_sidecar()
    journey.end(sidecar, journey.start_step("mirror", 0, "special"))
    outcome = journey.outcome(journey.step.output_queue, other)
    check_mirrored(outcome, journey.contents, journey.store)
    targets = [
        (queue, output.target_queue)
        for (queue, _), output in zip(outcome.taken, outcome.outputs, strict=True)
    ]
    assert sorted(targets, key=str) == sorted(
        [(journey.step.output_queue, None)] * 5 + [(other, other)] * 5, key=str
    )
    journey.queues.delete(other)


@pytest.mark.parametrize("prefetch", [None, 120])
def test_a_step_that_gathers_gets_enough_and_its_last_batch_is_not_full(
    journey: Journey, prefetch: int | None
) -> None:
    for number in range(250):
        journey.seed({"a": content(number, 10)})
    outcome = journey.run("gather", 100, prefetch=prefetch)
    assert sorted(len(output.predecessors) for output in outcome.outputs) == [50, 100, 100]
    for output in outcome.outputs:
        (file,) = output.files
        data = b"".join(journey.contents[each]["a"] for each in output.predecessors)
        assert len(get_object(journey.store, file.bucket, file.path)) == len(data)


def test_a_step_that_makes_several_of_one(journey: Journey) -> None:
    for number in range(20):
        journey.seed({"a": content(number, 50)})
    journey.queue_inputs()
    sidecar = journey.start_sidecar()
    journey.end(sidecar, journey.start_step("split", 5))
    outcome = journey.outcome(once=False)
    assert len(outcome.outputs) == 100
    for fragment_id, contents in journey.contents.items():
        parts = [output for output in outcome.outputs if output.predecessors == (fragment_id,)]
        stored = [
            get_object(journey.store, part.files[0].bucket, part.files[0].path) for part in parts
        ]
        assert sorted(stored) == sorted(
            contents["a"][10 * part : 10 * part + 10] for part in range(5)
        )


def test_every_result_at_one_path_and_none_is_anothers(journey: Journey) -> None:
    for number in range(500):
        journey.seed({"a": content(number, 2000 + number)}, directly=True)
    outcome = journey.run("one_path", prefetch=50)
    assert len(outcome.outputs) == 500
    check_mirrored(outcome, journey.contents, journey.store)


def test_a_step_with_one_path_that_pauses_is_not_taken_for_one_that_gathers(
    journey: Journey,
) -> None:
    for number in range(220):
        journey.seed({"a": content(number, 2000 + number)}, directly=True)
    outcome = journey.run("one_path", 2.5, prefetch=50)
    assert len(outcome.outputs) == 220
    check_mirrored(outcome, journey.contents, journey.store)


def test_two_connections_of_one_process_share_the_work(journey: Journey) -> None:
    for number in range(100):
        journey.seed({"a": content(number, 100)})
    outcome = journey.run("threads", 2, prefetch=20)
    check_mirrored(outcome, journey.contents, journey.store)
    assert {str(output.custom) for output in outcome.outputs} == {
        "{'thread': '0'}",
        "{'thread': '1'}",
    }


def test_two_processes_share_the_work(journey: Journey) -> None:
    for number in range(100):
        journey.seed({"a": content(number, 100)})
    journey.queue_inputs()
    sidecar = journey.start_sidecar(prefetch=20)
    steps = [journey.start_step("mirror", 0.005) for _ in range(2)]
    journey.end(sidecar, *steps)
    check_mirrored(journey.outcome(), journey.contents, journey.store)
