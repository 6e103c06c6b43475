"""What is true of every run of a sidecar, whatever it was given to do."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import re
from typing import TYPE_CHECKING

from testbed.contents import get_object
from testbed.fragments import Message, RemoteFragment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.object_stores import ObjectStore
    from testbed.step import Step

OUTPUT_ID = re.compile("[0-9a-f]{64}")
PERSISTENT = 2


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was found in the queues after a run: outputs with the queue that each was in, and so on."""

    taken: list[tuple[str, Message]]
    lineage: list[Message]
    dead_letters: list[Message]

    @functools.cached_property
    def outputs(self) -> list[RemoteFragment]:
        """The output fragments, in the order of their queues."""
        return [RemoteFragment.of_body(message.body) for _, message in self.taken]

    @functools.cached_property
    def dead_ids(self) -> list[str]:
        """The IDs of dead-lettered inputs, of those that have one."""
        found = []
        for message in self.dead_letters:
            try:
                found.append(json.loads(message.body)["metadata"]["fragment_id"])
            except (ValueError, TypeError, KeyError):
                continue
        return found

    def by_input(self) -> dict[str, RemoteFragment]:
        """Return the output of each input, for steps that make one of one."""
        return {output.predecessors[0]: output for output in self.outputs}


def check(
    outcome: Outcome, step: Step, inputs: Mapping[str, RemoteFragment], *, once: bool
) -> None:
    """Assert what the contract says of messages, IDs, keys and lineage."""
    for _, message in outcome.taken:
        assert message.delivery_mode == PERSISTENT
        assert message.content_type == "application/json"
    for output in outcome.outputs:
        assert OUTPUT_ID.fullmatch(output.fragment_id), output
        assert output.files
        assert output.predecessors, output
        assert set(output.predecessors) <= inputs.keys(), output
        for file in output.files:
            assert file.bucket == step.output_bucket
            assert file.path == f"iterum_data/{output.fragment_id}/{file.name}"
    ids = [output.fragment_id for output in outcome.outputs]
    assert len(set(ids)) == len(ids), "an output's ID came twice"
    for message in outcome.dead_letters:
        assert reason_of(message)
    check_lineage(outcome, step)
    if once:
        led_to = collections.Counter(
            predecessor for output in outcome.outputs for predecessor in output.predecessors
        )
        led_to.update(fragment_id for fragment_id in outcome.dead_ids if fragment_id in inputs)
        assert led_to == dict.fromkeys(inputs, 1)


def check_lineage(outcome: Outcome, step: Step) -> None:
    """Assert that there is exactly one lineage message for each output, and that it repeats the output."""
    told = [json.loads(message.body) for message in outcome.lineage]
    for each in told:
        assert each.keys() == {"transformation_step", "description"}
        assert each["transformation_step"] == step.name
    described = sorted(json.dumps(each["description"], sort_keys=True) for each in told)
    published = sorted(
        json.dumps(json.loads(message.body), sort_keys=True) for _, message in outcome.taken
    )
    assert described == published


def reason_of(message: Message) -> str:
    """Return the reason that a dead letter's headers give; an empty string when they give none."""
    for name, value in message.headers.items():
        if name.endswith("reason") and name.startswith("x-iterum"):
            return value.decode() if isinstance(value, bytes) else str(value)
    return ""


def check_mirrored(
    outcome: Outcome, contents: Mapping[str, Mapping[str, bytes]], store: ObjectStore
) -> None:
    """Assert that each output has its input's files, by name, with their bytes turned round."""
    for output in outcome.outputs:
        given = contents[output.predecessors[0]]
        assert [file.name for file in output.files] == list(given)
        for file in output.files:
            assert get_object(store, file.bucket, file.path) == given[file.name][::-1], file
