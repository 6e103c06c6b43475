"""The store of a simulation: objects in memory, which survive, and a way to them that fails."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.stores.port import (
    BucketMissing,
    ObjectMissing,
    StoreRefused,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from iterum_sidecar.stores.port import Admit
    from tests.simulation.history import History

__all__ = ["Objects", "SimulatedStore"]


class Objects:
    """What is stored, and the weather around it."""

    def __init__(self, history: History, random: Random) -> None:
        self.history = history
        self.random = random
        self.buckets: dict[str, dict[str, bytes]] = {}
        self.away_until = 0.0
        self.refusing_until = 0.0
        self.slow_until = 0.0
        self.slowness = 0.0
        """The longest that a request takes while it is slow, in seconds."""


class SimulatedStore:
    """`stores.port.Store`, as one sidecar sees it."""

    def __init__(self, objects: Objects, name: str, on_fetch: Callable[[], None]) -> None:
        self._objects = objects
        self._name = name
        self._on_fetch = on_fetch
        self.is_dead = False
        """Whether the process that asks has been killed."""

    async def fetch(self, bucket: str, key: str, file: int, *, admit: Admit | None = None) -> int:
        """Write an object to a file."""
        content = self._find(await self._ask(bucket, key), bucket, key)
        if admit is not None:
            admit(len(content))
        os.pwrite(file, content, 0)
        self._objects.history.record("fetched", self._name, key)
        self._on_fetch()
        return len(content)

    async def put(self, bucket: str, key: str, file: int, size: int) -> None:
        """Store a file as an object."""
        found = await self._ask(bucket, key)
        content = os.pread(file, size, 0)
        found[key] = content
        self._objects.history.record("stored", self._name, key[12:19] + key[76:])

    async def ensure_bucket(self, bucket: str) -> None:
        """Make a bucket."""
        await self._weather(bucket, "")
        self._objects.buckets.setdefault(bucket, {})

    async def check_bucket(self, bucket: str) -> None:
        """See whether there is a bucket."""
        await self._ask(bucket, "")

    async def _ask(self, bucket: str, key: str) -> dict[str, bytes]:
        await self._weather(bucket, key)
        found = self._objects.buckets.get(bucket)
        if found is None:
            raise BucketMissing(f"no bucket {bucket}", bucket=bucket, key=key, code="NoSuchBucket")
        return found

    @staticmethod
    def _find(found: dict[str, bytes], bucket: str, key: str) -> bytes:
        try:
            return found[key]
        except KeyError:
            raise ObjectMissing(
                f"no object {key}", bucket=bucket, key=key, code="NoSuchKey"
            ) from None

    async def _weather(self, bucket: str, key: str) -> None:
        objects = self._objects
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        if now < objects.slow_until:
            await trio.sleep(objects.slowness * objects.random.random())
            now = trio.current_time()
        if self.is_dead:
            await trio.sleep_forever()
        if now < objects.away_until:
            raise StoreUnavailable("the store is away", bucket=bucket, key=key, code="SlowDown")
        if now < objects.refusing_until:
            raise StoreRefused("access denied", bucket=bucket, key=key, code="AccessDenied")
