"""The store goes away, comes back, and lies: real sidecar, real broker, real pyterum, and what a user sees of it.

After each test every input has exactly one output with the right content, or is a dead letter that the test asks for, and the log
has no traceback. `-s` shows the lines of the log, and how long it took from the return of the store to the next output.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from testbed.contents import content, list_keys
from testbed.faulty_proxy import FaultyProxy, running_faulty_proxy
from testbed.faulty_s3 import Fault, FaultPlan, FaultyS3, running_faulty_s3
from testbed.fragments import RemoteFile, RemoteFragment, new_id
from testbed.object_stores import running_rclone
from tests.wire.checks import check_mirrored
from tests.wire.journey import journey_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed.object_stores import ObjectStore
    from testbed.process import Process
    from testbed.rabbitmq import RabbitMQ
    from tests.wire.journey import Journey

#: Seconds from the return of the store to the next output: 5 are promised, and a loaded machine gets as much again.
SOON = 10.0
#: Seconds in which the whole of a test's work has always been done.
LONG = 120.0

WAITING = "waiting for the store"
BACK = "the store is back"


class StoreOfOnesOwn:
    """rclone over a directory, to be stopped and started, on one port."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = contextlib.ExitStack()
        self.store = self._stack.enter_context(running_rclone(directory))

    def stop(self) -> None:
        self._stack.close()

    def start(self, keys: tuple[str, str] | None = None) -> None:
        keys = keys or (self.store.access_key, self.store.secret_key)
        port = int(self.store.endpoint.rpartition(":")[2])
        self._stack.enter_context(running_rclone(self._directory, port=port, keys=keys))


@pytest.fixture
def own_store(session_directory: Path, unique: str) -> Iterator[StoreOfOnesOwn]:
    store = StoreOfOnesOwn(session_directory / f"own-{unique}")
    yield store
    store.stop()


@pytest.fixture
def own_journey(
    rabbitmq: RabbitMQ, own_store: StoreOfOnesOwn, volume: Path, tmp_path: Path
) -> Iterator[Journey]:
    with journey_of(rabbitmq, own_store.store, volume, tmp_path) as journey:
        yield journey


@pytest.fixture
def proxy(rclone: ObjectStore) -> Iterator[FaultyProxy]:
    with running_faulty_proxy(rclone.endpoint) as running:
        yield running


@pytest.fixture
def front(rclone: ObjectStore) -> Iterator[FaultyS3]:
    with running_faulty_s3(rclone) as running:
        yield running


def seed(journey: Journey, count: int, size: int = 2_000) -> None:
    for number in range(count):
        journey.seed({f"{number}.bin": content(number, size)}, directly=True)
    journey.queue_inputs()


def events(sidecar: Process) -> list[dict[str, Any]]:
    """The lines of a sidecar's log so far."""
    return [json.loads(line) for line in sidecar.log_text().splitlines() if line.endswith("}")]


def lines(sidecar: Process, message: str) -> list[dict[str, Any]]:
    return [event for event in events(sidecar) if event["message"] == message]


def show(sidecar: Process) -> None:
    """Print what a user reads, without what stands in every line; none of it is a traceback."""
    for event in events(sidecar):
        fields = event.keys() - {"severity", "message", "step", "pipeline", "time"}
        told = (f"{name}={event[name]!r}" for name in sorted(fields))
        print(event["time"][11:19], event["severity"].lower(), event["message"], *told)
    assert "traceback" not in sidecar.log_text().lower()


def wait_for_line(sidecar: Process, message: str, seconds: float = 20) -> None:
    sidecar.wait_until(lambda: lines(sidecar, message), seconds=seconds, what=f"{message!r}")


def wait_for_progress(journey: Journey, sidecar: Process, seconds: float = SOON) -> None:
    """Wait for an output more than there are, and print how long that took."""
    queue = journey.step.output_queue
    before = journey.queues.count(queue)
    since = time.monotonic()
    sidecar.wait_until(
        lambda: journey.queues.count(queue) > before, seconds=seconds, what="the work to go on"
    )
    print(f"\nreturn -> progress: {time.monotonic() - since:.2f} s")


def assert_all_done(journey: Journey, sidecar: Process, *steps: Process) -> None:
    """Wait for the end; every input has exactly one output, with the right content."""
    journey.end(sidecar, *steps, seconds=LONG)
    show(sidecar)
    outcome = journey.outcome()
    assert outcome.dead_letters == []
    assert len(outcome.outputs) == len(journey.inputs)
    check_mirrored(outcome, journey.contents, journey.store)


def assert_told_once(sidecar: Process) -> None:
    (waiting,), (back,) = lines(sidecar, WAITING), lines(sidecar, BACK)
    assert waiting["reason"]
    assert waiting["meanwhile"] == "asking again every few seconds; nothing is lost"
    assert waiting["if_it_lasts"].startswith("see ")
    assert waiting["time"] < back["time"]


def test_the_store_is_stopped_and_started_in_the_middle(
    own_journey: Journey, own_store: StoreOfOnesOwn
) -> None:
    journey = own_journey
    seed(journey, 300)
    sidecar = journey.start_sidecar()
    step = journey.start_step("mirror", 0.02)
    journey.wait_for_outputs(50, sidecar)
    own_store.stop()
    wait_for_line(sidecar, WAITING)
    time.sleep(10)
    own_store.start()
    wait_for_progress(journey, sidecar)
    assert_all_done(journey, sidecar, step)
    assert_told_once(sidecar)


def test_the_store_is_away_at_the_start(journey: Journey, proxy: FaultyProxy) -> None:
    seed(journey, 50)
    proxy.refuse()
    sidecar = journey.start_sidecar(MINIO_URL=proxy.endpoint)
    step = journey.start_step("mirror")
    wait_for_line(sidecar, WAITING)
    time.sleep(8)
    proxy.pass_on()
    wait_for_progress(journey, sidecar)
    assert_all_done(journey, sidecar, step)
    assert_told_once(sidecar)


def test_what_is_frozen_goes_on_when_it_thaws(journey: Journey, proxy: FaultyProxy) -> None:
    seed(journey, 300)
    sidecar = journey.start_sidecar(MINIO_URL=proxy.endpoint)
    step = journey.start_step("mirror", 0.02)
    journey.wait_for_outputs(50, sidecar)
    proxy.freeze()
    time.sleep(8)
    proxy.pass_on()
    wait_for_progress(journey, sidecar)
    assert_all_done(journey, sidecar, step)


def test_a_store_that_takes_connections_and_never_answers_is_found_out(
    journey: Journey, proxy: FaultyProxy
) -> None:
    """What has lost bytes stays silent for ever: each request has a deadline, and goes out again by another connection."""
    seed(journey, 300)
    sidecar = journey.start_sidecar(MINIO_URL=proxy.endpoint)
    step = journey.start_step("mirror", 0.02)
    journey.wait_for_outputs(50, sidecar)
    proxy.blackhole()
    time.sleep(8)
    proxy.pass_on()
    wait_for_progress(journey, sidecar, seconds=40)
    assert_all_done(journey, sidecar, step)


def test_connections_are_cut_in_the_middle_of_bodies(journey: Journey, proxy: FaultyProxy) -> None:
    seed(journey, 60, size=300_000)
    proxy.limit(1_000_000, "client")
    proxy.limit(1_000_000, "server")
    sidecar = journey.start_sidecar(MINIO_URL=proxy.endpoint)
    step = journey.start_step("mirror")
    assert_all_done(journey, sidecar, step)
    assert proxy.accepted >= 30


@pytest.mark.parametrize("seconds", [1.0, 4.0])
def test_a_store_that_comes_and_goes(journey: Journey, proxy: FaultyProxy, seconds: float) -> None:
    # Enough for a machine that is slow to look, so that there is work left at the last return.
    seed(journey, 1500)
    sidecar = journey.start_sidecar(MINIO_URL=proxy.endpoint)
    step = journey.start_step("mirror", 0.02)
    journey.wait_for_outputs(20, sidecar)
    for _ in range(5):
        proxy.refuse()
        time.sleep(seconds)
        proxy.pass_on()
        wait_for_progress(journey, sidecar)
    assert_all_done(journey, sidecar, step)
    assert len(lines(sidecar, WAITING)) <= 2


def test_one_request_in_ten_is_answered_with_500(journey: Journey, front: FaultyS3) -> None:
    seed(journey, 300)
    front.plan = FaultPlan(1, {Fault.INTERNAL_ERROR: 10})
    sidecar = journey.start_sidecar(MINIO_URL=front.endpoint)
    step = journey.start_step("mirror")
    assert_all_done(journey, sidecar, step)
    assert front.happened[Fault.INTERNAL_ERROR] > 40
    assert lines(sidecar, WAITING) == []


@pytest.mark.parametrize("number", range(3))
def test_every_fault_of_a_store_by_a_seed(journey: Journey, front: FaultyS3, number: int) -> None:
    seed(journey, 300, size=5_000)
    rare = {Fault.SILENCE: 2, Fault.STALLED: 2}
    one_in = {fault: 200 if fault in rare else 30 for fault in Fault}
    front.plan = FaultPlan(number, one_in, most=rare)
    sidecar = journey.start_sidecar(MINIO_URL=front.endpoint)
    step = journey.start_step("mirror")
    assert_all_done(journey, sidecar, step)
    print(front.happened)
    assert front.happened.keys() >= set(Fault) - rare.keys()


def test_the_output_bucket_is_deleted_in_the_middle(journey: Journey) -> None:
    seed(journey, 60)
    sidecar = journey.start_sidecar()
    step = journey.start_step("mirror", 0.2)
    journey.wait_for_outputs(10, sidecar)
    deleted = delete_bucket(journey.store, journey.step.output_bucket)
    journey.end(sidecar, step, seconds=LONG)
    show(sidecar)
    outputs = journey.take_outputs()
    assert len(outputs) == 60
    keys = {file.path for output in outputs.values() for file in output.files}
    assert keys - deleted == set(list_keys(journey.store, journey.step.output_bucket))
    assert len(keys - deleted) > 10
    assert lines(sidecar, WAITING) == []


def delete_bucket(store: ObjectStore, bucket: str) -> set[str]:
    """Delete a bucket that is being written to, and return the keys of what was in it."""
    deleted: set[str] = set()
    with contextlib.closing(store.client()) as s3:
        while True:
            for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", ()):
                deleted.add(entry["Key"])
                s3.delete_object(Bucket=bucket, Key=entry["Key"])
            with contextlib.suppress(s3.exceptions.ClientError):  # it is not empty any more
                s3.delete_bucket(Bucket=bucket)
                return deleted


def test_a_key_is_revoked_and_restored(own_journey: Journey, own_store: StoreOfOnesOwn) -> None:
    journey = own_journey
    seed(journey, 200)
    sidecar = journey.start_sidecar()
    step = journey.start_step("mirror", 0.02)
    journey.wait_for_outputs(50, sidecar)
    own_store.stop()
    own_store.start(("another-access-key", "another-secret-key"))
    # Where its restart was noticed first, the line that says so is followed by one that names the keys.
    sidecar.wait_until(
        lambda: "see to the keys" in sidecar.log_text(), seconds=20, what="the keys to be named"
    )
    own_store.stop()
    own_store.start()
    wait_for_progress(journey, sidecar)
    assert_all_done(journey, sidecar, step)
    assert len(lines(sidecar, WAITING)) <= 3
    assert len(lines(sidecar, BACK)) == 1


@pytest.mark.parametrize("what", ["input", "output", "everything"])
def test_something_is_barred_for_a_while(journey: Journey, front: FaultyS3, what: str) -> None:
    seed(journey, 200)
    sidecar = journey.start_sidecar(MINIO_URL=front.endpoint)
    step = journey.start_step("mirror", 0.02)
    journey.wait_for_outputs(50, sidecar)
    buckets = {"input": journey.step.input_bucket, "output": f"{journey.step.output_bucket}/"}
    front.plan = FaultPlan(1, {Fault.ACCESS_DENIED: 1}, paths=buckets.get(what, ""))
    wait_for_line(sidecar, WAITING)
    time.sleep(3)
    asked = len(front.requests)
    time.sleep(10)
    print(f"\nrequests in 10 s: {len(front.requests) - asked}")
    assert len(front.requests) - asked < 50
    front.plan = None
    wait_for_progress(journey, sidecar)
    assert_all_done(journey, sidecar, step)
    assert_told_once(sidecar)


def test_more_than_twenty_missing_objects_in_a_row_make_a_pause_and_good_ones_go_through(
    journey: Journey,
) -> None:
    for number in range(22):
        lost = RemoteFile(f"{number}.bin", f"iterum_data/lost/{number}", journey.step.input_bucket)
        fragment = RemoteFragment(new_id(), (lost,))
        journey.inputs[fragment.fragment_id] = fragment
    missing = set(journey.inputs)
    seed(journey, 10)
    sidecar = journey.start_sidecar(prefetch=4)
    step = journey.start_step("mirror")
    journey.end(sidecar, step, seconds=LONG)
    show(sidecar)
    outcome = journey.outcome()
    assert set(outcome.dead_ids) == missing
    assert len(outcome.outputs) == 10
    check_mirrored(outcome, journey.contents, journey.store)
    assert lines(sidecar, "pausing: nothing but dead letters")
    assert lines(sidecar, WAITING) == []


def test_a_store_that_does_not_come_back_in_time_ends_the_program_and_nothing_is_lost(
    journey: Journey, proxy: FaultyProxy
) -> None:
    seed(journey, 100)
    sidecar = journey.start_sidecar(MINIO_URL=proxy.endpoint, SIDECAR_SERVICE_TIMEOUT="5")
    step = journey.start_step("mirror", 0.02)
    journey.wait_for_outputs(20, sidecar)
    proxy.refuse()
    journey.end(sidecar, code=12)
    step.close()
    show(sidecar)
    assert [event["severity"] for event in events(sidecar)].count("ERROR") == 1
    assert_all_done(journey, journey.start_sidecar(), journey.start_step("mirror"))


def test_a_stop_while_the_store_is_away_gives_back_what_cannot_be_finished(
    journey: Journey, proxy: FaultyProxy
) -> None:
    seed(journey, 100)
    sidecar = journey.start_sidecar(MINIO_URL=proxy.endpoint, SIDECAR_DRAIN_SECONDS="5")
    step = journey.start_step("mirror", 0.02)
    journey.wait_for_outputs(20, sidecar)
    proxy.refuse()
    wait_for_line(sidecar, WAITING)
    sidecar.signal(signal.SIGTERM)
    journey.end(sidecar, code=16)
    step.close()
    show(sidecar)
    assert_all_done(journey, journey.start_sidecar(), journey.start_step("mirror"))
