"""Whoever fetches an object is told its size before the first byte of it, and may end the request by that."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.local.store import INPUT_BUCKET, LocalStore
from iterum_sidecar.stores.directory import DirectoryStore
from iterum_sidecar.stores.port import StoreUnavailable
from iterum_sidecar.stores.retries import RetryPolicy
from iterum_sidecar.stores.s3 import S3Store
from tests.unit.stores.contract import KIB, MIB, content_of, memory_file, put
from tests.unit.stores.scripted import LOCAL, Act, answer, error, scripted

if TYPE_CHECKING:
    from pathlib import Path

    from iterum_sidecar.stores.port import Store
    from tests.unit.stores.scripted import Answer, Scripted

BODY = b"the object's bytes"
QUICK = RetryPolicy(attempts=4, first=0.0, cap=0.0)
CHUNKED = (
    b'HTTP/1.1 200 OK\r\nETag: "x"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nthe o\r\n0\r\n\r\n'
)


class NoRoom(Exception):
    pass


def open_store(server: Scripted, connections: int = 32) -> S3Store:
    return S3Store(LOCAL, server.port, "access", "secret", retries=QUICK, connections=connections)


async def check_refusal(store: Store, bucket: str, key: str, size: int) -> None:
    """What `admit` raises is raised, once, with nothing written; then the object can be fetched."""
    told: list[int] = []

    def refuse(size: int) -> None:
        told.append(size)
        raise NoRoom

    with memory_file() as file:
        with pytest.raises(NoRoom):
            await store.fetch(bucket, key, file, admit=refuse)
        assert told == [size]
        assert content_of(file) == b""
        assert await store.fetch(bucket, key, file, admit=told.append) == size
        assert told == [size, size]
        assert len(content_of(file)) == size


@pytest.mark.parametrize("size", [0, 4, 300 * KIB])
async def test_a_server(size: int) -> None:
    async with scripted(answer(200, bytes(size))) as server, open_store(server) as store:
        await check_refusal(store, "bucket", "key", size)
        assert len(server.requests) == 2


@pytest.mark.parametrize("size", [0, 4, 2 * MIB])
async def test_a_directory(size: int, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    await store.ensure_bucket("bucket")
    await put(store, "bucket", "key", bytes(size))
    await check_refusal(store, "bucket", "key", size)


@pytest.mark.parametrize("bucket", [INPUT_BUCKET, "hash-iterum-config", "results"])
async def test_a_local_run(bucket: str, tmp_path: Path) -> None:
    """The input folder, the config files, and what its steps have made."""
    for folder in ("inputs", "config"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "key").write_bytes(BODY)
    found = os.stat(tmp_path / "inputs" / "key")
    store = LocalStore(
        objects=tmp_path / "objects",
        inputs=tmp_path / "inputs",
        input_stamp=lambda _: (found.st_size, found.st_mtime_ns),
        config_bucket="hash-iterum-config",
        config_folder=tmp_path / "config",
    )
    await store.ensure_bucket("results")
    await put(store, "results", "key", BODY)
    await check_refusal(store, bucket, "key", len(BODY))


async def test_nothing_stays_open_while_somebody_waits_for_room() -> None:
    """The only connection there may be is free for whoever makes room, and the body that nobody reads is on none."""
    large: Answer = [answer(200, bytes(64 * KIB), length=MIB), Act.SILENCE]
    async with (
        scripted(large, answer(200, BODY)) as server,
        open_store(server, connections=1) as store,
    ):

        def refuse(_: int) -> None:
            raise NoRoom

        with memory_file() as file:
            with pytest.raises(NoRoom):
                await store.fetch("bucket", "large", file, admit=refuse)
            assert (store._client.pool.busy, store._client.pool.idle) == (0, 0)
            with trio.fail_after(10):
                await store.put("bucket", "other", file, 0)
                assert await store.fetch("bucket", "small", file) == len(BODY)


async def test_it_is_told_again_when_the_object_is_begun_again() -> None:
    """Another object may have taken its place meanwhile."""
    told: list[int] = []
    short: Answer = [answer(200, BODY[:5], length=99), Act.CLOSE]
    async with (
        scripted(error(503, "SlowDown"), short, answer(200, BODY)) as server,
        open_store(server) as store,
    ):
        with memory_file() as file:
            await store.fetch("bucket", "key", file, admit=told.append)
    assert told == [99, len(BODY)]


async def test_a_size_that_the_server_does_not_tell_is_not_told() -> None:
    told: list[int] = []
    async with scripted(CHUNKED) as server, open_store(server) as store:
        with memory_file() as file:
            assert await store.fetch("bucket", "key", file, admit=told.append) == 5
    assert told == []


async def test_what_is_not_given_has_no_size() -> None:
    told: list[int] = []
    async with scripted(error(500, "InternalError")) as server, open_store(server) as store:
        with memory_file() as file, pytest.raises(StoreUnavailable):
            await store.fetch("bucket", "key", file, admit=told.append)
    assert told == []
