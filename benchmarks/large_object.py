"""One very large object through a sidecar, each way against the line rate of the store. See README.md.

python -m benchmarks.large_object [--gib N] [--runs N]

The line rate is one GET and one PUT of the same bytes by the floor's client (`line.py`), which checks nothing and sends
everything in one request. The object has a megabyte of content in every sixteen, and holes between, which take no room
in memory; what is written of it has none. The step makes a hard link, so that no time and no room is a copy's.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import filecmp
import os
import shutil
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.bench import (
    at_least_one,
    clean_up_when_told_to_stop,
    failures_in_one_line,
    open_bench,
)
from benchmarks.pod import pod, step_log
from testbed.contents import content, make_bucket
from testbed.fragments import RemoteFile, RemoteFragment, connected, new_id
from testbed.manager import running_manager
from testbed.process import Process, running, wait_until
from testbed.step import make_step

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.pod import Peers

GIB = 1 << 30
DENSE, EVERY = 1 << 20, 16 << 20
SECONDS = 600
STOPPED = 128 + signal.SIGTERM
TICKS = os.sysconf("SC_CLK_TCK")
GET, PUT = "GET", "PUT"
HEADING = f"{'':<4} {'by':<8} {'seconds':>8} {'GB/s':>6} {'CPU s/GB':>9} {'peak MB':>8}  verified"


@dataclasses.dataclass(frozen=True)
class Way:
    """What one way took: seconds, CPU seconds of the process, its peak memory in bytes."""

    seconds: float
    cpu: float
    memory: int
    is_right: bool


def make_object(path: Path, size: int) -> None:
    """Make the object's file; its holes read as zeros."""
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        for number, start in enumerate(range(0, size, EVERY)):
            file.seek(start)
            file.write(content(number, min(DENSE, size - start)))
        file.truncate(size)


def cpu_of(process: Process) -> float:
    """Return the CPU seconds of a process so far, to a hundredth."""
    status = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8")
    fields = status.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Measurement:
    """The servers, and the object under a key of a bucket."""

    def __init__(self, peers: Peers, size: int) -> None:
        assert peers.store.directory is not None
        self.peers = peers
        self.names = make_step(peers.directory)
        self.key = "iterum_data/the-object"
        make_bucket(peers.store, self.names.input_bucket)
        make_bucket(peers.store, self.names.output_bucket)
        self.objects = peers.store.directory
        self.original = self.objects / self.names.input_bucket / self.key
        make_object(self.original, size)

    def line(self, method: str, bucket: str, key: str, file: Path) -> Way:
        """Let the floor's client do one request, in a process of its own."""
        log = self.peers.directory / "line.log"
        log.unlink(missing_ok=True)
        store = self.peers.store
        environment = {
            "MINIO_URL": store.endpoint,
            "MINIO_ACCESS_KEY": store.access_key,
            "MINIO_SECRET_KEY": store.secret_key,
        }
        command = [sys.executable, "-m", "benchmarks.line", method, bucket, key, str(file)]
        with running(command, log=log, environment=environment) as process:
            ended = process.wait(SECONDS)
        if ended.code != 0:
            raise SystemExit(f"{method}: {log.read_text(encoding='utf-8')}")
        seconds, cpu = map(float, log.read_text(encoding="utf-8").split())
        written = file if method == GET else self.objects / bucket / key
        return Way(seconds, cpu, ended.peak_memory, self._is_right(written))

    def by_line(self) -> dict[str, Way]:
        """Get the object into a file, and put it from there."""
        file = self.peers.directory / "a-file"
        ways = {GET: self.line(GET, self.names.input_bucket, self.key, file)}
        ways[PUT] = self.line(PUT, self.names.output_bucket, self.key, file)
        file.unlink()
        shutil.rmtree(self.objects / self.names.output_bucket / self.key.partition("/")[0])
        return ways

    def by_sidecar(self) -> dict[str, Way]:
        """Let a fragment with the object go through a sidecar that is at work already."""
        names = self.names
        with contextlib.ExitStack() as stack:
            queues = stack.enter_context(connected(self.peers.broker.url))
            manager = stack.enter_context(running_manager())
            queues.declare(names.input_queue, names.output_queue, names.lineage_queue)
            step, sidecar = stack.enter_context(
                pod(
                    self.peers,
                    names,
                    manager.url,
                    prefetch=1,
                    variables={"BENCHMARK_LINK": "yes"},
                )
            )

            def when(condition: Callable[[], object], what: str) -> tuple[float, float]:
                """Wait until something has happened; return the time and the CPU seconds so far."""
                sidecar.wait_until(condition, seconds=SECONDS, what=what)
                return time.monotonic(), cpu_of(sidecar)

            when(lambda: queues.consumers(names.input_queue), "the sidecar to consume")
            begun = time.monotonic(), cpu_of(sidecar)
            file = RemoteFile("object.bin", self.key, names.input_bucket)
            queues.publish(names.input_queue, [RemoteFragment(new_id(), (file,)).body()])
            told = step_log(self.peers, step.volume)
            here = when(lambda: told.stat().st_size, "the step to have the object")
            there = when(lambda: queues.count(names.output_queue), "the output")
            sidecar.signal(signal.SIGTERM)
            ended = sidecar.wait(SECONDS)
            (output,) = queues.take(names.output_queue)
            (stored,) = RemoteFragment.of_body(output.body).files
            written = self.objects / stored.bucket / stored.path
            is_right = self._is_right(written) and ended.code == STOPPED
            written.unlink()
            queues.delete(names.input_queue, names.output_queue, names.lineage_queue)
        return {
            way: Way(end[0] - start[0], end[1] - start[1], ended.peak_memory, is_right)
            for way, start, end in ((GET, begun, here), (PUT, here, there))
        }

    def _is_right(self, written: Path) -> bool:
        wait_until(written.exists, seconds=SECONDS, what=f"{written} to be there")
        return filecmp.cmp(self.original, written, shallow=False)


def row(way: str, by: str, ways: list[Way], size: int) -> str:
    """Return one line of the table, with the medians."""
    seconds = statistics.median(each.seconds for each in ways)
    cpu = statistics.median(each.cpu for each in ways)
    memory = statistics.median(each.memory for each in ways)
    verified = "yes" if all(each.is_right for each in ways) else "no"
    return (
        f"{way:<4} {by:<8} {seconds:>8.2f} {size / seconds / 1e9:>6.2f} {cpu / (size / 1e9):>9.2f}"
        f" {memory / 1e6:>8.1f}  {verified}"
    )


def measure(size: int, runs: int) -> bool:
    """Measure both in turn and print the table; tell whether everything arrived as it was."""
    with open_bench() as bench:
        measurement = Measurement(bench.peers, size)
        # So that the store knows the object's hash, which it computes once.
        measurement.line(GET, measurement.names.input_bucket, measurement.key, Path(os.devnull))
        taken: list[dict[str, dict[str, Way]]] = [
            {"line": measurement.by_line(), "sidecar": measurement.by_sidecar()}
            for _ in range(runs)
        ]
    print(HEADING)
    for way in (GET, PUT):
        for by in ("line", "sidecar"):
            print(row(way, by, [each[by][way] for each in taken], size))
    return all(way.is_right for each in taken for ways in each.values() for way in ways.values())


def main() -> None:
    """Read the command line and measure; end with 1 when an object did not arrive as it was."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_object", description=__doc__)
    parser.add_argument("--gib", type=float, default=5, help="the object's size (default: 5)")
    parser.add_argument("--runs", type=at_least_one, default=1, help="runs of each (default: 1)")
    options = parser.parse_args()
    clean_up_when_told_to_stop()
    with failures_in_one_line():
        is_right = measure(int(options.gib * GIB), options.runs)
    if not is_right:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
