"""One run: sidecars, each with a step beside it, take a number of fragments from a backlog and are told to stop.

A million fragments need not be processed to learn whether one costs more when a million are queued. So every
run ends in the same way: when enough outputs have been seen in the queue, the sidecars get SIGTERM, finish what
the step has, give the rest back, and end with 143. Their CPU time is the kernel's account of the whole process
(wait4). What a process spends without any work is measured by itself, as a run with a single fragment, and
subtracted; what was fetched ahead and given back, a prefetch at most, stays in.

A busy machine can make one and the same work cost twice as much. A `counted` run goes through cProfile, which counts the
calls of functions: those hardly vary, so what grows along a curve shows in them. How it ends is lost in cProfile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pstats
import shutil
import signal
import time
from typing import TYPE_CHECKING

from benchmarks.measure import files_left
from benchmarks.pod import SIDECAR, pod
from benchmarks.scale.flood import flood
from testbed.contents import content, make_bucket, put_directly
from testbed.fragments import Queues, RemoteFragment, connected
from testbed.manager import running_manager
from testbed.process import ProcessFailed
from testbed.step import make_step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.pod import Peers
    from testbed.process import Exit, Process
    from testbed.step import Step

SIZE = 4 << 10
POLL_SECONDS = 0.01
RUN_SECONDS = 120
FEW = 100
SETTLE_SECONDS = 10
STOPPED = 128 + signal.SIGTERM
KEY = "iterum_data/the-object"


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one run took: `cpu` seconds of all sidecars, the most `memory` of one in bytes, outputs a second.

    `calls` of functions are of a counted run, and 0 otherwise.
    """

    outputs: int
    cpu: float
    memory: int
    rate: float
    faults: tuple[str, ...]
    calls: int = 0


class Backlog:
    """A queue of fragments of `files` files; all refer to one object of 4 KiB, and no two have one ID."""

    def __init__(self, peers: Peers, queues: Queues, files: int = 1) -> None:
        self._peers = peers
        self._queues = queues
        self.files = files
        self.names = make_step(peers.directory)
        self._made = 0
        make_bucket(peers.store, self.names.input_bucket)
        put_directly(peers.store, self.names.input_bucket, KEY, content(0, SIZE))
        queues.declare(self.names.input_queue)

    def _bodies(self, count: int) -> Iterator[bytes]:
        files = [
            {"name": f"file-{number}.bin", "path": KEY, "bucket": self.names.input_bucket}
            for number in range(self.files)
        ]
        listed = json.dumps(files, separators=(",", ":"))
        for number in range(self._made, self._made + count):
            metadata = f'{{"fragment_id":"{number:064d}","predecessors":[]}}'
            yield f'{{"files":{listed},"metadata":{metadata}}}'.encode()

    def fill(self, queued: int) -> None:
        """Queue as many fragments as are missing."""
        missing = queued - self._queues.count(self.names.input_queue)
        flood(self._peers.broker.url, self.names.input_queue, self._bodies(missing))
        self._made += missing
        self.wait_for(queued)

    def wait_for(self, queued: int) -> None:
        """Wait until as many are ready in the queue: the broker counts a moment after it has read or got back."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while (there := self._queues.count(self.names.input_queue)) != queued:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{there} fragments are queued, not {queued}")
            time.sleep(POLL_SECONDS)

    def remove(self) -> None:
        """Delete the queue and the object."""
        assert self._peers.store.directory is not None
        self._queues.delete(self.names.input_queue)
        shutil.rmtree(self._peers.store.directory / self.names.input_bucket)


@contextlib.contextmanager
def backlog(peers: Peers, files: int = 1) -> Iterator[Backlog]:
    """Make a backlog with nothing in it yet, and remove it at the end of the block."""
    with connected(peers.broker.url) as queues:
        made = Backlog(peers, queues, files)
        try:
            yield made
        finally:
            made.remove()


def with_profile(profile: Path) -> tuple[str, ...]:
    """Return the command of a sidecar whose calls are counted."""
    program, *rest = SIDECAR
    return (program, "-m", "cProfile", "-o", str(profile), *rest)


def calls_in(profile: Path) -> int:
    """Return how many calls a profile has."""
    total: int = vars(pstats.Stats(str(profile)))["total_calls"]
    return total


def watch(queues: Queues, queue: str, wanted: int, sidecars: list[Process]) -> float:
    """Return the outputs a second, from the first that is seen to the last that is wanted; 0 when those are few.

    Raises:
        ProcessFailed: a sidecar has ended, or takes longer than any run may.
    """
    started = time.monotonic()
    first = 0.0
    seen = 0
    while (count := queues.count(queue)) < wanted:
        now = time.monotonic()
        if count and not first:
            first, seen = now, count
        for sidecar in sidecars:
            if sidecar.poll() is not None or now - started > RUN_SECONDS:
                raise ProcessFailed(f"{count} of {wanted} outputs\n{sidecar.last_lines()}")
        time.sleep(POLL_SECONDS)
    return (count - seen) / (time.monotonic() - first) if count - seen >= FEW else 0.0


def faults_of(
    made: Backlog,
    queues: Queues,
    steps: list[Step],
    queued: int,
    ended: list[Exit],
    *,
    counted: bool,
) -> Iterator[str]:
    """Yield what is not as it should be after a run; it takes the outputs from their queue."""
    names = made.names
    predecessors = [
        RemoteFragment.of_body(message.body).predecessors
        for message in queues.take(names.output_queue)
    ]
    outputs = len(predecessors)
    if len(set(predecessors)) != outputs:
        yield f"{len(set(predecessors))} different inputs in {outputs} outputs"
    if (lineage := queues.count(names.lineage_queue)) != outputs:
        yield f"{lineage} lineage messages for {outputs} outputs"
    try:
        made.wait_for(queued - outputs)
    except TimeoutError as error:
        yield str(error)
    for step, how in zip(steps, ended, strict=True):
        if left := files_left(step.volume):
            yield f"{left} files left in the volume"
        if how.code != (0 if counted else STOPPED):
            yield f"exit code {how.code}"


def drive(
    made: Backlog,
    peers: Peers,
    queued: int,
    wanted: int,
    *,
    prefetch: int | None = 100,
    connections: int = 1,
    instances: int = 1,
    counted: bool = False,
) -> Sample:
    """Fill the backlog, let sidecars make as many outputs as wanted, and stop them."""
    made.fill(queued)
    names = made.names
    with contextlib.ExitStack() as stack:
        queues = stack.enter_context(connected(peers.broker.url))
        manager = stack.enter_context(running_manager())
        queues.declare(names.output_queue, names.lineage_queue)
        profiles = [peers.directory / f"{number}.profile" for number in range(instances)]
        pods = [
            stack.enter_context(
                pod(
                    peers,
                    names,
                    manager.url,
                    prefetch=prefetch,
                    command=with_profile(profile) if counted else SIDECAR,
                    variables={"BENCHMARK_CONNECTIONS": str(connections)},
                )
            )
            for profile in profiles
        ]
        steps, sidecars = [step for step, _ in pods], [sidecar for _, sidecar in pods]
        rate = watch(queues, names.output_queue, wanted, sidecars)
        for sidecar in sidecars:
            sidecar.signal(signal.SIGTERM)
        ended = [sidecar.wait(RUN_SECONDS) for sidecar in sidecars]
        calls = [calls_in(profile) for profile in profiles] if counted else []
        outputs = queues.count(names.output_queue)
        faults = tuple(faults_of(made, queues, steps, queued, ended, counted=counted))
        queues.delete(names.output_queue, names.lineage_queue)
        assert peers.store.directory is not None
        shutil.rmtree(peers.store.directory / names.output_bucket)
    return Sample(
        outputs=outputs,
        cpu=sum(how.cpu_seconds for how in ended),
        memory=max(how.peak_memory for how in ended),
        rate=rate,
        faults=faults,
        calls=sum(calls),
    )
