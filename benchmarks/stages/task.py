"""What the process of a contender is told, and what it gives back."""

from __future__ import annotations

import gc
import hashlib
import json
import resource
import time
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["IN_FLIGHT", "Measured", "Meter", "Task", "Tasting", "description", "fragment_id"]

#: Messages that are published and not confirmed, at most.
IN_FLIGHT = 512
TASTED_EVERY = 500


class Task(Struct, frozen=True):
    """A stage, who does it, and how often; of the rest only what the stage needs is given.

    Files are named by `file_name`, in `directory`; objects alike, in `bucket`.
    """

    stage: str
    contender: str
    count: int
    broker: str = ""
    queue: str = ""
    prefetch: int = 0
    endpoint: str = ""
    access_key: str = ""
    secret_key: str = ""
    bucket: str = ""
    directory: str = ""
    at_a_time: int = 0

    @staticmethod
    def file_name(number: int) -> str:
        """Return the name of a file, which is its object's key too."""
        return f"file-{number:06}.bin"

    def path(self, number: int) -> str:
        """Return where a file is, or is to be."""
        return f"{self.directory}/{self.file_name(number)}"


class Measured(Struct, frozen=True):
    """What the measured part took, in seconds and bytes, and what the process itself saw to be wrong."""

    cpu: float
    wall: float
    memory: int
    faults: tuple[str, ...]


class Meter:
    """Measures what is done between `start` and `stop`, or in its block."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._cpu = self._wall = 0.0

    def start(self) -> None:
        """Begin; what was thrown away before is not cleared away in the measured part."""
        gc.collect()
        self._wall = -time.perf_counter()
        self._cpu = -_cpu_seconds()

    def stop(self) -> None:
        """End."""
        self._cpu += _cpu_seconds()
        self._wall += time.perf_counter()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def expect(self, truth: bool, otherwise: str) -> None:
        """Note a fault unless something is as it should be."""
        if not truth:
            self.faults.append(otherwise)

    def measured(self) -> Measured:
        """Return what was measured. The peak of memory is that of the whole process."""
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return Measured(self._cpu, self._wall, memory, tuple(self.faults))


def _cpu_seconds() -> float:
    """Return the CPU time of this process, all its threads and all its children that have ended."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


class Tasting:
    """Counts the messages that come, and keeps one of many to look at when nothing is measured any more."""

    def __init__(self, task: Task) -> None:
        self._expected = task.count
        self._kept: list[bytes] = []
        self.count = 0

    def take(self, body: bytes) -> bool:
        """Take a message; tell whether it was the last."""
        if self.count % TASTED_EVERY == 0:
            self._kept.append(body)
        self.count += 1
        return self.count == self._expected

    def look(self, meter: Meter) -> None:
        """Note what is not as it should be."""
        meter.expect(self.count == self._expected, f"{self.count} messages received")
        for position, body in enumerate(self._kept):
            number = position * TASTED_EVERY
            meter.expect(body == description(number), f"message {number} is another")


def fragment_id(number: int) -> str:
    """Return an ID, another for each number."""
    return hashlib.sha256(b"%d" % number).hexdigest()


def description(number: int) -> bytes:
    """Return the message of a fragment of one file, about 400 bytes, another for each number."""
    name = f"file-{number:06}.bin"
    own = fragment_id(number)
    step = f"{own[:32]}-edge-detection-output"
    fragment: dict[str, Any] = {
        "files": [{"name": name, "path": f"iterum_data/{own}/{name}", "bucket": step}],
        "metadata": {"fragment_id": own, "predecessors": [fragment_id(-number)]},
    }
    return json.dumps(fragment, separators=(",", ":")).encode()
