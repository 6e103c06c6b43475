"""What the S3 store makes of the answers that servers give, and do not give."""

from __future__ import annotations

import ast
import base64
import hashlib
import logging
import os
import socket
import time
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import pytest
import trio
import trio.testing

from iterum_sidecar.stores import multipart, signature
from iterum_sidecar.stores.multipart import part_size_for
from iterum_sidecar.stores.port import (
    BucketMissing,
    ObjectMissing,
    StoredObject,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from iterum_sidecar.stores.retries import RetryPolicy
from iterum_sidecar.stores.s3 import S3Store
from iterum_sidecar.stores.signature import Credentials
from iterum_sidecar.stores.transport import Deadlines
from tests.unit.stores.contract import KIB, MIB, content_of, fetch, memory_file, put
from tests.unit.stores.scripted import LOCAL, Act, answer, error, header, scripted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from iterum_sidecar.stores.client import Addressing
    from tests.unit.stores.scripted import Answer, Scripted

QUICK = RetryPolicy(attempts=4, first=0.0, cap=0.0)
BODY = b"the object's bytes"
ETAG = f'ETag: "{hashlib.md5(BODY).hexdigest()}"'
WRONG_ETAG = f'ETag: "{"0" * 32}"'
SECRET = "the secret key"
TOKEN = "the session token"


class Options(TypedDict, total=False):
    """Those of `S3Store`."""

    session_token: str
    region: str
    addressing: Addressing
    connections: int
    deadlines: Deadlines
    retries: RetryPolicy
    multipart_threshold: int
    part_size: int
    warn: Callable[[str], object]
    renew: Callable[[], Credentials]


def open_store(server: Scripted, **options: Unpack[Options]) -> S3Store:
    options.setdefault("retries", QUICK)
    return S3Store(LOCAL, server.port, "access", SECRET, **options)


@pytest.mark.parametrize(
    "trouble",
    [
        error(500, "InternalError"),
        error(503, "SlowDown"),
        error(400, "RequestTimeout"),
        error(409, "OperationAborted"),
        answer(502, b"<html>bad gateway</html>"),
        answer(429),
        [Act.CLOSE],
        [Act.RESET],
        [answer(200, BODY[:5], ETAG, length=len(BODY)), Act.CLOSE],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nthe o", Act.CLOSE],
        [b"HTTP/1.1 200 OK\r\n\r\nthe object's by", Act.CLOSE],
        b"garbage",
        answer(206, BODY),
        answer(204),
        answer(507, b"full"),
        answer(522),
        b"HTTP/1.1 200 OK\r\nContent-Length: 25\r\n\r\nWe will be back very soon",
        answer(200, BODY, "x-amz-checksum-crc32: AAAAAA=="),
    ],
    ids=lambda trouble: ascii(trouble)[:70],
)
async def test_a_fetch_is_begun_again(trouble: Answer) -> None:
    async with scripted(trouble, trouble, answer(200, BODY, ETAG)) as server:
        async with open_store(server) as store:
            assert await fetch(store, "bucket", "key") == BODY
        assert 2 <= len(server.requests) <= 3


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (error(500, "InternalError"), "InternalError"),
        (error(503, "SlowDown"), "SlowDown"),
        ([Act.CLOSE], "ConnectionLost"),
        ([answer(200, BODY[:5], length=99), Act.CLOSE], "ShortBody"),
        (b"garbage", "BadAnswer"),
        (answer(200, BODY, "x-amz-checksum-crc32: AAAAAA=="), "ChecksumMismatch"),
    ],
)
async def test_attempts_are_counted(trouble: Answer, code: str) -> None:
    async with scripted(trouble) as server:
        async with open_store(server) as store:
            with pytest.raises(StoreUnavailable) as caught:
                await fetch(store, "bucket", "some/key")
        assert len(server.requests) == 4
    failure = caught.value
    assert failure.retryable
    assert (failure.bucket, failure.key, failure.code) == ("bucket", "some/key", code)
    assert str(failure).startswith("get bucket/some/key: ")


@pytest.mark.parametrize(
    "silence", [[Act.SILENCE], [answer(200, BODY[:5], ETAG, length=len(BODY)), Act.SILENCE]]
)
async def test_silence_is_left_to_the_wait_for_the_whole_store(silence: Answer) -> None:
    """Whoever has heard nothing for so long would only be silent for four times as long."""
    deadlines = Deadlines(answer=0.05, progress=0.05)
    async with scripted(silence) as server:
        async with open_store(server, deadlines=deadlines) as store:
            before = trio.current_time()
            with pytest.raises(StoreUnavailable) as caught:
                await fetch(store, "bucket", "key")
        assert len(server.requests) == 1
    assert caught.value.code == "Timeout"
    assert caught.value.asked_at is not None
    assert before <= caught.value.asked_at <= trio.current_time() - 0.05


async def test_a_store_that_is_slow_for_one_object_gets_more_time_for_that_one() -> None:
    """An answer is waited for twice as long after each time that none came, up to eight times; then all begins anew."""
    slow: list[Answer] = [[Act.SILENCE]] * 5
    async with (
        scripted(*slow, answer(200, BODY, ETAG), [Act.SILENCE]) as server,
        open_store(server, deadlines=Deadlines(answer=0.05)) as store,
    ):
        told = []
        for _ in range(5):
            with pytest.raises(StoreUnavailable) as caught:
                await fetch(store, "bucket", "key")
            told.append(str(caught.value).rpartition("no answer within ")[2])
        assert told == ["0.05 s", "0.1 s", "0.2 s", "0.4 s", "0.4 s"]
        assert await fetch(store, "bucket", "key") == BODY
        with pytest.raises(StoreUnavailable, match=r"no answer within 0\.05 s"):
            await fetch(store, "bucket", "key")


async def test_a_store_may_take_the_longer_for_its_answer_the_more_it_has_been_given() -> None:
    async with (
        scripted([Act.SILENCE]) as server,
        open_store(server, deadlines=Deadlines(answer=0.05)) as store,
    ):
        for key, size in (("large", 512 * KIB), ("small", 1)):
            seconds = 0.05 + size / MIB
            with pytest.raises(StoreUnavailable, match=rf"no answer within {seconds:.3g} s"):
                await put(store, "bucket", key, bytes(size))


async def test_kept_connections_are_not_used_any_more_when_one_keeps_silent() -> None:
    """What is between us and the store may have forgotten them all."""
    good = answer(200, BODY, ETAG)
    async with scripted(good, good, [Act.SILENCE], good) as server:
        async with open_store(server, deadlines=Deadlines(answer=0.3)) as store:
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(fetch, store, "bucket", "key")
            with pytest.raises(StoreUnavailable):
                await fetch(store, "bucket", "key")
            connections = server.connections
            assert await fetch(store, "bucket", "key") == BODY
        assert server.connections == connections + 1


async def test_why_nothing_can_be_connected_to_is_told() -> None:
    with socket.socket() as nobody:
        nobody.bind((LOCAL, 0))
        store = S3Store(LOCAL, nobody.getsockname()[1], "access", SECRET, retries=QUICK)
        async with store:
            with pytest.raises(StoreUnavailable) as caught:
                await store.check_bucket("bucket")
        where = f"{LOCAL}:{nobody.getsockname()[1]}"
    assert str(caught.value) == f"check bucket bucket: {where}: Connection refused"


async def test_a_host_that_can_be_none_is_waited_for_like_any_other() -> None:
    async with S3Store(f"{'a' * 64}.example", 80, "access", SECRET, retries=QUICK) as store:
        with pytest.raises(StoreUnavailable, match="that is no host's name"):
            await store.check_bucket("bucket")


async def test_what_says_that_it_stored_an_object_and_is_no_store_is_not_believed() -> None:
    """A page about maintenance, for one, with a status of 200: the object would be lost."""
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsoon"
    async with scripted(page, answer(200)) as server, open_store(server) as store:
        await put(store, "bucket", "key", BODY)
        assert len(server.requests) == 2
    async with scripted(page) as server, open_store(server) as store:
        with pytest.raises(StoreUnavailable, match="without an ETag, so it is not of an S3 store"):
            await put(store, "bucket", "key", BODY)


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (error(404, "NoSuchKey"), ObjectMissing),
        (error(404, "NoSuchBucket"), BucketMissing),
        (error(403, "AccessDenied"), StoreRefused),
        (error(403, "InvalidAccessKeyId"), StoreRefused),
        (error(400, "ExpiredToken"), StoreRefused),
        (error(301, "PermanentRedirect", "x-amz-bucket-region: eu-west-3"), StoreRefused),
        (error(501, "NotImplemented"), StoreRefused),
    ],
)
async def test_what_may_not_be_retried_is_not(refusal: bytes, kind: type[StoreError]) -> None:
    async with scripted(refusal) as server, open_store(server) as store:
        requests: list[Callable[[], Awaitable[object]]] = [
            lambda: fetch(store, "bucket", "key"),
            lambda: put(store, "bucket", "key", b"x"),
            lambda: store.list_objects("bucket"),
        ]
        for count, ask in enumerate(requests, start=1):
            with pytest.raises(kind) as caught:
                await ask()
            assert not caught.value.retryable
            assert len(server.requests) == count


async def test_the_pause_that_a_server_asks_for(autojump_clock: trio.testing.MockClock) -> None:
    # The clock must not jump while an answer is on its way through the kernel.
    autojump_clock.autojump_threshold = 0.05
    busy = error(503, "SlowDown", "Retry-After: 2")
    policy = RetryPolicy(attempts=3, first=0.5, cap=3.0, draw=lambda: 0.0)
    async with (
        scripted(busy, busy, answer(200, BODY)) as server,
        open_store(server, retries=policy) as store,
    ):
        start = trio.current_time()
        await fetch(store, "bucket", "key")
        assert trio.current_time() - start == pytest.approx(4.0)


async def test_a_clock_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    hours_later = formatdate(time.time() + 7200, usegmt=True)
    skewed = error(403, "RequestTimeTooSkewed", f"Date: {hours_later}")
    async with scripted(skewed, answer(200, BODY), skewed) as server:
        async with open_store(server) as store:
            await fetch(store, "bucket", "key")
            dates = [header(request, "x-amz-date") for request in server.requests]
            assert dates[0] != dates[1]
            with pytest.raises(StoreRefused) as caught:
                await fetch(store, "bucket", "key")
        assert caught.value.code == "RequestTimeTooSkewed"
        assert len(server.requests) == 4


class TestEtags:
    async def test_damage_is_repaired_without_another_attempt(self) -> None:
        damaged = answer(200, b"the object's bytez", ETAG)
        async with scripted(damaged, answer(200, BODY, ETAG)) as server:
            async with open_store(server, retries=RetryPolicy(attempts=1)) as store:
                assert await fetch(store, "bucket", "key") == BODY
            assert len(server.requests) == 2

    async def test_damage_that_is_new_each_time(self) -> None:
        script = [answer(200, os.urandom(18), ETAG) for _ in range(20)]
        async with scripted(*script) as server, open_store(server) as store:
            with pytest.raises(StoreUnavailable) as caught:
                await fetch(store, "bucket", "key")
        assert caught.value.code == "ChecksumMismatch"

    async def test_where_etags_have_agreed_one_that_does_not_means_damage(self) -> None:
        """Kept damaged, it comes alike each time: it is never handed on, and the others are compared as before."""
        told: list[str] = []
        damaged = answer(200, b"the object's bytez", ETAG)
        async with (
            scripted(answer(200, BODY, ETAG), damaged) as server,
            open_store(server, warn=told.append) as store,
        ):
            assert await fetch(store, "bucket", "key") == BODY
            with pytest.raises(StoreUnavailable) as caught:
                await fetch(store, "bucket", "other")
        assert caught.value.code == "ChecksumMismatch"
        assert told == []

    async def test_an_etag_that_is_no_md5_is_told_once(self) -> None:
        told: list[str] = []
        async with (
            scripted(answer(200, BODY, WRONG_ETAG)) as server,
            open_store(server, warn=told.append) as store,
        ):
            assert await fetch(store, "bucket", "key") == BODY
            assert len(server.requests) == 2
            assert await fetch(store, "bucket", "other") == BODY
            assert len(server.requests) == 3
        assert len(told) == 1
        assert "bucket/key" in told[0]

    async def test_it_is_logged_by_default(self, caplog: pytest.LogCaptureFixture) -> None:
        async with scripted(answer(200, BODY, WRONG_ETAG)) as server, open_store(server) as store:
            await fetch(store, "bucket", "key")
        assert [(r.name, r.levelno) for r in caplog.records] == [
            ("iterum_sidecar.stores", logging.WARNING)
        ]

    async def test_a_better_checksum_wins(self) -> None:
        digest = "x-amz-checksum-sha256: " + sha256_header(BODY)
        async with scripted(answer(200, BODY, WRONG_ETAG, digest)) as server:
            async with open_store(server) as store:
                assert await fetch(store, "bucket", "key") == BODY
            assert len(server.requests) == 1


def sha256_header(body: bytes) -> str:
    return base64.b64encode(hashlib.sha256(body).digest()).decode()


async def test_a_retry_leaves_nothing_of_the_first_copy() -> None:
    long = answer(200, bytes(600 * KIB), length=MIB)
    async with (
        scripted([long, Act.CLOSE], answer(200, BODY, ETAG)) as server,
        open_store(server) as store,
    ):
        with memory_file() as file:
            assert await store.fetch("bucket", "key", file) == len(BODY)
            assert content_of(file) == BODY


async def test_a_full_disk_is_not_retried() -> None:
    async with scripted(answer(200, BODY)) as server, open_store(server) as store:
        full = os.open("/dev/full", os.O_WRONLY)
        with pytest.raises(OSError, match="No space left"):
            await store.fetch("bucket", "key", full)
        os.close(full)
        assert len(server.requests) == 1
        assert store._client.pool.idle == 0


async def test_what_a_request_says() -> None:
    async with (
        scripted(answer(200, BODY)) as server,
        open_store(server, session_token=TOKEN, region="eu-west-3") as store,
    ):
        await fetch(store, "bucket", "a b/ü")
        await put(store, "bucket", "a b/ü", BODY)
    get, sent = server.requests
    assert get.startswith(b"GET /bucket/a%20b/%C3%BC HTTP/1.1\r\n")
    assert header(get, "host") == f"{LOCAL}:{server.port}"
    assert header(get, "x-amz-checksum-mode") == "ENABLED"
    assert header(get, "x-amz-security-token") == TOKEN
    assert header(get, "content-length") is None
    assert sent.startswith(b"PUT /bucket/a%20b/%C3%BC HTTP/1.1\r\n")
    assert header(sent, "x-amz-content-sha256") == hashlib.sha256(BODY).hexdigest()
    assert header(sent, "content-length") == str(len(BODY))
    assert "/eu-west-3/s3/" in (header(sent, "authorization") or "")
    assert server.bodies == [b"", BODY]


async def test_virtual_hosts() -> None:
    async with scripted(answer(200, BODY)) as server:
        async with open_store(server, addressing="virtual") as store:
            await fetch(store, "one", "key")
            await store.check_bucket("two")
        assert server.connections == 1
    get, head = server.requests
    assert get.startswith(b"GET /key HTTP/1.1\r\n")
    assert header(get, "host") == f"one.{LOCAL}:{server.port}"
    assert head.startswith(b"HEAD / HTTP/1.1\r\n")
    assert header(head, "host") == f"two.{LOCAL}:{server.port}"


@pytest.mark.parametrize("addressing", ["path", "virtual"])
@pytest.mark.parametrize("bucket", ["", ".", "..", "a/b", "a b", "a\r\nb", "a?b", "é", "a@evil"])
async def test_names_that_are_no_buckets(addressing: Addressing, bucket: str) -> None:
    async with scripted(answer(200)) as server:
        async with open_store(server, addressing=addressing) as store:
            with pytest.raises(StoreRefused) as caught:
                await store.check_bucket(bucket)
            assert caught.value.code == "InvalidBucketName"
            for ask in (store.head_object, store.delete_object):
                with pytest.raises(StoreRefused):
                    await ask("bucket", "")
        assert server.requests == []


async def test_many_buckets_do_not_fill_the_memory() -> None:
    async with scripted(answer(200)) as server, open_store(server) as store:
        for number in range(600):
            store._client._address(f"bucket-{number}", "key")
        assert len(store._client._buckets) <= 512


class TestBuckets:
    async def test_one_that_is_there(self) -> None:
        async with scripted(answer(200)) as server, open_store(server) as store:
            await store.ensure_bucket("bucket")
            assert server.request_lines() == ["HEAD /bucket HTTP/1.1"]

    @pytest.mark.parametrize("region", ["us-east-1", "eu-west-3"])
    async def test_one_that_is_missing(self, region: str) -> None:
        async with (
            scripted(answer(404, length=300), answer(200)) as server,
            open_store(server, region=region) as store,
        ):
            await store.ensure_bucket("bucket")
        assert server.request_lines() == ["HEAD /bucket HTTP/1.1", "PUT /bucket HTTP/1.1"]
        constraint = b"<LocationConstraint>eu-west-3</LocationConstraint>"
        assert (constraint in server.bodies[1]) is (region != "us-east-1")

    async def test_another_was_quicker(self) -> None:
        script = [answer(404), error(409, "BucketAlreadyOwnedByYou")]
        async with scripted(*script) as server, open_store(server) as store:
            await store.ensure_bucket("bucket")

    async def test_anothers_that_we_may_use(self) -> None:
        script = [answer(404), error(409, "BucketAlreadyExists"), answer(200)]
        async with scripted(*script) as server, open_store(server) as store:
            await store.ensure_bucket("bucket")

    async def test_anothers_that_we_may_not_use(self) -> None:
        script = [answer(404), error(409, "BucketAlreadyExists"), answer(403)]
        async with scripted(*script) as server, open_store(server) as store:
            with pytest.raises(StoreRefused) as caught:
                await store.ensure_bucket("bucket")
        assert caught.value.code == "BucketAlreadyExists"

    @pytest.mark.parametrize(
        ("status", "kind"), [(404, BucketMissing), (403, StoreRefused), (503, StoreUnavailable)]
    )
    async def test_checks(self, status: int, kind: type[StoreError]) -> None:
        async with scripted(answer(status, length=200)) as server, open_store(server) as store:
            with pytest.raises(kind):
                await store.check_bucket("bucket")

    async def test_a_refused_creation(self) -> None:
        script = [answer(404), error(403, "AccessDenied")]
        async with scripted(*script) as server, open_store(server) as store:
            with pytest.raises(StoreRefused):
                await store.ensure_bucket("bucket")


class TestListing:
    async def test_pages(self) -> None:
        page = "<R><Contents><Key>{}</Key><Size>1</Size></Contents>{}</R>"
        more = "<IsTruncated>true</IsTruncated><NextContinuationToken>a/b</NextContinuationToken>"
        script = [
            answer(200, page.format("a", more).encode()),
            answer(200, page.format("b", "").encode()),
        ]
        async with scripted(*script) as server, open_store(server) as store:
            found = await store.list_objects("bucket", "p/ö", page_size=1)
        assert found == [StoredObject("a", 1), StoredObject("b", 1)]
        query = "encoding-type=url&list-type=2&max-keys=1&prefix=p%2F%C3%B6"
        token = "continuation-token=a%2Fb&"
        assert server.request_lines() == [
            f"GET /bucket?{query} HTTP/1.1",
            f"GET /bucket?{token}{query} HTTP/1.1",
        ]

    @pytest.mark.parametrize(
        "body",
        [
            b"<R><IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken></R>",
            b"<html>",
        ],
    )
    async def test_nonsense(self, body: bytes) -> None:
        async with scripted(answer(200, body)) as server, open_store(server) as store:
            with pytest.raises(StoreUnavailable) as caught:
                await store.list_objects("bucket")
        assert caught.value.code == "BadAnswer"


BEGUN = answer(200, b"<R><UploadId>the/id</UploadId></R>")
PART = answer(200, b"", 'ETag: "p"')
DONE = answer(200, b"<CompleteMultipartUploadResult/>")


class TestMultipart:
    async def upload(self, server: Scripted, size: int = 11 * MIB) -> bytes:
        content = os.urandom(size)
        five = 5 * MIB
        async with open_store(server, multipart_threshold=five, part_size=five) as store:
            await put(store, "bucket", "key", content)
        return content

    async def test_parts(self) -> None:
        async with scripted(BEGUN, PART, PART, PART, b"\r\n".join([DONE])) as server:
            content = await self.upload(server)
        assert server.request_lines() == [
            "POST /bucket/key?uploads= HTTP/1.1",
            "PUT /bucket/key?partNumber=1&uploadId=the%2Fid HTTP/1.1",
            "PUT /bucket/key?partNumber=2&uploadId=the%2Fid HTTP/1.1",
            "PUT /bucket/key?partNumber=3&uploadId=the%2Fid HTTP/1.1",
            "POST /bucket/key?uploadId=the%2Fid HTTP/1.1",
        ]
        assert b"".join(server.bodies[1:4]) == content
        assert b'<Part><PartNumber>3</PartNumber><ETag>"p"</ETag></Part>' in server.bodies[4]

    async def test_a_part_is_retried_alone(self) -> None:
        async with scripted(BEGUN, PART, error(500, "InternalError"), PART, PART, DONE) as server:
            await self.upload(server)
        assert [("partNumber=2" in line) for line in server.request_lines()].count(True) == 2

    @pytest.mark.parametrize(
        ("script", "kind"),
        [
            ([BEGUN, error(403, "AccessDenied"), answer(204)], StoreRefused),
            ([BEGUN, PART, error(404, "NoSuchUpload"), answer(204)], StoreUnavailable),
            (
                [BEGUN, PART, PART, PART, error(200, "InvalidPart"), error(500, "X")],
                StoreUnavailable,
            ),
            ([BEGUN, PART, PART, PART, error(400, "InvalidPart"), [Act.CLOSE]], StoreRefused),
        ],
    )
    async def test_a_failure_aborts(self, script: list[Answer], kind: type[StoreError]) -> None:
        async with scripted(*script) as server:
            with pytest.raises(kind):
                await self.upload(server)
        assert server.request_lines()[-1] == "DELETE /bucket/key?uploadId=the%2Fid HTTP/1.1"

    async def test_an_error_that_comes_with_200_is_retried(self) -> None:
        late = error(200, "InternalError")
        async with scripted(BEGUN, PART, PART, PART, late, DONE) as server:
            await self.upload(server)
        assert len(server.requests) == 6

    async def test_cancellation_aborts(self) -> None:
        async with (
            scripted(BEGUN, [Act.SILENCE], answer(204)) as server,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self.upload, server)
            await server.until_requests(2)
            nursery.cancel_scope.cancel()
            await server.until_requests(3)
        assert server.request_lines()[-1] == "DELETE /bucket/key?uploadId=the%2Fid HTTP/1.1"

    async def test_an_abort_has_a_deadline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(multipart, "ABORT_SECONDS", 0.1)
        async with scripted(BEGUN, error(403, "AccessDenied"), [Act.SILENCE]) as server:
            with pytest.raises(StoreRefused):
                await self.upload(server)

    async def test_an_answer_without_an_id(self) -> None:
        async with scripted(answer(200, b"<R/>")) as server:
            with pytest.raises(StoreUnavailable):
                await self.upload(server)

    def test_no_more_parts_than_s3_takes(self) -> None:
        for size in (1, 5 * MIB, 10_000 * 5 * MIB, 10_000 * 5 * MIB + 1, 5 * 2**40):
            step = part_size_for(size, 5 * MIB)
            assert step >= 5 * MIB
            assert -(-size // step) <= 10_000

    def test_parts_that_s3_does_not_take(self) -> None:
        with pytest.raises(ValueError, match="5242880"):
            S3Store(LOCAL, 1, "access", SECRET, part_size=1 * MIB)


async def test_a_missing_length() -> None:
    async with scripted(b"HTTP/1.1 200 OK\r\n\r\n") as server, open_store(server) as store:
        with pytest.raises(StoreUnavailable):
            await store.head_object("bucket", "key")


async def test_cancellation_in_the_middle_of_a_body() -> None:
    half = answer(200, BODY, length=1000)
    async with (
        scripted([half, Act.SILENCE], answer(200, BODY, ETAG)) as server,
        open_store(server, connections=1) as store,
    ):
        with trio.move_on_after(0.1) as scope:
            await fetch(store, "bucket", "key")
        assert scope.cancelled_caught
        assert (store._client.pool.busy, store._client.pool.idle) == (0, 0)
        assert await fetch(store, "bucket", "key") == BODY


async def test_credentials_can_be_changed() -> None:
    async with (
        scripted(error(403, "InvalidAccessKeyId"), answer(200, BODY)) as server,
        open_store(server) as store,
    ):
        with pytest.raises(StoreRefused):
            await fetch(store, "bucket", "key")
        store.use_credentials("another", "secret", TOKEN)
        await fetch(store, "bucket", "key")
    assert "Credential=another/" in (header(server.requests[1], "authorization") or "")


REFUSAL = error(403, "InvalidAccessKeyId")


class Renewals:
    """Credentials one after the other, as they are asked for; the last one serves for all that follow."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.asked = 0

    def __call__(self) -> Credentials:
        self.asked += 1
        return Credentials(self.names.pop(0) if len(self.names) > 1 else self.names[0], SECRET)


def signed_by(server: Scripted) -> list[str]:
    """The access key of each request."""
    found = (header(request, "authorization") or "" for request in server.requests)
    return [text.partition("Credential=")[2].partition("/")[0] for text in found]


@pytest.mark.parametrize(
    "refusal",
    [
        REFUSAL,
        error(403, "SignatureDoesNotMatch"),
        error(400, "ExpiredToken"),
        error(403, "AccessDenied"),
        answer(403),
        answer(401),
    ],
    ids=lambda refusal: ascii(refusal)[:40],
)
async def test_refused_credentials_are_renewed_and_tried_at_once(refusal: Answer) -> None:
    renew = Renewals("another")
    async with (
        scripted(refusal, answer(200, BODY), answer(200, BODY)) as server,
        open_store(server, renew=renew) as store,
    ):
        assert await fetch(store, "bucket", "key") == BODY
        await fetch(store, "bucket", "key")
    assert signed_by(server) == ["access", "another", "another"]
    assert renew.asked == 1


async def test_credentials_that_are_the_same_are_not_tried_again() -> None:
    renew = Renewals("access")
    async with scripted(REFUSAL) as server, open_store(server, renew=renew) as store:
        with pytest.raises(StoreRefused) as caught:
            await fetch(store, "bucket", "key")
    assert (len(server.requests), renew.asked) == (1, 1)
    assert not caught.value.is_outdated()


async def test_a_pair_that_was_read_in_the_middle_of_a_change_is_renewed_again() -> None:
    async with (
        scripted(REFUSAL, error(403, "SignatureDoesNotMatch"), answer(200, BODY)) as server,
        open_store(server, renew=Renewals("mixed", "another")) as store,
    ):
        assert await fetch(store, "bucket", "key") == BODY
    assert signed_by(server) == ["access", "mixed", "another"]


async def test_credentials_that_change_for_ever_are_not_tried_for_ever() -> None:
    renew = Renewals(*(f"key-{number}" for number in range(100)))
    async with scripted(REFUSAL) as server, open_store(server, renew=renew) as store:
        with pytest.raises(StoreRefused) as caught:
            await fetch(store, "bucket", "key")
    assert len(server.requests) == 4
    assert caught.value.is_outdated()


async def test_of_many_that_are_refused_together_one_renews() -> None:
    renew = Renewals("another")
    refusals: list[Answer] = [[Act.GATE, REFUSAL] for _ in range(8)]
    async with (
        scripted(*refusals, answer(200, BODY)) as server,
        open_store(server, renew=renew, connections=8) as store,
        trio.open_nursery() as nursery,
    ):
        for _ in range(8):
            nursery.start_soon(fetch, store, "bucket", "key")
        while len(server.requests) < 8:
            await trio.testing.wait_all_tasks_blocked()
        server.gate.set()
    assert renew.asked == 1
    assert sorted(signed_by(server)) == ["access"] * 8 + ["another"] * 8


async def test_a_refusal_of_credentials_that_are_no_longer_used_is_outdated() -> None:
    async with scripted(REFUSAL, answer(200)) as server, open_store(server) as store:
        with pytest.raises(StoreRefused) as caught:
            await store.check_bucket("bucket")
        assert not caught.value.is_outdated()
        store.use_credentials("access", SECRET)
        assert not caught.value.is_outdated()
        store.use_credentials("another", SECRET)
        assert caught.value.is_outdated()


async def test_secrets_are_nowhere_to_be_seen() -> None:
    async with scripted(error(403, "SignatureDoesNotMatch")) as server:
        async with open_store(server, session_token=TOKEN) as store:
            shown = [repr(store), repr(store._client), repr(store._client.pool)]
            with pytest.raises(StoreRefused) as caught:
                await fetch(store, "bucket", "key")
        shown += [str(caught.value), repr(caught.value)]
    for text in shown:
        assert SECRET not in text
        assert TOKEN not in text


def test_an_unknown_kind_of_addressing() -> None:
    with pytest.raises(ValueError, match="addressing"):
        S3Store(LOCAL, 1, "access", SECRET, addressing="dns")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [("::1", 9000, "[::1]:9000"), ("minio", 80, "minio"), ("minio", 443, "minio:443")],
)
def test_host_headers(host: str, port: int, expected: str) -> None:
    store = S3Store(host, port, "access", SECRET)
    assert store._client._address("bucket", "key") == (expected, "/bucket/key")


def test_the_import_is_cheap() -> None:
    """`xml`, `email` and `urllib.parse` are for listings and failures; ours do not bring them in."""
    directory = Path(signature.__file__).parent
    for path in directory.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [n.name for n in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert name.partition(".")[0] not in ("xml", "email", "urllib", "http", "pathlib")
