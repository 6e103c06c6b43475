"""A volume with too little room and a process with too few descriptors, around a real sidecar."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from testbed.contents import content, get_object
from tests.wire.checks import check_mirrored
from tests.wire.journey import SIDECAR, journey_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed.object_stores import ObjectStore
    from testbed.process import Process
    from testbed.rabbitmq import RabbitMQ
    from tests.wire.checks import Outcome
    from tests.wire.journey import Journey

MIB = 1024 * 1024
#: Descriptors that the sidecar may have: few, as on a system whose administrator is careful.
FEW = 64
#: Seconds for runs in which everything is slow.
LONG = 200


def with_few_descriptors() -> list[str]:
    return ["sh", "-c", f'ulimit -n {FEW} && exec "$@"', "sh", *SIDECAR]


def run(journey: Journey, sidecar: Process, *, seconds: float = LONG) -> Outcome:
    """Let a mirroring step work to the end, and check that nothing is lost and no traceback is in the log."""
    journey.end(sidecar, journey.start_step("mirror"), seconds=seconds)
    assert "Traceback" not in sidecar.log_text()
    outcome = journey.outcome()
    assert len(outcome.outputs) == len(journey.inputs)
    check_mirrored(outcome, journey.contents, journey.store)
    return outcome


# -- descriptors


def test_few_descriptors_and_many_fragments(journey: Journey) -> None:
    for number in range(500):
        journey.seed({"a": content(number, 100)}, directly=True)
    journey.queue_inputs()
    run(journey, journey.start_sidecar(command=with_few_descriptors()))


def test_few_descriptors_and_fragments_of_many_files(journey: Journey) -> None:
    for number in range(5):
        files = {f"{each}.txt": content(1000 * number + each, 100) for each in range(300)}
        journey.seed(files, directly=True)
    journey.queue_inputs()
    run(journey, journey.start_sidecar(command=with_few_descriptors()))


def test_hardly_any_descriptor_is_waited_for_and_told(journey: Journey) -> None:
    """The limit is lowered while it is at work, to what it has open already; and raised again."""
    journey.manager.finished = False
    journey.seed({"a": content(0, 100)})
    journey.queue_inputs()
    sidecar = journey.start_sidecar()
    step = journey.start_step("mirror")
    journey.wait_for_outputs(1, sidecar)
    allow(sidecar, len(os.listdir(f"/proc/{sidecar.pid}/fd")))
    for number in range(1, 50):
        each = journey.seed({f"{file}": content(100 * number + file, 100) for file in range(3)})
        journey.publish(each.description())
    sidecar.wait_until(
        lambda: "waiting for a descriptor or memory to be free" in sidecar.log_text(),
        seconds=LONG,
        what="it said what it waits for",
    )
    allow(sidecar, 1000)
    journey.manager.finished = True
    journey.end(sidecar, step, seconds=LONG)
    check_mirrored(journey.outcome(), journey.contents, journey.store)
    assert "Traceback" not in sidecar.log_text()
    # One line a minute, however many wait.
    assert sidecar.log_text().count("waiting for a descriptor") <= 5


def allow(process: Process, descriptors: int) -> None:
    subprocess.run(
        ["prlimit", f"--nofile={descriptors}:1000", "--pid", str(process.pid)], check=True
    )


# -- sizes


def test_a_fragment_of_twenty_thousand_files(journey: Journey) -> None:
    # In folders, as the server takes the longer for each object the more are beside it.
    files = {f"{each // 100}/{each % 100}": b"%04d" % (each % 10_000) for each in range(20_000)}
    fragment = journey.seed(files, directly=True)
    journey.queue_inputs()
    sidecar = journey.start_sidecar()
    step = journey.start_step("join")
    sidecar.wait_until(
        lambda: journey.queues.count(journey.step.output_queue) == 1, seconds=LONG, what="its end"
    )
    # The message, what was read of it, and the frame for the transformation; no more for the files themselves.
    assert sidecar.peak_memory() < 100 * MIB
    journey.end(sidecar, step)
    output = journey.outcome().by_input()[fragment.fragment_id]
    (joined,) = output.files
    assert get_object(journey.store, joined.bucket, joined.path) == b"".join(files.values())


def test_an_object_that_is_larger_than_the_budget_goes_through_alone(journey: Journey) -> None:
    for number in range(20):
        journey.seed({"a": content(number, 3 * MIB if number == 10 else 100_000)})
    journey.queue_inputs()
    sidecar = journey.start_sidecar(SIDECAR_VOLUME_BUDGET="300k")
    run(journey, sidecar)
    assert sidecar.log_text().count("SIDECAR_VOLUME_BUDGET") == 1


def test_a_step_that_gathers_more_than_the_budget_holds(journey: Journey) -> None:
    for number in range(60):
        journey.seed({"a": content(number, 1000)}, directly=True)
    journey.queue_inputs()
    sidecar = journey.start_sidecar(SIDECAR_VOLUME_BUDGET="10k")
    journey.end(sidecar, journey.start_step("gather", 30), seconds=LONG)
    outcome = journey.outcome()
    assert [len(output.predecessors) for output in outcome.outputs] == [30, 30]
    assert "budget grows" in sidecar.log_text()


# -- a full disk


@pytest.fixture
def small(
    rabbitmq: RabbitMQ, rclone: ObjectStore, volume: Path, tmp_path: Path
) -> Iterator[Journey]:
    """A journey whose volume is a file system of 16 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "small", volume], check=True)
    try:
        with journey_of(rabbitmq, rclone, volume, tmp_path) as one:
            yield one
    finally:
        subprocess.run(["umount", volume], check=True)


@contextlib.contextmanager
def ballast(journey: Journey, *, leave: int) -> Iterator[None]:
    """Fill the volume but for so many bytes, until the end of the block."""
    path = journey.step.volume / "ballast"
    free = os.statvfs(path.parent)
    path.write_bytes(bytes(free.f_bavail * free.f_frsize - leave))
    try:
        yield
    finally:
        path.unlink()


@pytest.mark.parametrize("budget", ["", "0"], ids=["half of what is free", "none"])
def test_a_full_disk_is_waited_for(small: Journey, budget: str) -> None:
    for number in range(20):
        small.seed({"a": content(number, 100_000), "b": content(1000 + number, 100_000)})
    small.queue_inputs()
    with ballast(small, leave=150_000):
        sidecar = small.start_sidecar(SIDECAR_VOLUME_BUDGET=budget)
        step = small.start_step("mirror")
        sidecar.wait_until(
            lambda: "waiting for room on the volume" in sidecar.log_text(),
            seconds=LONG,
            what="it said what it waits for",
        )
        assert small.queues.count(small.step.output_queue) == 0
        assert sidecar.poll() is None
    small.end(sidecar, step, seconds=LONG)
    assert "there is room on the volume again" in sidecar.log_text()
    assert "Traceback" not in sidecar.log_text()
    check_mirrored(small.outcome(), small.contents, small.store)
    assert sidecar.log_text().count("waiting for room on the volume") <= 3


def test_fragments_that_fill_the_disk_together_come_through_one_after_the_other(
    small: Journey,
) -> None:
    """Sixteen begin at once, and two of them fit, with what comes of them."""
    for number in range(20):
        small.seed({f"{file}": content(100 * number + file, MIB) for file in range(3)})
    small.queue_inputs()
    run(small, small.start_sidecar(SIDECAR_VOLUME_BUDGET="8Mi"))


def test_what_is_larger_than_the_whole_disk_is_a_dead_letter(small: Journey) -> None:
    for number in range(5):
        small.seed({"a": content(number, 17 * MIB if number == 2 else 1000)})
    small.queue_inputs()
    sidecar = small.start_sidecar()
    small.end(sidecar, small.start_step("mirror"), seconds=LONG)
    outcome = small.outcome()
    assert len(outcome.outputs) == 4
    (dead,) = outcome.dead_letters
    assert dead.headers["x-iterum-kind"] == "input_refused"
    assert "the whole volume has" in str(dead.headers["x-iterum-reason"])
