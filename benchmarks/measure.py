"""One run of one load against one sidecar command: what it took, and whether it did what it should."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import shutil
import time
from typing import TYPE_CHECKING

from benchmarks.pod import pod
from testbed.contents import content, get_object, make_bucket
from testbed.fragments import Message, Queues, RemoteFragment, connected, put_fragment
from testbed.manager import running_manager
from testbed.process import ProcessFailed
from testbed.step import Step, make_step

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.pod import Peers
    from testbed.object_stores import ObjectStore
    from testbed.process import Exit, Process

POLL_SECONDS = 0.005
RUN_SECONDS = 120
SAMPLE = 10


@dataclasses.dataclass(frozen=True)
class Load:
    """What a sidecar is given to do."""

    name: str
    fragments: int
    files: int
    size: int
    prefetch: int | None


LOADS = (
    Load("small", 2000, 1, 4 << 10, 100),
    Load("unset", 5000, 1, 4 << 10, None),
    Load("ten-files", 300, 10, 4 << 10, 100),
    Load("large", 40, 1, 8 << 20, 100),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run took. Times are in seconds, memory in bytes."""

    rate: float
    cpu: float
    memory: int
    first_output: float
    end: float
    faults: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Times:
    """When the first and the last output were seen in the queue, and when the sidecar had ended; `seen` were there at the first look."""

    started: float
    first: float
    seen: int
    last: float
    ended: float


def queue_inputs(load: Load, step: Step, store: ObjectStore, queues: Queues) -> dict[str, int]:
    """Store and queue a load's fragments; return the number of each one's first content by its ID."""
    make_bucket(store, step.input_bucket)
    numbers = {}
    bodies = []
    for number in range(load.fragments):
        contents = {
            f"file-{number}-{each}.bin": content(number * load.files + each, load.size)
            for each in range(load.files)
        }
        fragment = put_fragment(store, step.input_bucket, contents, directly=True)
        numbers[fragment.fragment_id] = number * load.files
        bodies.append(fragment.body())
    queues.declare(step.input_queue, step.output_queue, step.lineage_queue)
    queues.publish(step.input_queue, bodies)
    return numbers


def files_left(volume: Path) -> int:
    """Return how many files are on a volume, but for the sidecar's state: that stays, for whoever asks how it ended."""
    state = volume / ".iterum-sidecar" / "state"
    return sum(path.is_file() and path != state for path in volume.rglob("*"))


def faults_of(
    load: Load,
    step: Step,
    store: ObjectStore,
    numbers: Mapping[str, int],
    outputs: Sequence[Message],
    queues: Queues,
    ended: Exit,
) -> tuple[str, ...]:
    """Return everything that is not as it should be after a run."""
    faults = []
    fragments = [RemoteFragment.of_body(message.body) for message in outputs]
    made = sorted(fragment.predecessors for fragment in fragments)
    if made != sorted((fragment_id,) for fragment_id in numbers):
        faults.append(f"{len(set(made))} different inputs in {len(made)} outputs")
    for fragment in fragments[:: max(1, len(fragments) // SAMPLE)]:
        number = numbers[fragment.predecessors[0]]
        for each, file in enumerate(fragment.files):
            if get_object(store, file.bucket, file.path) != content(number + each, load.size):
                faults.append(f"{file.name} has another's content")
    lineage = queues.count(step.lineage_queue)
    if lineage != load.fragments:
        faults.append(f"{lineage} lineage messages")
    if remaining := queues.count(step.input_queue):
        faults.append(f"{remaining} messages left in the input queue")
    if left := files_left(step.volume):
        faults.append(f"{left} files left in the volume")
    if ended.code != 0:
        faults.append(f"exit code {ended.code}")
    return tuple(faults)


def watch(load: Load, sidecar: Process, output_queue: str, queues: Queues) -> tuple[Times, Exit]:
    """Look at the output queue until all outputs are there, and then at the sidecar until it has ended.

    Raises:
        ProcessFailed: it ended before, or takes longer than any run may.
    """
    started = time.monotonic()
    first = last = 0.0
    seen = 0
    while (ended := sidecar.poll()) is None or not last:
        now = time.monotonic()
        count = 0 if last else queues.count(output_queue)
        if count and not first:
            first, seen = now, count
        last = last or (now if count >= load.fragments else 0.0)
        if now - started > RUN_SECONDS or (ended is not None and not last):
            how = "still ran" if ended is None else f"ended with {ended.code}"
            raise ProcessFailed(
                f"the sidecar {how} after {count} of {load.fragments} outputs\n{sidecar.last_lines()}"
            )
        time.sleep(POLL_SECONDS)
    return Times(started, first, seen, last, time.monotonic()), ended


def measure(load: Load, command: str, peers: Peers, volumes: Path | None = None) -> Run:
    """Run one load through one sidecar, started by a shell-like command, with a step beside it; `pod` tells what the others are.

    Raises:
        ProcessFailed: it did not bring all outputs.
    """
    store = peers.store
    assert store.directory is not None
    names = make_step(peers.directory)
    with contextlib.ExitStack() as stack:
        queues = stack.enter_context(connected(peers.broker.url))
        manager = stack.enter_context(running_manager(finished=True))
        numbers = queue_inputs(load, names, store, queues)
        step, sidecar = stack.enter_context(
            pod(
                peers,
                names,
                manager.url,
                prefetch=load.prefetch,
                command=shlex.split(command),
                volumes=volumes,
            )
        )
        times, ended = watch(load, sidecar, names.output_queue, queues)
        outputs = queues.take(names.output_queue)
        faults = faults_of(load, step, store, numbers, outputs, queues, ended)
        queues.delete(names.input_queue, names.output_queue, names.lineage_queue)
        for bucket in (names.input_bucket, names.output_bucket):
            shutil.rmtree(store.directory / bucket)
    return Run(
        rate=(load.fragments - times.seen) / max(times.last - times.first, POLL_SECONDS),
        cpu=ended.cpu_seconds / load.fragments,
        memory=ended.peak_memory,
        first_output=times.first - times.started,
        end=times.ended - times.last,
        faults=faults,
    )
