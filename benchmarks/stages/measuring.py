"""One run of one contender: what it needs is made, its process measures itself, and what it should have done is looked at."""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
from typing import TYPE_CHECKING

import msgspec

from benchmarks.results import Figures
from benchmarks.stages.task import Measured, Task, description
from testbed.contents import content, make_bucket, put_directly
from testbed.fragments import connected
from testbed.process import ProcessFailed, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import TypeAlias

    from benchmarks.bench import Bench
    from benchmarks.stages.catalogue import Contender, Stage

    #: A task, and what looks afterwards whether it was done.
    Prepared: TypeAlias = tuple[Task, Callable[[], list[str]]]

__all__ = ["faults_of_files", "prepare", "run_once"]

#: Requests to a store that are under way, as in the sidecar.
AT_A_TIME = 16
PREFETCH = 100
RUN_SECONDS = 120
SAMPLE = 10


def run_once(bench: Bench, stage: Stage, contender: Contender) -> tuple[Figures, tuple[str, ...]]:
    """Run a contender once; return what it took, and whatever is not as it should be. Raises ProcessFailed."""
    with prepare(bench, stage, contender) as (task, faults):
        measured = _run(bench.directory, task)
        found = (*measured.faults, *faults())
    return Figures(stage.count, measured.cpu, measured.wall, measured.memory), found


def prepare(bench: Bench, stage: Stage, contender: Contender) -> AbstractContextManager[Prepared]:
    """Make what a contender needs, for the duration of the context, which gives its task and what looks whether it was done."""
    kinds = {"publish": _publish, "consume": _consume, "get": _get, "put": _put}
    return kinds.get(stage.kind, _in_memory)(
        bench, stage, Task(stage.name, contender.name, stage.count)
    )


def _run(directory: Path, task: Task) -> Measured:
    log = directory / "contender.log"
    log.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "benchmarks.stages.process",
        msgspec.json.encode(task).decode(),
    ]
    with running(command, log=log) as process:
        ended = process.wait(RUN_SECONDS)
        if ended.code != 0:
            raise ProcessFailed(f"{task.contender} ended with {ended.code}\n{process.last_lines()}")
        return msgspec.json.decode(process.log_text().splitlines()[-1], type=Measured)


@contextlib.contextmanager
def _in_memory(_bench: Bench, _stage: Stage, task: Task) -> Iterator[Prepared]:
    yield task, list


@contextlib.contextmanager
def _publish(bench: Bench, stage: Stage, task: Task) -> Iterator[Prepared]:
    queue = bench.new_name()
    with connected(bench.broker.url) as queues:
        queues.declare(queue, durable=True)

        def faults() -> list[str]:
            found = []
            if (count := queues.count(queue)) != stage.count:
                found.append(f"{count} messages in the queue")
            expected = {description(number) for number in range(stage.count)}
            sample = queues.take_first(queue, SAMPLE)
            if any(each.body not in expected or each.delivery_mode != 2 for each in sample):
                found.append("a message is another, or not persistent")
            return found

        yield msgspec.structs.replace(task, broker=bench.broker.url, queue=queue), faults
        queues.delete(queue)


@contextlib.contextmanager
def _consume(bench: Bench, stage: Stage, task: Task) -> Iterator[Prepared]:
    queue = bench.new_name()
    with connected(bench.broker.url) as queues:
        queues.declare(queue, durable=True)
        queues.publish(queue, [description(number) for number in range(stage.count)])

        def faults() -> list[str]:
            # What was not acknowledged has returned by now: its connection is closed.
            count = queues.count(queue)
            return [f"{count} messages left in the queue"] if count else []

        yield (
            msgspec.structs.replace(task, broker=bench.broker.url, queue=queue, prefetch=PREFETCH),
            faults,
        )
        queues.delete(queue)


def _inputs(bench: Bench, stage: Stage) -> str:
    """Return the bucket that holds what a stage gets or puts; it is made when it is first asked for."""
    bucket = f"inputs-{stage.count}-{stage.size}"
    if not (bench.objects / bucket).exists():
        make_bucket(bench.store, bucket)
        for number in range(stage.count):
            put_directly(bench.store, bucket, Task.file_name(number), content(number, stage.size))
    return bucket


def _with_store(bench: Bench, task: Task, bucket: str, directory: Path) -> Task:
    return msgspec.structs.replace(
        task,
        endpoint=bench.store.endpoint,
        access_key=bench.store.access_key,
        secret_key=bench.store.secret_key,
        bucket=bucket,
        directory=str(directory),
        at_a_time=AT_A_TIME,
    )


@contextlib.contextmanager
def _get(bench: Bench, stage: Stage, task: Task) -> Iterator[Prepared]:
    bucket = _inputs(bench, stage)
    target = bench.directory / bench.new_name()
    target.mkdir()
    yield (
        _with_store(bench, task, bucket, target),
        functools.partial(faults_of_files, target, stage),
    )
    shutil.rmtree(target)


@contextlib.contextmanager
def _put(bench: Bench, stage: Stage, task: Task) -> Iterator[Prepared]:
    source = bench.objects / _inputs(bench, stage)
    bucket = bench.new_name()
    make_bucket(bench.store, bucket)
    yield (
        _with_store(bench, task, bucket, source),
        functools.partial(faults_of_files, bench.objects / bucket, stage),
    )
    shutil.rmtree(bench.objects / bucket)


def faults_of_files(directory: Path, stage: Stage) -> list[str]:
    """Return what is not as it should be of files, or of objects that are files."""
    found = []
    sizes = [path.stat().st_size for path in directory.iterdir()]
    if sizes != [stage.size] * stage.count:
        found.append(f"{len(sizes)} files with {sum(sizes):,} bytes together")
    for number in range(0, stage.count, max(1, stage.count // SAMPLE)):
        path = directory / Task.file_name(number)
        if not path.exists() or path.read_bytes() != content(number, stage.size):
            found.append(f"{path.name} is missing, or has another content")
    return found
