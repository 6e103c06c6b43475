"""Run one step of a pipeline here: a broker, an object store, the sidecar, and a real pyterum program."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from demo.pictures import pictures
from demo.report import Row, summary, table
from testbed.contents import get_object, make_bucket
from testbed.fragments import Queues, RemoteFragment, connected, put_fragment
from testbed.manager import running_manager
from testbed.object_stores import running_rclone
from testbed.process import ProcessFailed, running
from testbed.rabbitmq import RabbitMQMissing, running_rabbitmq
from testbed.step import make_step

if TYPE_CHECKING:
    from testbed.object_stores import ObjectStore
    from testbed.rabbitmq import RabbitMQ
    from testbed.step import Step

ROOT = Path(__file__).parents[1]
RESULTS = Path("demo-results")
MEMORY = Path("/dev/shm")
END_SECONDS = 60


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def run_step(step: Step, broker: RabbitMQ, store: ObjectStore, directory: Path) -> None:
    """Run the sidecar and its transformation until the step is done."""
    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(running_manager(finished=True))
        environment = step.sidecar_environment(broker, store, manager_url=manager.url)
        path = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(ROOT)}
        sidecar = stack.enter_context(
            running(
                [sys.executable, "-m", "iterum_sidecar", "run"],
                log=directory / "sidecar.log",
                environment=environment | path,
            )
        )
        sidecar.wait_until(
            lambda: step.input_socket.exists() and step.output_socket.exists(),
            seconds=END_SECONDS,
            what="it listened",
        )
        transformation = stack.enter_context(
            running(
                [sys.executable, "-m", "demo.step"],
                log=directory / "step.log",
                environment=step.transformation_environment() | path,
                cwd=directory,
            )
        )
        for process in (sidecar, transformation):
            ended = process.wait(END_SECONDS)
            if ended.code != 0:
                raise ProcessFailed(
                    f"{process.log.stem} ended with {ended.code}\n{process.last_lines()}"
                )


def rows_of(step: Step, queues: Queues, inputs: list[RemoteFragment]) -> list[Row]:
    """Collect the outputs, find for each its input and what the lineage queue says of it."""
    sources = {fragment.fragment_id: fragment for fragment in inputs}
    lineage = {}
    for message in queues.take(step.lineage_queue):
        told = json.loads(message.body)
        made = RemoteFragment.of_description(told["description"])
        (source,) = made.predecessors
        lineage[made.fragment_id] = (
            f"by {told['transformation_step'].rpartition('-')[2]} of {source[:6]}…"
        )
    rows = []
    for message in queues.take(step.output_queue):
        output = RemoteFragment.of_body(message.body)
        rows.append(Row(sources[output.predecessors[0]], output, lineage[output.fragment_id]))
    return sorted(rows, key=lambda row: row.source.files[0].name)


def save(rows: list[Row], store: ObjectStore) -> None:
    """Leave the pictures and what was made of them in a directory, the last run's removed."""
    shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir()
    for row in rows:
        for file in (*row.source.files, *row.output.files):
            (RESULTS / file.name).write_bytes(get_object(store, file.bucket, file.path))


def demonstrate(directory: Path) -> None:
    """Do it all, in a directory for everything that is to be gone afterwards."""
    volume = directory / "volume"
    volume.mkdir()
    step = make_step(volume, name="edges")
    say("Starting a RabbitMQ broker and an S3 server of our own …")
    with (
        running_rabbitmq(directory / "rabbitmq") as broker,
        running_rclone(directory / "objects") as store,
        connected(broker.url) as queues,
    ):
        say("Making pictures, and putting each into the bucket and on the queue as a fragment …")
        make_bucket(store, step.input_bucket)
        inputs = [
            put_fragment(store, step.input_bucket, {name: data})
            for name, data in pictures().items()
        ]
        queues.declare(step.input_queue, step.output_queue, step.lineage_queue)
        queues.publish(step.input_queue, [fragment.body() for fragment in inputs])
        say("Starting the sidecar and, beside it, a transformation written with pyterum …\n")
        started = time.monotonic()
        run_step(step, broker, store, directory)
        seconds = time.monotonic() - started
        rows = rows_of(step, queues, inputs)
        if len(rows) != len(inputs) or queues.count(step.input_queue):
            raise ProcessFailed(f"{len(rows)} outputs of {len(inputs)} inputs")
        state = volume / ".iterum-sidecar" / "state"  # it stays, to say how the sidecar ended
        if left := [path.name for path in volume.rglob("*") if path.is_file() and path != state]:
            raise ProcessFailed(f"left on the volume: {', '.join(left)}")
        save(rows, store)
    say(table(rows))
    say(f"\n{summary(rows, seconds, RESULTS)}")


def main() -> None:
    """Run the demo; end with 1 and one line when it cannot be run."""
    # So that everything is cleaned up when we are told to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(
        prefix="demo-", dir=MEMORY if MEMORY.is_dir() else None
    ) as name:
        directory = Path(name)
        directory.chmod(0o755)
        try:
            demonstrate(directory)
        except (RabbitMQMissing, ProcessFailed) as error:
            raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
