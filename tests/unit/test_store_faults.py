from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.exit_codes import ServiceLost
from iterum_sidecar.patience import Patience
from iterum_sidecar.store_faults import StoreFaults
from iterum_sidecar.stores.port import (
    BucketMissing,
    ObjectMissing,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from trio.testing import MockClock

OWN = "step-output"
ACCESS_CODES = [
    "AccessDenied",
    "AllAccessDisabled",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
]
MISSING = ObjectMissing("no such key", bucket="data", key="x", code="NoSuchKey")
BARRED = StoreRefused("denied", bucket="data", key="x", code="AccessDenied")


class FakeStore:
    """A store of which only the buckets matter here: each answers as it is told to."""

    def __init__(
        self, *, check: StoreError | None = None, ensure: StoreError | None = None
    ) -> None:
        self.check = check
        self.ensure = ensure
        self.asked: list[tuple[str, str]] = []

    async def fetch(self, bucket: str, key: str, file: int) -> int:
        raise AssertionError("nothing is fetched to find out whose fault it is")

    async def put(self, bucket: str, key: str, file: int, size: int) -> None:
        raise AssertionError("nothing is put to find out whose fault it is")

    async def ensure_bucket(self, bucket: str) -> None:
        await trio.lowlevel.checkpoint()
        self.asked.append(("ensure", bucket))
        if self.ensure is not None:
            raise self.ensure

    async def check_bucket(self, bucket: str) -> None:
        await trio.lowlevel.checkpoint()
        self.asked.append(("check", bucket))
        if self.check is not None:
            raise self.check


def faults_of(store: FakeStore, timeout: float = 0.0) -> StoreFaults:
    return StoreFaults(store, OWN, Patience("the store", timeout, lambda: 1.0))


async def ask_for_ever(faults: StoreFaults, error: StoreError) -> None:
    while True:
        assert not await faults.is_its_own(error, reads_before=0)


async def ask(faults: StoreFaults, error: StoreError, reads_before: int = 0) -> tuple[bool, float]:
    """Whether it is the fragment's own fault, and how long that took to say."""
    before = trio.current_time()
    own = await faults.is_its_own(error, reads_before=reads_before)
    return own, trio.current_time() - before


@pytest.mark.parametrize(
    "error",
    [
        MISSING,
        BucketMissing("no such bucket", bucket="data", code="NoSuchBucket"),
        StoreRefused("a bad name", bucket="data", key="x", code="KeyTooLongError"),
        StoreError("it shrank", bucket=OWN, key="x", code="FileShrank"),
    ],
)
async def test_what_is_refused_while_our_own_bucket_is_fine_is_the_fragments_fault(
    autojump_clock: MockClock, error: StoreError
) -> None:
    store = FakeStore()
    assert await ask(faults_of(store), error) == (True, 0)
    assert store.asked == [("check", OWN)]


@pytest.mark.parametrize("own_code", ["AccessDenied", "InvalidAccessKeyId"])
async def test_when_our_own_bucket_is_refused_too_everything_waits(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, own_code: str
) -> None:
    store = FakeStore(check=StoreRefused("our key is bad", bucket=OWN, code=own_code))
    faults = faults_of(store)
    answers = [await ask(faults, MISSING) for _ in range(3)]
    assert answers == [(False, 0.5), (False, 1.0), (False, 2.0)]
    assert len(caplog.records) == 1
    assert caplog.records[0].__dict__["fields"]["reason"] == (
        "no such key; and for our own bucket: our key is bad"
    )


async def test_a_store_that_goes_away_while_it_is_asked_is_waited_for(
    autojump_clock: MockClock,
) -> None:
    store = FakeStore(check=StoreUnavailable("connection refused", bucket=OWN))
    assert await ask(faults_of(store), MISSING) == (False, 0.5)


async def test_an_unavailable_store_is_waited_for_without_a_question(
    autojump_clock: MockClock,
) -> None:
    store = FakeStore()
    error = StoreUnavailable("503", bucket="data", key="x", code="SlowDown")
    assert await ask(faults_of(store), error) == (False, 0.5)
    assert store.asked == []


async def test_a_certificate_that_is_renewed_before_our_own_bucket_is_asked_for_is_nobodys_fault(
    autojump_clock: MockClock,
) -> None:
    error = StoreRefused(
        "its certificate has expired", bucket="data", key="x", code="CertificateRefused"
    )
    faults = faults_of(FakeStore())
    assert await ask(faults, error) == (False, 0.5)
    faults.succeeded("data")
    assert await ask(faults, error) == (False, 0.5)


@pytest.mark.parametrize("code", ACCESS_CODES)
async def test_a_refusal_of_access_waits(autojump_clock: MockClock, code: str) -> None:
    error = StoreRefused("denied", bucket="data", key="x", code=code)
    assert await ask(faults_of(FakeStore()), error) == (False, 0.5)


async def test_a_refusal_of_access_is_the_fragments_if_another_object_of_the_bucket_was_read_since(
    autojump_clock: MockClock,
) -> None:
    faults = faults_of(FakeStore())
    faults.succeeded("data")
    before = faults.reads("data")
    assert before == 1
    assert await ask(faults, BARRED, before) == (False, 0.5)
    faults.succeeded("other")
    faults.succeeded()
    assert await ask(faults, BARRED, before) == (False, 0.5)
    faults.succeeded("data")
    assert await ask(faults, BARRED, before) == (True, 0)


async def test_a_bucket_that_was_read_once_says_nothing_when_our_key_has_expired_since(
    autojump_clock: MockClock,
) -> None:
    faults = faults_of(FakeStore(check=StoreRefused("expired", bucket=OWN, code="ExpiredToken")))
    faults.succeeded("data")
    assert await ask(faults, BARRED, 0) == (False, 0.5)


async def test_our_own_bucket_is_made_again_when_it_vanished(autojump_clock: MockClock) -> None:
    store = FakeStore()
    error = BucketMissing("no such bucket", bucket=OWN, key="x", code="NoSuchBucket")
    assert await ask(faults_of(store), error) == (False, 0)
    assert store.asked == [("ensure", OWN)]


async def test_our_own_bucket_that_cannot_be_made_is_waited_for(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = FakeStore(ensure=StoreRefused("may not make it", bucket=OWN, code="AccessDenied"))
    error = BucketMissing("no such bucket", bucket=OWN, key="x", code="NoSuchBucket")
    assert await ask(faults_of(store), error) == (False, 0.5)
    assert caplog.records[0].__dict__["fields"]["reason"] == (
        "no such bucket; and it cannot be made: may not make it"
    )


async def test_our_own_bucket_is_made_when_the_question_finds_it_missing(
    autojump_clock: MockClock,
) -> None:
    store = FakeStore(check=BucketMissing("no such bucket", bucket=OWN))
    assert await ask(faults_of(store), MISSING) == (True, 0)
    assert store.asked == [("check", OWN), ("ensure", OWN)]


async def test_a_store_that_says_made_and_missing_in_turn_is_not_asked_without_a_pause(
    autojump_clock: MockClock,
) -> None:
    store = FakeStore()
    faults = faults_of(store)
    error = BucketMissing("no such bucket", bucket=OWN, key="x", code="NoSuchBucket")
    start = trio.current_time()
    for _ in range(20):
        assert not await faults.is_its_own(error, reads_before=0)
    assert trio.current_time() - start > 10


async def test_a_success_ends_the_wait(autojump_clock: MockClock) -> None:
    faults = faults_of(FakeStore(), timeout=5.0)
    away = StoreUnavailable("connection refused", bucket="data", key="x")
    for _ in range(5):
        assert await ask(faults, away) == (False, 0.5)
        assert await ask(faults, away) == (False, 1.0)
        faults.succeeded("data")


async def test_the_timeout_is_shared_by_every_way_of_waiting(autojump_clock: MockClock) -> None:
    faults = faults_of(FakeStore(), timeout=3.0)
    start = trio.current_time()
    await faults.wait(StoreUnavailable("connection refused", bucket=OWN))
    with pytest.raises(ServiceLost, match="gave up on the store after 3 s"):
        await ask_for_ever(faults, BARRED)
    assert trio.current_time() - start == pytest.approx(3)


async def test_a_refusal_of_keys_that_are_no_longer_used_is_nobodys_fault(
    autojump_clock: MockClock,
) -> None:
    """Another fragment has been read with the new keys since, which proves nothing of this one."""
    faults = faults_of(FakeStore())
    refused = StoreRefused("denied", bucket="data", key="x", code="AccessDenied")
    faults.succeeded("data")
    assert await ask(faults, refused) == (True, 0)
    refused.is_outdated = lambda: True
    assert await ask(faults, refused) == (False, 0)
