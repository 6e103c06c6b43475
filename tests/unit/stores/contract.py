"""What every store keeps, whichever it is: one set of tests for the directory and for real servers."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
import trio

from iterum_sidecar.stores.port import (
    BucketMissing,
    ObjectMissing,
    Store,
    StoredObject,
    StoreError,
    StoreRefused,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMORY = Path("/dev/shm")
KIB = 1024
MIB = 1024 * KIB

# Names that a step may well give to a file, and that each server must give back unchanged.
PLAIN_NAMES = [
    "cat.jpg",
    "iterum_data/0123/cat.jpg",
    "with a blank",
    " blanks at both ends ",
    "a+b",
    "100%",
    "%41",
    "a%2Fb",
    "über/猫/🐈.png",
    "e\u0301 is not \u00e9",
    "quote'quote",
    'double"double',
    "semi;colon&amp=?#",
    "<tag>&amp;</tag>",
    "(bracket) [square] {curly}",
    "back\\slash",
    "~tilde-dash_under.dot",
    "$dollar@at:colon,comma!*",
    "..hidden",
    "a" * 255,
    "/".join(["deep" * 10] * 12),
]


class FullStore(Store, Protocol):
    """A store with the extras that ours have beyond the port."""

    async def head_object(self, bucket: str, key: str) -> int: ...
    async def delete_object(self, bucket: str, key: str) -> None: ...
    async def list_objects(
        self, bucket: str, prefix: str = "", *, page_size: int = 1000
    ) -> list[StoredObject]: ...


@contextmanager
def memory_file(content: bytes = b"") -> Iterator[int]:
    """A descriptor of a nameless file that holds `content`, at its beginning."""
    directory = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        os.pwrite(file.fileno(), content, 0)
        yield file.fileno()


def content_of(file: int) -> bytes:
    """All bytes of a descriptor's file, from its beginning."""
    return os.pread(file, os.fstat(file).st_size + 1, 0)


async def put(store: Store, bucket: str, key: str, content: bytes) -> None:
    with memory_file(content) as file:
        await store.put(bucket, key, file, len(content))


async def fetch(store: Store, bucket: str, key: str) -> bytes:
    with memory_file() as file:
        size = await store.fetch(bucket, key, file)
        content = content_of(file)
        assert size == len(content)
        return content


class StoreContract:
    """Inherited by the tests of each store, which give the fixtures `store` and `bucket`.

    The bucket exists and is empty.
    """

    @pytest.mark.parametrize(
        "size", [0, 1, 4 * KIB, 256 * KIB - 1, 256 * KIB, 256 * KIB + 1, MIB + 1, 9 * MIB]
    )
    async def test_bytes_come_back(self, store: FullStore, bucket: str, size: int) -> None:
        content = os.urandom(size)
        await put(store, bucket, "object", content)
        assert await fetch(store, bucket, "object") == content
        assert await store.head_object(bucket, "object") == size

    @pytest.mark.parametrize("key", PLAIN_NAMES, ids=ascii)
    async def test_names_come_back(self, store: FullStore, bucket: str, key: str) -> None:
        await put(store, bucket, key, key.encode())
        assert await fetch(store, bucket, key) == key.encode()
        assert await store.list_objects(bucket) == [StoredObject(key, len(key.encode()))]
        await store.delete_object(bucket, key)
        assert await store.list_objects(bucket) == []

    async def test_put_replaces(self, store: FullStore, bucket: str) -> None:
        await put(store, bucket, "object", b"a longer content")
        await put(store, bucket, "object", b"short")
        assert await fetch(store, bucket, "object") == b"short"

    async def test_put_neither_uses_nor_moves_the_offset(
        self, store: FullStore, bucket: str
    ) -> None:
        for content in (b"0123456789", os.urandom(2 * MIB)):
            with memory_file(content) as file:
                os.lseek(file, 5, os.SEEK_SET)
                await store.put(bucket, "object", file, len(content))
                assert os.lseek(file, 0, os.SEEK_CUR) == 5
            assert await fetch(store, bucket, "object") == content

    async def test_put_takes_no_more_than_the_size(self, store: FullStore, bucket: str) -> None:
        with memory_file(b"0123456789") as file:
            await store.put(bucket, "object", file, 4)
        assert await fetch(store, bucket, "object") == b"0123"

    @pytest.mark.parametrize("size", [10, 300 * KIB, 2 * MIB])
    async def test_a_file_that_shrank(self, store: FullStore, bucket: str, size: int) -> None:
        with memory_file(bytes(size - 1)) as file, pytest.raises(StoreError) as caught:
            await store.put(bucket, "object", file, size)
        assert caught.value.code == "FileShrank"
        assert not caught.value.retryable
        with pytest.raises(ObjectMissing):
            await fetch(store, bucket, "object")

    async def test_a_missing_object(self, store: FullStore, bucket: str) -> None:
        with pytest.raises(ObjectMissing) as caught:
            await fetch(store, bucket, "nothing here")
        assert (caught.value.bucket, caught.value.key) == (bucket, "nothing here")
        assert caught.value.code == "NoSuchKey"
        assert "nothing here" in str(caught.value)
        with pytest.raises(ObjectMissing):
            await store.head_object(bucket, "nothing here")
        await store.delete_object(bucket, "nothing here")

    async def test_a_missing_bucket(self, store: FullStore, bucket: str) -> None:
        missing = f"{bucket}-not"
        with pytest.raises(BucketMissing):
            await store.check_bucket(missing)
        with pytest.raises(BucketMissing) as caught:
            await fetch(store, missing, "object")
        assert caught.value.code == "NoSuchBucket"
        with pytest.raises(BucketMissing):
            await put(store, missing, "object", b"content")
        with pytest.raises(BucketMissing):
            await store.list_objects(missing)
        # An answer to HEAD has no body that could tell one from the other.
        with pytest.raises((BucketMissing, ObjectMissing)):
            await store.head_object(missing, "object")

    async def test_buckets_are_made_once(self, store: FullStore, bucket: str) -> None:
        new = f"{bucket}-new"
        await store.ensure_bucket(new)
        await put(store, new, "object", b"content")
        await store.ensure_bucket(new)
        await store.check_bucket(new)
        assert await fetch(store, new, "object") == b"content"

    async def test_names_that_would_mean_something_else(
        self, store: FullStore, bucket: str
    ) -> None:
        with memory_file() as file:
            for bad_bucket, bad_key in ((bucket, ""), ("", "object"), (bucket, "\ud800")):
                with pytest.raises(StoreRefused):
                    await store.put(bad_bucket, bad_key, file, 0)
                with pytest.raises(StoreRefused):
                    await store.fetch(bad_bucket, bad_key, file)

    async def test_lists_in_pages(self, store: FullStore, bucket: str) -> None:
        keys = [f"page me/{number:02} + %" for number in range(11)]
        async with trio.open_nursery() as nursery:
            for key in ["other", *keys]:
                nursery.start_soon(put, store, bucket, key, key.encode())
        expected = [StoredObject(key, len(key)) for key in keys]
        assert await store.list_objects(bucket, "page me/", page_size=3) == expected
        assert await store.list_objects(bucket, "page me/", page_size=1000) == expected
        assert await store.list_objects(bucket, "nothing") == []
        assert len(await store.list_objects(bucket)) == 12

    async def test_many_at_a_time(self, store: FullStore, bucket: str) -> None:
        async def round_trip(number: int) -> None:
            content = os.urandom(64 * number)
            await put(store, bucket, f"object {number}", content)
            assert await fetch(store, bucket, f"object {number}") == content

        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(round_trip, number)

    async def test_a_full_disk_is_told_as_such(self, store: FullStore, bucket: str) -> None:
        await put(store, bucket, "object", b"content")
        full = os.open("/dev/full", os.O_WRONLY)
        try:
            with pytest.raises(OSError, match="No space left"):
                await store.fetch(bucket, "object", full)
        finally:
            os.close(full)
        assert await fetch(store, bucket, "object") == b"content"

    async def test_cancelled_requests_leave_the_store_usable(
        self, store: FullStore, bucket: str
    ) -> None:
        content = os.urandom(3 * MIB)
        await put(store, bucket, "object", content)
        for _ in range(3):
            with trio.CancelScope() as scope:
                scope.cancel()
                await fetch(store, bucket, "object")
            assert scope.cancelled_caught
            with trio.move_on_after(0.002):
                await put(store, bucket, "object", content)
            with trio.move_on_after(0.002):
                await fetch(store, bucket, "object")
        assert await fetch(store, bucket, "object") == content
