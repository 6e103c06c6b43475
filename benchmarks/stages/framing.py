"""The frames of a fragment, in memory: one that goes to the transformation, and two that come from it in one read.

pyterum's own framing reads from a socket and decodes the JSON in one function, so it cannot be measured alone.
"""

from __future__ import annotations

import json
import struct
from itertools import cycle, islice
from typing import TYPE_CHECKING

from benchmarks.stages.task import Meter, Task, fragment_id
from iterum_sidecar.framing import FrameReader, encode_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LENGTH = struct.Struct("<I")
DIFFERENT = 500


def _payloads(number: int) -> tuple[bytes, bytes, bytes]:
    """Return a fragment for the transformation, the result of it, and the done."""
    own, before = fragment_id(number), fragment_id(-number)
    name = f"file-{number:06}.bin"
    file = {"name": name, "path": f"/data-volume/{own}/{name}"}
    given = {"files": [file], "metadata": {"fragment_id": own, "predecessors": [before]}}
    result = {
        "files": [file],
        "metadata": {"output_channel": None, "custom": None, "predecessors": [own]},
    }
    done = {"fragment_id": own}
    return json.dumps(given).encode(), json.dumps(result).encode(), json.dumps(done).encode()


def _measure(
    task: Task,
    meter: Meter,
    encode: Callable[[bytes], bytes],
    feed: Callable[[bytes], Iterator[bytes]],
) -> None:
    fragments = [_payloads(number) for number in range(DIFFERENT)]
    reads = [
        (given, b"".join(LENGTH.pack(len(each)) + each for each in (result, done)))
        for given, result, done in fragments
    ]
    frames = 0
    with meter:
        for given, read in islice(cycle(reads), task.count):
            encode(given)
            for _ in feed(read):
                frames += 1
    meter.expect(frames == 2 * task.count, f"{frames} frames of {2 * task.count}")
    for (given, read), (_, *expected) in zip(reads, fragments, strict=True):
        meter.expect(encode(given) == LENGTH.pack(len(given)) + given, "a frame is another")
        meter.expect(list(feed(read)) == expected, "a payload is another")


def ours(task: Task, meter: Meter) -> None:
    """By `iterum_sidecar.framing`, which has a limit and holds back nothing of what was read."""
    _measure(task, meter, encode_frame, FrameReader().feed)


class _Buffer:
    """What anyone would write."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._data += data
        while len(self._data) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._data)[0]
            if len(self._data) < end:
                break
            payload = bytes(self._data[LENGTH.size : end])
            del self._data[:end]
            yield payload


def floor(task: Task, meter: Meter) -> None:
    """By struct and a bytearray."""
    _measure(task, meter, lambda payload: LENGTH.pack(len(payload)) + payload, _Buffer().feed)
