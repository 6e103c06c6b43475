"""One fragment's way through the sidecar: whatever is in its files, and whatever they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from testbed.contents import content, list_keys

from .checks import check_mirrored
from .journey import Journey, journey_of

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.rabbitmq import RabbitMQ

NAMES = (
    "with blanks in it.txt",
    " blank-first",
    "a/path/to/a.txt",
    "a/path/to/another.txt",
    "100%.txt",
    "already%20quoted%2Ftwice%2520.txt",
    "Größe-日本語-🙂.txt",
    "e\u0301-decomposed",
    "+plus&and=equals;semi,comma",
    "question?hash#at@colon:",
    'quote\'s"double"',
    "(brackets)[square]{curly}<angle>",
    "~tilde$dollar!bang*star|bar^caret`tick",
    ".hidden",
    "x" * 255,
)


def test_one_file(journey: Journey) -> None:
    journey.seed({"cat.txt": b"a cat"})
    outcome = journey.run("mirror")
    check_mirrored(outcome, journey.contents, journey.store)


def test_ten_files_keep_their_order_and_names(journey: Journey) -> None:
    journey.seed(
        {f"{number}.bin": content(number, 1000) for number in (3, 1, 4, 15, 9, 2, 6, 5, 35, 8)}
    )
    outcome = journey.run("mirror")
    check_mirrored(outcome, journey.contents, journey.store)


def test_no_two_fragments_are_alike_and_none_is_mixed_up(journey: Journey) -> None:
    for number in range(60):
        files = {
            f"{each}": content(100 * number + each, 37 * number) for each in range(number % 4 + 1)
        }
        journey.seed(files)
    outcome = journey.run("mirror", prefetch=20)
    check_mirrored(outcome, journey.contents, journey.store)


def test_an_empty_file(journey: Journey) -> None:
    journey.seed({"empty": b"", "full": b"full"})
    outcome = journey.run("mirror")
    check_mirrored(outcome, journey.contents, journey.store)


def test_a_hundred_megabytes_pass_without_being_held_in_memory(journey: Journey) -> None:
    journey.seed({"large": content(1, 100_000_000)})
    journey.queue_inputs()
    sidecar = journey.start_sidecar()
    ended = journey.end(sidecar, journey.start_step("mirror"))
    check_mirrored(journey.outcome(), journey.contents, journey.store)
    assert ended.peak_memory < 80_000_000


@pytest.mark.parametrize("server", ["rclone", "moto", "minio"])
def test_names_that_have_to_be_quoted(
    server: str, request: pytest.FixtureRequest, rabbitmq: RabbitMQ, volume: Path, tmp_path: Path
) -> None:
    store = request.getfixturevalue(server)
    with journey_of(rabbitmq, store, volume, tmp_path) as journey:
        journey.seed({name: content(number, 64) for number, name in enumerate(NAMES)})
        outcome = journey.run("mirror")
        check_mirrored(outcome, journey.contents, store)


def test_what_a_fragment_brings_along_stays_with_it(journey: Journey) -> None:
    journey.seed({"a": b"1"}, predecessors=["p" * 64], custom={"colour": "<green> & blue"})
    outcome = journey.run("mirror")
    (output,) = outcome.outputs
    assert output.custom is None, "the step named none of its own"
    assert output.target_queue is None


def test_predecessors_may_be_null_and_unknown_keys_are_ignored(journey: Journey) -> None:
    fragment = journey.seed({"a": b"1"})
    description = fragment.description()
    description["metadata"]["predecessors"] = None
    description["metadata"]["weight"] = description["colour"] = "red"
    description["files"][0]["size"] = 1
    journey.queues.declare(
        journey.step.input_queue, journey.step.output_queue, journey.step.lineage_queue
    )
    journey.publish(description)
    sidecar = journey.start_sidecar()
    journey.end(sidecar, journey.start_step("mirror"))
    check_mirrored(journey.outcome(), journey.contents, journey.store)


def test_the_same_work_done_again_has_the_same_ids_and_the_same_keys(journey: Journey) -> None:
    for number in range(20):
        journey.seed({"a": content(number, 100), "b": content(number, 10)})
    first = journey.run("mirror")
    keys = list_keys(journey.store, journey.step.output_bucket)
    second = journey.run("mirror")
    assert {each.fragment_id for each in first.outputs} == {
        each.fragment_id for each in second.outputs
    }
    assert first.by_input() == second.by_input()
    assert list_keys(journey.store, journey.step.output_bucket) == keys
