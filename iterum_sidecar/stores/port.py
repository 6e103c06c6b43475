"""What the sidecar asks of an object store, whichever one is behind it.

`stores.s3` speaks to a real S3 server; `stores.directory` keeps objects in a directory and serves
local runs and deterministic tests. Both raise the errors below and no others of their own kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

__all__ = [
    "Admit",
    "BucketMissing",
    "ObjectMissing",
    "Store",
    "StoreError",
    "StoreRefused",
    "StoreUnavailable",
    "StoredObject",
]


#: Told of an object's size in bytes before any of it is written; what it raises is the end of the request.
Admit: TypeAlias = Callable[[int], None]


class StoreError(Exception):
    """A request that the store did not fulfil.

    `bucket` and `key` name what was asked for (`key` is empty for a request about a bucket), `code` is the
    store's own error code or a short name of ours. `retryable` tells whether the same request may succeed
    later with nothing changed on our side; what may be retried has been retried before this is raised.
    `asked_at` is when the request that failed was sent, the last one of several, by Trio's clock; None where nobody noted it.
    """

    retryable = False
    asked_at: float | None = None

    def __init__(self, message: str, *, bucket: str = "", key: str = "", code: str = "") -> None:
        super().__init__(message)
        self.bucket = bucket
        self.key = key
        self.code = code


class ObjectMissing(StoreError):
    """The bucket exists (or its existence is unknown) and holds no object of that key."""


class BucketMissing(StoreError):
    """There is no bucket of that name."""


class StoreRefused(StoreError):
    """The store understood the request and refused it: credentials, permissions, an invalid name.

    `is_outdated` tells whether other credentials are in use by now than those that were refused. Then the refusal says nothing
    of the object any more, and the same request may succeed at once.
    """

    is_outdated: Callable[[], bool] = staticmethod(lambda: False)


class StoreUnavailable(StoreError):
    """The store could not be reached, kept failing, or sent something else than it announced.

    `retry_after` is the wait in seconds that the store has asked for, if it has.
    """

    retryable = True
    retry_after: float | None = None


class StoredObject(NamedTuple):
    """An object as a listing shows it; `size` is in bytes."""

    key: str
    size: int


class Store(Protocol):
    """Objects in buckets, moved between the store and open files; never through memory as a whole."""

    async def fetch(self, bucket: str, key: str, file: int, *, admit: Admit | None = None) -> int:
        """Write the object's bytes to the descriptor `file` and return how many there were.

        `file` is open for writing, empty, and at its beginning. It holds the whole object when this returns, length and checksum
        verified, and anything at all when this raises. A retry starts it again by itself (truncate, seek).

        `admit` is called with the object's size before the first byte is written, each time that it is begun, if the store tells
        the size by then. What it raises ends the request at once, leaves nothing of it open, and is raised here unchanged.

        Raises:
            ObjectMissing, BucketMissing, StoreRefused, StoreUnavailable.
            OSError: the file could not be written (a full disk, for one).
        """
        ...

    async def put(self, bucket: str, key: str, file: int, size: int) -> None:
        """Store the first `size` bytes of the descriptor `file` as the object; it exists when this returns.

        `file` is open for reading; its offset is neither used nor moved (`pread`), so one descriptor may serve
        several requests. A file that has fewer than `size` bytes by now raises StoreError with the code `FileShrank`.

        Raises:
            BucketMissing, StoreRefused, StoreUnavailable, StoreError.
            OSError: the file could not be read.
        """
        ...

    async def ensure_bucket(self, bucket: str) -> None:
        """Make the bucket unless it is there already (ours or another's that we may write to).

        Raises:
            StoreRefused, StoreUnavailable.
        """
        ...

    async def check_bucket(self, bucket: str) -> None:
        """Return when the bucket exists and may be used with our credentials; one request, no side effect.

        Raises:
            BucketMissing, StoreRefused, StoreUnavailable.
        """
        ...
