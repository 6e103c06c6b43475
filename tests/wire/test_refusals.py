"""What cannot be processed goes to the dead letters with a reason, harms nothing else, and stops nobody."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from testbed.contents import content, get_object, put_object

from .checks import check_mirrored, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .journey import Journey

GOOD = 30


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], bytes]:
    """Return a function that changes a good description and returns the message that it then is."""

    def message(description: dict[str, Any]) -> bytes:
        change(description)
        return json.dumps(description).encode()

    return message


def named(name: str) -> Callable[[dict[str, Any]], bytes]:
    """Return a function that gives a description's file another name."""
    return changed(lambda description: description["files"][0].update(name=name))


def identified(fragment_id: object) -> Callable[[dict[str, Any]], bytes]:
    """Return a function that gives a description another ID."""
    return changed(lambda description: description["metadata"].update(fragment_id=fragment_id))


def elsewhere(**where: str) -> Callable[[dict[str, Any]], bytes]:
    """Return a function that gives a description's file another place in the store."""
    return changed(lambda description: description["files"][0].update(where))


def doubled(description: dict[str, Any]) -> None:
    description["files"] *= 2


def nested(description: dict[str, Any]) -> None:
    file = description["files"][0]
    description["files"].append(file | {"name": f"{file['name']}/below"})


BAD: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "not JSON": lambda _: b"not JSON",
    "nothing": lambda _: b"",
    "no object": lambda _: b"[1, 2]",
    "not UTF-8": lambda _: b'{"files":[{"name":"\xff","path":"a","bucket":"b"}]}',
    "no files": changed(lambda description: description.update(files=[])),
    "no list of files": changed(lambda description: description.update(files="cat.jpg")),
    "no metadata": changed(lambda description: description.pop("metadata")),
    "no ID": changed(lambda description: description["metadata"].pop("fragment_id")),
    "a short ID": identified("short"),
    "an ID of other characters": identified("ä" * 64),
    "an ID that is a path": identified("../" + "a" * 61),
    "an ID that is a number": identified(7),
    "a name that goes up": named("../../etc/passwd"),
    "a name that goes up in the middle": named("a/../../b"),
    "an absolute name": named("/etc/passwd"),
    "an empty name": named(""),
    "a name with an empty part": named("a//b"),
    "a name that is a dot": named("."),
    "a name with a NUL": named("a\0b"),
    "a name too long for any file system": named("x" * 256),
    "two files of one name": changed(doubled),
    "a name below another": changed(nested),
    "a missing object": elsewhere(path="iterum_data/nowhere"),
    "a missing bucket": elsewhere(bucket="no-such-bucket-anywhere"),
}


def test_malformed_messages_among_good_ones(journey: Journey) -> None:
    bad = {}
    for why, message in BAD.items():
        fragment = journey.seed({"a": b"1"})
        del journey.inputs[fragment.fragment_id]
        bad[message(fragment.description())] = why
    journey.queues.declare(
        journey.step.input_queue, journey.step.output_queue, journey.step.lineage_queue
    )
    for number, body in enumerate(bad):
        for each in range(2):
            good = journey.seed({"a": content(2 * number + each, 100)})
            journey.queues.publish(journey.step.input_queue, [good.body()])
        journey.queues.publish(journey.step.input_queue, [body])
    sidecar = journey.start_sidecar(prefetch=10)
    journey.end(sidecar, journey.start_step("mirror"))
    outcome = journey.outcome()
    check_mirrored(outcome, journey.contents, journey.store)
    assert len(outcome.outputs) == 2 * len(BAD)
    assert sorted(message.body for message in outcome.dead_letters) == sorted(bad)
    reasons = {bad[message.body]: reason_of(message) for message in outcome.dead_letters}
    assert "NoSuchKey" in reasons["a missing object"] or "nowhere" in reasons["a missing object"]
    assert len(set(reasons.values())) > 8, "the reasons say what is wrong with each"


def test_done_with_dead_letters_can_have_a_code_of_its_own(journey: Journey) -> None:
    journey.queue_inputs()
    journey.queues.publish(journey.step.input_queue, [b"not JSON"])
    sidecar = journey.start_sidecar(SIDECAR_FAIL_ON_DEAD_LETTERS="true")
    journey.end(sidecar, journey.start_step("mirror"), code=18)
    assert len(journey.outcome().dead_letters) == 1


def seed_one_bad(journey: Journey) -> str:
    """Seed good fragments and, in their midst, one whose file is called `bad`; return its ID."""
    for number in range(GOOD // 2):
        journey.seed({"good": content(number, 100)})
    bad = journey.seed({"bad": b"bad"}).fragment_id
    for number in range(GOOD // 2):
        journey.seed({"good": content(100 + number, 100)})
    return bad


@pytest.mark.parametrize(
    "way",
    [
        "outside",
        "dots",
        "symlink",
        "directory-symlink",
        "fifo",
        "directory",
        "missing",
        "name",
        "channel",
    ],
)
def test_a_result_that_must_not_be_taken(journey: Journey, tmp_path: Path, way: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"nobody's business")
    bad = seed_one_bad(journey)
    outcome = journey.run("naughty", way, outside, refused=1)
    assert outcome.dead_ids == [bad]
    assert len(outcome.outputs) == GOOD
    assert outside.read_bytes() == b"nobody's business"
    for output in outcome.outputs:
        (file,) = output.files
        given = journey.contents[output.predecessors[0]]["good"]
        assert get_object(journey.store, file.bucket, file.path) == given


@pytest.mark.parametrize(
    "way", ["garbage-frame", "empty-frame", "unknown-frame", "oversized-frame"]
)
def test_a_frame_that_cannot_be_read_costs_its_connection_and_no_fragment(
    journey: Journey, tmp_path: Path, way: str
) -> None:
    bad = seed_one_bad(journey)
    outcome = journey.run("naughty", way, tmp_path / "outside", prefetch=5)
    assert outcome.dead_ids == []
    assert bad in outcome.by_input()


def test_a_frame_that_cannot_be_read_instead_of_the_done_costs_no_fragment_either(
    journey: Journey, tmp_path: Path
) -> None:
    bad = seed_one_bad(journey)
    outcome = journey.run("naughty", "garbage-frame", tmp_path / "outside", "silent", prefetch=5)
    assert outcome.dead_ids == []
    assert bad in outcome.by_input()


def test_half_a_frame_of_a_step_that_dies_and_comes_again(journey: Journey, tmp_path: Path) -> None:
    bad = seed_one_bad(journey)
    journey.queue_inputs()
    sidecar = journey.start_sidecar(prefetch=5)
    first = journey.start_step("naughty", "half-frame", tmp_path / "outside")
    assert first.wait(20).code == 1
    journey.end(sidecar, journey.start_step("mirror"))
    outcome = journey.outcome()
    assert outcome.dead_ids == []
    assert bad in outcome.by_input()


def test_a_fragment_that_kills_every_step_is_dead_lettered_in_the_end(
    journey: Journey, tmp_path: Path
) -> None:
    bad = seed_one_bad(journey)
    journey.queue_inputs()
    sidecar = journey.start_sidecar(prefetch=5, SIDECAR_ATTEMPTS="2")
    codes = []
    for _ in range(3):
        step = journey.start_step("naughty", "half-frame", tmp_path / "outside")
        codes.append(step.wait(30).code)
    assert codes == [1, 1, 0], "two deaths, and a life that does the rest"
    journey.end(sidecar)
    assert journey.outcome().dead_ids == [bad]


def test_an_object_that_no_one_may_reach_by_its_key_is_still_just_a_key(journey: Journey) -> None:
    fragment = journey.seed({"a": b"secret"})
    description = fragment.description()
    key = "iterum_data/strange key/%2e%2e/ü"
    put_object(journey.store, journey.step.input_bucket, key, b"strange")
    description["files"][0]["path"] = key
    journey.contents[fragment.fragment_id] = {"a": b"strange"}
    journey.queues.declare(
        journey.step.input_queue, journey.step.output_queue, journey.step.lineage_queue
    )
    journey.publish(description)
    sidecar = journey.start_sidecar()
    journey.end(sidecar, journey.start_step("mirror"))
    check_mirrored(journey.outcome(), journey.contents, journey.store)


def test_one_id_for_two_different_fragments_breaks_the_contract(journey: Journey) -> None:
    one = journey.seed({"a": b"1"})
    other = one.description()
    other["files"][0]["name"] = "other"
    journey.queue_inputs()
    journey.publish(other)
    sidecar = journey.start_sidecar(prefetch=10)
    journey.end(sidecar, journey.start_step("mirror"))
    outcome = journey.outcome(once=False)
    assert len(outcome.outputs) == len(outcome.dead_letters) == 1
