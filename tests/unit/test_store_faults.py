from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.exit_codes import ServiceLost
from iterum_sidecar.patience import LONGEST_DELAY, LONGEST_RETRY_AFTER, Patience
from iterum_sidecar.store_faults import (
    FAILURES_BELIEVED,
    REFUSALS_BELIEVED,
    TELL_AFTER,
    StoreFaults,
    Trial,
)
from iterum_sidecar.stores.port import (
    BucketMissing,
    ObjectMissing,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

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
OWN_MISSING = BucketMissing("no such bucket", bucket=OWN, key="x", code="NoSuchBucket")


def barred(code: str = "AccessDenied", bucket: str = "data") -> StoreRefused:
    return StoreRefused("denied", bucket=bucket, key="x", code=code)


def away(code: str = "ConnectFailed", retry_after: float | None = None) -> StoreUnavailable:
    error = StoreUnavailable("connection refused", bucket="data", key="x", code=code)
    error.retry_after = retry_after
    return error


class FakeStore:
    """A store of which only the buckets matter here: each answers as it is told to."""

    def __init__(
        self, *, check: StoreError | None = None, ensure: StoreError | None = None
    ) -> None:
        self.check = check
        self.ensure = ensure
        self.asked: list[tuple[str, str]] = []

    async def fetch(
        self, bucket: str, key: str, file: int, *, admit: Callable[[int], None] | None = None
    ) -> int:
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


async def ask(trial: Trial, error: StoreError) -> tuple[bool, float]:
    """Whether it is the object's own fault, and how long that took to say."""
    before = trio.current_time()
    own = await trial.is_at_fault(error)
    return own, trio.current_time() - before


async def assert_not_at_fault(trial: Trial, error: StoreError) -> None:
    assert not await trial.is_at_fault(error)


async def ask_until_condemned(
    trial: Trial, error: Callable[[], StoreError], meanwhile: Callable[[], None], most: int = 200
) -> int:
    """Return how often an object had to be asked for in vain; the most that was tried if it is never condemned."""
    for count in range(1, most + 1):
        await trio.sleep(0.01)
        if await trial.is_at_fault(error()):
            return count
        await trio.sleep(0.01)
        meanwhile()
    return most


def lines(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, object]]:
    return [
        record.__dict__["fields"] for record in caplog.records if record.getMessage() == message
    ]


# -- refusals


@pytest.mark.parametrize(
    "error",
    [
        MISSING,
        BucketMissing("no such bucket", bucket="data", code="NoSuchBucket"),
        StoreRefused("a bad name", bucket="data", key="x", code="KeyTooLongError"),
        StoreError("it shrank", bucket=OWN, key="x", code="FileShrank"),
    ],
)
async def test_what_is_lastingly_refused_while_our_own_bucket_is_fine_is_the_objects_fault(
    autojump_clock: MockClock, error: StoreError
) -> None:
    store = FakeStore()
    assert await ask(faults_of(store).reading("data"), error) == (True, 0)
    assert store.asked == [("check", OWN)]


@pytest.mark.parametrize("code", ["NotFound", "BadRequest", "InvalidArgument"])
async def test_another_refusal_of_an_object_is_believed_at_the_fifth_time(
    autojump_clock: MockClock, code: str
) -> None:
    """A 404 without a code of S3 may be that of a proxy whose server is away."""
    store = FakeStore()
    trial = faults_of(store).reading("data")
    error = ObjectMissing("404", bucket="data", key="x", code=code)
    start = trio.current_time()
    answers = [(await ask(trial, error))[0] for _ in range(REFUSALS_BELIEVED)]
    assert answers == [False] * 4 + [True]
    assert store.asked == [("check", OWN)] * 5
    assert 0.2 <= trio.current_time() - start <= 7.5


@pytest.mark.parametrize("own_code", ["AccessDenied", "InvalidAccessKeyId"])
async def test_when_our_own_bucket_is_refused_too_everything_waits_until_it_is_not(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, own_code: str
) -> None:
    store = FakeStore(check=StoreRefused("our key is bad", bucket=OWN, code=own_code))
    answers = []

    async def ask_one(trial: Trial) -> None:
        answers.append(await ask(trial, MISSING))

    faults = faults_of(store)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask_one, faults.reading("data"))
        await trio.sleep(60)
        assert answers == []
        store.check = None
    # Each asks once for itself, then one asks for all.
    assert len(store.asked) <= 100 + 25
    assert len(answers) == 100
    assert all(not own and 60 <= seconds <= 65 for own, seconds in answers)
    line = lines(caplog, "waiting for the store")[0]
    assert line["reason"] == "no such key; and for our own bucket: our key is bad"
    assert line["if_it_lasts"] == (
        "see to the keys and what they allow; `iterum-sidecar check` tells more"
    )


async def test_a_store_that_is_away_is_asked_for_our_own_bucket_until_it_is_there(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody sends a whole object only to find out whether the store is there, and a line says what was said last."""
    store = FakeStore(check=StoreUnavailable("HTTP 503", bucket=OWN, code="SlowDown"))
    faults = faults_of(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, faults.reading("data"), away())
        nursery.start_soon(ask, faults.writing(), away())
        await trio.sleep(62)
        available = [faults.available]
        store.check = None
    assert [*available, faults.available] == [False, True]
    first, second = lines(caplog, "waiting for the store")
    assert (first["reason"], second["reason"]) == ("connection refused", "HTTP 503")
    assert str(first["if_it_lasts"]).startswith("see that the store runs and can be reached")
    assert str(second["if_it_lasts"]).startswith("see to the store's own log")
    assert trio.current_time() <= 62 + 5


async def test_what_changes_while_many_wait_is_told_soon_and_not_at_everybodys_second_turn(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = FakeStore(check=away())
    faults = faults_of(store)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask, faults.reading("data"), away())
        await trio.sleep(10)
        store.check = barred(bucket=OWN)
        await trio.sleep(2 * LONGEST_DELAY + 1)
        told = lines(caplog, "waiting for the store")
        store.check = None
    (_, line) = told
    assert line["reason"] == "denied"
    assert str(line["if_it_lasts"]).startswith("see to the keys")


async def test_the_next_question_is_asked_while_the_last_one_is_not_answered(
    autojump_clock: MockClock,
) -> None:
    """A store that has lost our request never answers it; another one, after its return, it does."""
    store = FakeStore()
    lost_until = trio.current_time() + 60

    async def check_bucket(bucket: str) -> None:
        store.asked.append(("check", bucket))
        if trio.current_time() < lost_until:
            await trio.sleep(1000)

    store.check_bucket = check_bucket  # type: ignore[method-assign]
    own, seconds = await ask(faults_of(store).reading("data"), away())
    assert not own
    assert 60 <= seconds <= 65


async def test_the_pause_that_a_store_asks_for_is_kept(autojump_clock: MockClock) -> None:
    for retry_after, seconds in ((7, 7), (9999, LONGEST_RETRY_AFTER)):
        trial = faults_of(FakeStore()).reading("data")
        assert await ask(trial, away("SlowDown", retry_after)) == (False, seconds)


async def test_a_certificate_that_is_renewed_before_our_own_bucket_is_asked_for_is_nobodys_fault(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    error = StoreRefused(
        "its certificate has expired", bucket="data", key="x", code="CertificateRefused"
    )
    trial = faults_of(FakeStore()).reading("data")
    assert await ask(trial, error) == (False, 0.5)
    trial.succeeded()
    assert not (await ask(trial, error))[0]
    assert lines(caplog, "waiting for the store")[0]["if_it_lasts"] == "see to the certificate"


@pytest.mark.parametrize("code", ACCESS_CODES)
async def test_a_refusal_of_access_waits(autojump_clock: MockClock, code: str) -> None:
    trial = faults_of(FakeStore()).reading("data")
    assert await ask(trial, barred(code)) == (False, 0.5)


async def test_a_refusal_of_access_condemns_an_object_only_if_others_of_its_bucket_are_read_between(
    autojump_clock: MockClock,
) -> None:
    faults = faults_of(FakeStore())
    other, elsewhere, written = faults.reading("data"), faults.reading("more"), faults.writing()

    def well() -> None:
        other.succeeded()

    def well_elsewhere() -> None:
        elsewhere.succeeded()
        written.succeeded()

    assert await ask_until_condemned(faults.reading("data"), barred, well) == REFUSALS_BELIEVED + 1
    assert await ask_until_condemned(faults.reading("data"), barred, well_elsewhere) == 200


async def test_a_refusal_in_passing_condemns_nothing(autojump_clock: MockClock) -> None:
    """A key that is revoked and restored while others are read, so that our own bucket is asked for just too late."""
    faults = faults_of(FakeStore())
    for _ in range(50):
        trial = faults.reading("data")
        await trio.sleep(0.01)
        faults.reading("data").succeeded()
        await trio.sleep(0.01)
        assert not (await ask(trial, barred()))[0]
        trial.succeeded()


@pytest.mark.parametrize(
    "code", ["AccessDenied", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded"]
)
async def test_what_our_own_bucket_does_not_take_waits_unless_it_takes_others(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    """A full store pours nothing into the dead letters; a result that the store alone refuses is refused."""
    faults = faults_of(FakeStore())
    other, read = faults.writing(), faults.reading("data")

    def full() -> StoreRefused:
        return barred(code, OWN)

    assert await ask_until_condemned(faults.writing(), full, read.succeeded) == 200
    assert len(lines(caplog, "waiting for the store")) <= 20
    assert await ask_until_condemned(faults.writing(), full, other.succeeded) <= 7


async def test_a_bucket_that_was_read_once_says_nothing_when_our_key_has_expired_since(
    autojump_clock: MockClock,
) -> None:
    store = FakeStore(check=StoreRefused("expired", bucket=OWN, code="ExpiredToken"))
    faults = faults_of(store)
    for _ in range(3 * REFUSALS_BELIEVED):
        store.check = StoreRefused("expired", bucket=OWN, code="ExpiredToken")
        other, trial = faults.reading("data"), faults.reading("data")
        await trio.sleep(0.01)
        other.succeeded()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(assert_not_at_fault, trial, barred())
            await trio.sleep(1)
            store.check = None


async def test_a_refusal_of_keys_that_are_no_longer_used_is_nobodys_fault(
    autojump_clock: MockClock,
) -> None:
    """Another fragment has been read with the new keys since, which proves nothing of this one."""
    faults = faults_of(FakeStore())
    error = barred()
    error.is_outdated = lambda: True
    trial, other = faults.reading("data"), faults.reading("data")
    for _ in range(3 * REFUSALS_BELIEVED):
        await trio.sleep(0.01)
        other.succeeded()
        await trio.sleep(0.01)
        assert await ask(trial, error) == (False, 0)


# -- our own bucket


async def test_our_own_bucket_is_made_again_when_it_vanished(autojump_clock: MockClock) -> None:
    store = FakeStore()
    faults = faults_of(store)
    trials = [faults.writing() for _ in range(20)]
    assert [await ask(trial, OWN_MISSING) for trial in trials] == [(False, 0)] * 20
    assert store.asked == [("ensure", OWN)] * 20


async def test_our_own_bucket_that_cannot_be_made_is_waited_for(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = FakeStore(ensure=StoreRefused("may not make it", bucket=OWN, code="AccessDenied"))
    assert await ask(faults_of(store).writing(), OWN_MISSING) == (False, 0.5)
    (line,) = lines(caplog, "waiting for the store")
    assert line["reason"] == "no such bucket; and it cannot be made: may not make it"


async def test_our_own_bucket_is_made_when_the_question_finds_it_missing(
    autojump_clock: MockClock,
) -> None:
    store = FakeStore(check=BucketMissing("no such bucket", bucket=OWN))
    assert await ask(faults_of(store).reading("data"), MISSING) == (True, 0)
    assert store.asked == [("check", OWN), ("ensure", OWN)]


async def test_a_store_that_says_made_and_missing_in_turn_is_not_asked_without_a_pause(
    autojump_clock: MockClock,
) -> None:
    trial = faults_of(FakeStore()).writing()
    start = trio.current_time()
    for _ in range(20):
        assert not await trial.is_at_fault(OWN_MISSING)
    assert trio.current_time() - start > 10


# -- failures


async def test_a_success_ends_the_wait(autojump_clock: MockClock) -> None:
    faults = faults_of(FakeStore(), timeout=5.0)
    for _ in range(5):
        trial = faults.reading("data")
        assert [await ask(trial, away()) for _ in range(2)] == [(False, 0.5), (False, 0.5)]
        trial.succeeded()
        await trio.sleep(60)


async def test_the_timeout_is_shared_by_every_way_of_waiting(autojump_clock: MockClock) -> None:
    faults = faults_of(FakeStore(check=away()), timeout=3.0)
    start = trio.current_time()
    await faults.wait(StoreUnavailable("connection refused", bucket=OWN))
    with pytest.raises(ServiceLost, match="gave up on the store after 3 s"):
        await faults.reading("data").is_at_fault(barred())
    assert trio.current_time() - start == pytest.approx(3)


async def test_one_object_that_fails_while_others_do_not_waits_by_itself(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    faults = faults_of(FakeStore())
    trial, other = faults.reading("data"), faults.reading("data")
    for _ in range(10):
        await trio.sleep(0.01)
        other.succeeded()
        await trio.sleep(0.01)
        own, seconds = await ask(trial, away("InternalError"))
        assert not own
        assert 0.04 <= seconds <= 4
        assert faults.available
    assert lines(caplog, "waiting for the store") == []


async def test_an_object_that_the_store_always_fails_at_is_told_of_and_condemned_in_the_end(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    faults = faults_of(FakeStore())
    other = faults.reading("data")

    def damaged() -> StoreUnavailable:
        return StoreUnavailable("damaged", bucket="data", key="x", code="ChecksumMismatch")

    start = trio.current_time()
    assert (
        await ask_until_condemned(faults.reading("data"), damaged, other.succeeded)
        == FAILURES_BELIEVED + 1
    )
    assert trio.current_time() - start > 60
    (line,) = lines(caplog, "the store fails at one object and not at others; asking on")
    assert line["reason"] == "damaged"
    assert line["failing_seconds"] in range(int(TELL_AFTER), int(TELL_AFTER) + 6)


async def test_a_store_that_is_away_for_all_condemns_nothing(autojump_clock: MockClock) -> None:
    faults = faults_of(FakeStore())
    for meanwhile in (lambda: None, faults.writing().succeeded, faults.reading("more").succeeded):
        assert await ask_until_condemned(faults.reading("data"), away, meanwhile) == 200


async def test_a_store_that_reads_and_does_not_write_is_not_asked_without_a_pause(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """All that write wait together, and what is read meanwhile wakes none of them."""
    faults = faults_of(FakeStore())
    tries = 0

    async def write() -> None:
        nonlocal tries
        trial = faults.writing()
        while True:
            tries += 1
            await trio.sleep(0.01)
            assert not await trial.is_at_fault(away("SlowDownWrite"))

    async def read() -> None:
        while True:
            trial = faults.reading("data")
            await trio.sleep(0.05)
            trial.succeeded()

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(write)
        nursery.start_soon(read)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    # Each finds out for itself that others are answered, and then they ask like one.
    assert 100 < tries <= 350
    assert len(lines(caplog, "waiting for the store")) <= 2
    assert not faults.available


async def test_what_has_gone_well_while_a_request_was_repeated_does_not_hide_that_the_store_is_away(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The store asked four times; the last time that it was asked, nobody was answered any more."""
    faults = faults_of(FakeStore())
    trial, other = faults.reading("data"), faults.reading("data")
    await trio.sleep(0.5)
    other.succeeded()
    await trio.sleep(0.5)
    error = away()
    error.asked_at = trio.current_time()
    await trial.is_at_fault(error)
    assert len(lines(caplog, "waiting for the store")) == 1
