"""A fragment's messages: its description is decoded, that of a fragment made of it is encoded, and its lineage."""

from __future__ import annotations

import json
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from benchmarks.stages.task import Meter, Task, description, fragment_id
from iterum_sidecar.messages import (
    RemoteFile,
    RemoteFragment,
    RemoteMetadata,
    decode_remote_fragment,
    encode_lineage,
    encode_message,
)

if TYPE_CHECKING:
    from collections.abc import Callable

STEP = "a-step"
BUCKET = "a-step-output"
OUTPUT_ID = fragment_id(-1)
DIFFERENT = 500


def measure(task: Task, meter: Meter, follow: Callable[[bytes], tuple[bytes, bytes]]) -> None:
    """Measure what makes the two messages that follow on one."""
    bodies = [description(number) for number in range(DIFFERENT)]
    size = 0
    with meter:
        for body in islice(cycle(bodies), task.count):
            output, lineage = follow(body)
            size += len(output) + len(lineage)
    meter.expect(size > 2 * len(OUTPUT_ID) * task.count, f"only {size} bytes were made")
    for body in bodies:
        made = [json.loads(each) for each in follow(body)]
        meter.expect(made == list(_expected(json.loads(body))), "a message is another")


def _expected(fragment: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    files = [
        {"name": file["name"], "path": f"iterum_data/{OUTPUT_ID}/{file['name']}", "bucket": BUCKET}
        for file in fragment["files"]
    ]
    metadata = {
        "fragment_id": OUTPUT_ID,
        "predecessors": [fragment["metadata"]["fragment_id"]],
    }
    output = {"files": files, "metadata": metadata}
    return output, {"transformation_step": STEP, "description": output}


def ours(task: Task, meter: Meter) -> None:
    """By `iterum_sidecar.messages`: msgspec, with every rule of the contract."""

    def follow(body: bytes) -> tuple[bytes, bytes]:
        fragment = decode_remote_fragment(body)
        output = encode_message(
            RemoteFragment(
                [
                    RemoteFile(file.name, f"iterum_data/{OUTPUT_ID}/{file.name}", BUCKET)
                    for file in fragment.files
                ],
                RemoteMetadata(OUTPUT_ID, [fragment.metadata.fragment_id]),
            )
        )
        return output, encode_lineage(STEP, output)

    measure(task, meter, follow)


def dicts(task: Task, meter: Meter) -> None:
    """By the json of the standard library, into dicts; nothing is held against the contract."""

    def follow(body: bytes) -> tuple[bytes, bytes]:
        output, lineage = _expected(json.loads(body))
        return json.dumps(output).encode(), json.dumps(lineage).encode()

    measure(task, meter, follow)


def fast_dicts(task: Task, meter: Meter) -> None:
    """By orjson, into dicts; nothing is held against the contract."""
    import orjson

    def follow(body: bytes) -> tuple[bytes, bytes]:
        output, lineage = _expected(orjson.loads(body))
        return orjson.dumps(output), orjson.dumps(lineage)

    measure(task, meter, follow)
