"""The S3 client against servers that differ in kind, with boto3 as the independent observer."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.stores import multipart
from iterum_sidecar.stores.multipart import LEAST_PART
from iterum_sidecar.stores.port import (
    ObjectMissing,
    StoredObject,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from iterum_sidecar.stores.retries import RetryPolicy
from iterum_sidecar.stores.s3 import S3Store
from tests.unit.stores.contract import (
    KIB,
    MIB,
    PLAIN_NAMES,
    StoreContract,
    fetch,
    memory_file,
    put,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from iterum_sidecar.stores.client import Client
    from testbed.object_stores import ObjectStore
    from testbed.tls import Tls

SERVERS = ["rclone", "rclone_tls", "moto", "minio"]


def open_store(
    server: ObjectStore,
    *,
    secret_key: str | None = None,
    access_key: str | None = None,
    connections: int = 8,
    part_size: int = LEAST_PART,
    multipart_threshold: int = 64 * MIB,
) -> S3Store:
    host, _, port = server.endpoint.rpartition(":")
    context = None
    if server.tls is not None:
        context = ssl.create_default_context(cafile=str(server.tls.authority))
    return S3Store(
        host,
        int(port),
        access_key or server.access_key,
        secret_key or server.secret_key,
        ssl_context=context,
        connections=connections,
        multipart_threshold=multipart_threshold,
        part_size=part_size,
    )


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ObjectStore:
    found: ObjectStore = request.getfixturevalue(request.param)
    return found


@pytest.fixture
async def store(server: ObjectStore, bucket: str) -> AsyncIterator[S3Store]:
    async with open_store(server) as store:
        await store.ensure_bucket(bucket)
        yield store


class TestS3(StoreContract):
    pass


@pytest.mark.parametrize("size", [5 * MIB + 1, 10 * MIB, 16 * MIB + 7])
async def test_an_object_in_parts(server: ObjectStore, bucket: str, size: int) -> None:
    content = os.urandom(size)
    key = "parts/über + 1%"
    async with open_store(server, multipart_threshold=5 * MIB) as store:
        await store.ensure_bucket(bucket)
        await put(store, bucket, key, content)
        assert await fetch(store, bucket, key) == content
    seen = await trio.to_thread.run_sync(
        lambda: server.client().get_object(Bucket=bucket, Key=key)["Body"].read()
    )
    assert seen == content


async def test_a_cancelled_upload_leaves_no_parts(
    server: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_part = multipart._send_part
    scope = trio.CancelScope()

    async def send_part_and_cancel(
        client: Client, bucket: str, key: str, query: str, file: int, offset: int, size: int
    ) -> str:
        etag = await send_part(client, bucket, key, query, file, offset, size)
        scope.cancel()
        return etag

    monkeypatch.setattr(multipart, "_send_part", send_part_and_cancel)
    async with open_store(server, multipart_threshold=5 * MIB) as store:
        await store.ensure_bucket(bucket)
        with memory_file(bytes(16 * MIB)) as file, scope:
            await store.put(bucket, "object", file, 16 * MIB)
        assert scope.cancelled_caught
        with pytest.raises(ObjectMissing):
            await store.head_object(bucket, "object")
    uploads = await trio.to_thread.run_sync(
        lambda: server.client().list_multipart_uploads(Bucket=bucket)
    )
    assert uploads.get("Uploads", []) == []


# moto's server does not look at signatures.
@pytest.mark.parametrize("server", ["rclone", "minio"], indirect=True)
async def test_a_wrong_secret(server: ObjectStore, store: S3Store, bucket: str) -> None:
    wrong = "not the secret"
    async with open_store(server, secret_key=wrong) as stranger:
        for ask in (
            lambda: fetch(stranger, bucket, "object"),
            lambda: put(stranger, bucket, "object", b"content"),
            lambda: put(stranger, bucket, "object", bytes(2 * MIB)),
            lambda: stranger.list_objects(bucket),
        ):
            with pytest.raises(StoreRefused) as caught:
                await ask()
            assert caught.value.code == "SignatureDoesNotMatch"
            assert wrong not in str(caught.value)
        with pytest.raises(StoreRefused):
            await stranger.check_bucket(bucket)
        # The secret has been rotated: the same store goes on with the new one.
        stranger.use_credentials(server.access_key, server.secret_key)
        await stranger.check_bucket(bucket)


@pytest.mark.parametrize("key", PLAIN_NAMES, ids=ascii)
async def test_boto3_reads_what_we_put_and_the_reverse(
    server: ObjectStore, store: S3Store, bucket: str, key: str
) -> None:
    ours, theirs = os.urandom(300), os.urandom(3000)

    def observe() -> bytes:
        client = server.client()
        body: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        client.put_object(Bucket=bucket, Key=key, Body=theirs)
        return body

    await put(store, bucket, key, ours)
    assert await trio.to_thread.run_sync(observe) == ours
    assert await fetch(store, bucket, key) == theirs
    assert await store.list_objects(bucket) == [StoredObject(key, 3000)]


# Names that S3 allows and that not every server can keep. MinIO's code refuses what a file system would
# read as a path, rclone serves a file system and reads it so: what is told here is that such names
# come back whole or are refused, and that nothing is stored outside of the bucket.
ODD_NAMES = [
    "a//b",
    "/leading",
    "a/../b",
    "a/./b",
    "../../outside",
    "trailing/",
    "\x01control",
    "a" * 1100,
]


@pytest.mark.parametrize("key", ODD_NAMES, ids=ascii)
async def test_odd_names_come_back_or_are_refused(
    server: ObjectStore, store: S3Store, bucket: str, key: str
) -> None:
    content = os.urandom(100)
    refusal: StoreError | None = None
    try:
        await put(store, bucket, key, content)
        assert await fetch(store, bucket, key) == content
    except (StoreRefused, ObjectMissing) as error:
        refusal = error
    if refusal is not None:
        assert refusal.code
        assert refusal.key == key
    await store.check_bucket(bucket)
    if server.directory is not None:
        assert "outside" not in os.listdir(server.directory.parent)


async def test_few_connections_carry_many_requests(server: ObjectStore, bucket: str) -> None:
    async with open_store(server, connections=8) as store:
        await store.ensure_bucket(bucket)

        async def round_trip(number: int) -> None:
            content = os.urandom(KIB * number)
            await put(store, bucket, f"object-{number}", content)
            assert await fetch(store, bucket, f"object-{number}") == content

        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(round_trip, number)


async def test_nobody_listens(rclone: ObjectStore) -> None:
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        store = S3Store("127.0.0.1", port, "k", "s", retries=RetryPolicy(attempts=2, first=0.01))
        async with store:
            with pytest.raises(StoreUnavailable) as caught:
                await store.check_bucket("bucket")
    assert caught.value.code == "ConnectFailed"


async def test_a_certificate_of_an_unknown_authority(rclone_tls: ObjectStore) -> None:
    host, _, port = rclone_tls.endpoint.rpartition(":")
    context = ssl.create_default_context()
    async with S3Store(host, int(port), "k", "s", ssl_context=context) as store:
        with pytest.raises(StoreRefused) as caught:
            await store.check_bucket("bucket")
    assert caught.value.code == "CertificateRefused"


async def test_tls_to_a_server_that_has_none(rclone: ObjectStore, tls: Tls) -> None:
    host, _, port = rclone.endpoint.rpartition(":")
    store = S3Store(
        host,
        int(port),
        "k",
        "s",
        ssl_context=ssl.create_default_context(cafile=str(tls.authority)),
        retries=RetryPolicy(attempts=1),
    )
    async with store:
        with pytest.raises(StoreError) as caught:
            await store.check_bucket("bucket")
    assert caught.value.code == "ConnectFailed"
