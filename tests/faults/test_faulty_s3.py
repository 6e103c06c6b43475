"""The front itself: what a client of the standard library sees of each fault, and that a seed decides them."""

from __future__ import annotations

import collections
import contextlib
import http.client
import tempfile
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.stores.port import StoreUnavailable
from iterum_sidecar.stores.retries import RetryPolicy
from iterum_sidecar.stores.s3 import S3Store
from iterum_sidecar.stores.transport import Deadlines
from testbed import signed
from testbed.contents import get_object
from testbed.faulty_s3 import Fault, FaultPlan, FaultyS3, running_faulty_s3
from testbed.object_stores import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from botocore.client import BaseClient

DATA = bytes(range(200))


@pytest.fixture
def front(rclone: ObjectStore) -> Iterator[FaultyS3]:
    with running_faulty_s3(rclone) as running:
        yield running


def through(front: FaultyS3, store: ObjectStore) -> ObjectStore:
    return ObjectStore(front.endpoint, store.access_key, store.secret_key)


def always(fault: Fault) -> FaultPlan:
    return FaultPlan(1, {fault: 1})


def fill(front: FaultyS3, store: ObjectStore, bucket: str) -> None:
    signed.put(through(front, store), bucket)
    signed.put(through(front, store), bucket, "a", DATA)


@contextlib.contextmanager
def s3_of(front: FaultyS3, store: ObjectStore) -> Iterator[BaseClient]:
    with contextlib.closing(through(front, store).client()) as client:
        yield client


@contextlib.contextmanager
def connected(front: FaultyS3) -> Iterator[http.client.HTTPConnection]:
    with contextlib.closing(http.client.HTTPConnection(front.endpoint, timeout=1)) as connection:
        yield connection


def ask(front: FaultyS3, bucket: str, method: str = "GET") -> tuple[int, bytes, str | None]:
    """Send a request that nobody has signed; returns status, body and Retry-After."""
    with connected(front) as connection:
        connection.request(method, f"/{bucket}/a")
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers.get("Retry-After")


def get(front: FaultyS3, store: ObjectStore, bucket: str) -> bytes:
    with s3_of(front, store) as s3:
        body: bytes = s3.get_object(Bucket=bucket, Key="a")["Body"].read()
    return body


def test_without_a_plan_everything_passes(
    front: FaultyS3, rclone: ObjectStore, bucket: str
) -> None:
    fill(front, rclone, bucket)
    assert get_object(rclone, bucket, "a") == DATA
    assert get(front, rclone, bucket) == DATA
    with s3_of(front, rclone) as s3:
        assert s3.head_object(Bucket=bucket, Key="a")["ContentLength"] == len(DATA)
        s3.delete_object(Bucket=bucket, Key="a")
    assert not front.happened
    assert [method for method, _ in front.requests] == ["PUT", "PUT", "GET", "HEAD", "DELETE"]


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault.SLOW_DOWN, 503, b"SlowDown"),
        (Fault.TOO_MANY_REQUESTS, 429, b"TooManyRequests"),
        (Fault.INTERNAL_ERROR, 500, b"InternalError"),
        (Fault.REQUEST_TIMEOUT, 400, b"RequestTimeout"),
        (Fault.ACCESS_DENIED, 403, b"AccessDenied"),
        (Fault.NOT_FOUND, 404, b"back soon"),
        (Fault.MAINTENANCE, 200, b"back soon"),
    ],
)
def test_errors_have_a_status_and_a_code(
    front: FaultyS3, bucket: str, fault: Fault, status: int, code: bytes
) -> None:
    front.plan = always(fault)
    answered, body, retry_after = ask(front, bucket)
    assert answered == status
    assert code in body
    assert retry_after == ("1" if status == 429 else None)
    assert ask(front, bucket, "HEAD")[:2] == (status, b"")
    assert front.happened == {fault: 2}


@pytest.mark.parametrize("fault", [Fault.CLOSED_BEFORE, Fault.ANSWER_LOST])
def test_a_connection_is_closed_instead_of_an_answer(
    front: FaultyS3, rclone: ObjectStore, bucket: str, fault: Fault
) -> None:
    signed.put(through(front, rclone), bucket)
    front.plan = always(fault)
    with pytest.raises(http.client.RemoteDisconnected):
        signed.put(through(front, rclone), bucket, "a", DATA)
    assert rclone.directory is not None
    assert (rclone.directory / bucket / "a").exists() == (fault is Fault.ANSWER_LOST)


def test_a_connection_is_closed_after_an_answer_that_did_not_say_so(
    front: FaultyS3, bucket: str
) -> None:
    front.plan = always(Fault.CLOSED_AFTER)
    with connected(front) as connection:
        connection.request("GET", f"/{bucket}/a")
        answer = connection.getresponse()
        assert answer.read()
        assert not answer.will_close
        assert connection.sock.recv(1) == b""


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (Fault.SHORT_LENGTH, DATA[:100]),
        (Fault.FLIPPED_BYTE, DATA[:100] + bytes([DATA[100] ^ 1]) + DATA[101:]),
    ],
)
def test_a_body_is_another_one(
    front: FaultyS3, rclone: ObjectStore, bucket: str, fault: Fault, seen: bytes
) -> None:
    fill(front, rclone, bucket)
    front.plan = always(fault)
    assert get(front, rclone, bucket) == seen
    assert front.happened == {fault: 1}


@pytest.mark.parametrize(
    ("fault", "code"),
    [(Fault.SHORT_BODY, "ShortBody"), (Fault.SILENCE, "Timeout"), (Fault.STALLED, "Timeout")],
)
async def test_an_answer_does_not_come_to_its_end(
    front: FaultyS3, rclone: ObjectStore, bucket: str, fault: Fault, code: str
) -> None:
    fill(front, rclone, bucket)
    front.plan = always(fault)
    host, _, port = front.endpoint.rpartition(":")
    with tempfile.TemporaryFile() as file:
        async with S3Store(
            host,
            int(port),
            rclone.access_key,
            rclone.secret_key,
            deadlines=Deadlines(answer=0.5, progress=0.5),
            retries=RetryPolicy(attempts=1),
        ) as store:
            with pytest.raises(StoreUnavailable) as failure:
                await store.fetch(bucket, "a", file.fileno())
    assert failure.value.code == code
    assert front.happened == {fault: 1}


def test_a_seed_decides_which_requests_go_wrong() -> None:
    one_in = {Fault.SLOW_DOWN: 10, Fault.SILENCE: 20}
    drawn = collections.Counter(
        FaultPlan(7, one_in).fault_of("GET", f"/{number}", time)
        for number in range(1000)
        for time in (1, 2)
    )
    assert 140 <= drawn[Fault.SLOW_DOWN] <= 260
    assert 60 <= drawn[Fault.SILENCE] <= 140
    plans = [FaultPlan(seed, one_in) for seed in (7, 7, 8)]
    first, same, other = (
        [plan.fault_of("GET", f"/{number}", 1) for number in range(100)] for plan in plans
    )
    assert first == same != other


def test_a_kind_happens_no_more_often_than_it_may_and_only_where_it_may(
    front: FaultyS3, bucket: str
) -> None:
    front.plan = FaultPlan(1, {Fault.SLOW_DOWN: 1}, most={Fault.SLOW_DOWN: 2}, paths=bucket)
    statuses = [ask(front, name)[0] for name in ("other", bucket, bucket, bucket)]
    assert statuses[1:3] == [503, 503]
    assert {statuses[0], statuses[3]} == {400}
