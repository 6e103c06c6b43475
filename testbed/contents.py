"""Objects: what is in them, and how they get into a store and out of it without the sidecar."""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING

from testbed import signed

if TYPE_CHECKING:
    from botocore.client import BaseClient

    from testbed.object_stores import ObjectStore

__all__ = ["content", "get_object", "list_keys", "make_bucket", "put_directly", "put_object"]


def content(number: int, size: int) -> bytes:
    """Return `size` bytes that depend on the number, so that no two numbers' contents are alike."""
    block = b"".join(hashlib.sha256(b"%d:%d" % (number, part)).digest() for part in range(32))
    return (block * (size // len(block) + 1))[:size]


@functools.cache
def client(store: ObjectStore) -> BaseClient:
    """Return one client for each store: to make one takes longer than to use it."""
    return store.client()


def make_bucket(store: ObjectStore, bucket: str) -> None:
    """Make a bucket that is not there yet."""
    signed.put(store, bucket)


def put_object(store: ObjectStore, bucket: str, key: str, data: bytes) -> None:
    """Store an object."""
    signed.put(store, bucket, key, data)


def put_directly(store: ObjectStore, bucket: str, key: str, data: bytes) -> None:
    """Store an object as a file, which is fast, in a bucket that nobody has read from or written to yet."""
    assert store.directory is not None
    path = store.directory / bucket / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def get_object(store: ObjectStore, bucket: str, key: str) -> bytes:
    """Return an object; an exception says that there is none."""
    if store.directory is not None:
        return (store.directory / bucket / key).read_bytes()
    data: bytes = client(store).get_object(Bucket=bucket, Key=key)["Body"].read()
    return data


def list_keys(store: ObjectStore, bucket: str) -> list[str]:
    """Return the keys of all objects in a bucket, sorted; none when the bucket does not exist."""
    if store.directory is not None:
        root = store.directory / bucket
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    s3 = client(store)
    try:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return sorted(entry["Key"] for page in pages for entry in page.get("Contents", ()))
    except s3.exceptions.NoSuchBucket:
        return []
