"""The row of `row.py` with something the matter with its store or its broker."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from iterum_sidecar.patience import Patience
from iterum_sidecar.sidecar import Sidecar, queues_of
from iterum_sidecar.stores.directory import DirectoryStore
from tests.unit.row import (
    FinishedOnRequest,
    RecordingBroker,
    Row,
    StepConnection,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from iterum_sidecar.stores.port import Admit, Store


def id_of(fragment: dict[str, Any]) -> str:
    own: str = fragment["metadata"]["fragment_id"]
    return own


def finished() -> FinishedOnRequest:
    upstream = FinishedOnRequest()
    upstream.finished.set()
    return upstream


def sidecar_with(
    row: Row,
    upstream: FinishedOnRequest,
    *,
    store: Store | None = None,
    broker_is_away: bool = False,
    service_timeout: float = 0,
) -> Sidecar:
    """The row's sidecar, with a store or a broker that has something the matter with it."""
    settings = row.settings()

    @asynccontextmanager
    async def open_broker() -> AsyncIterator[RecordingBroker]:
        if broker_is_away:
            await trio.sleep_forever()
        for queue in queues_of(settings):
            await row.broker.ensure_queue(queue)
        yield row.broker

    return Sidecar(
        settings,
        open_broker=open_broker,
        store=store or DirectoryStore(row.store_root),
        store_patience=Patience("the store", service_timeout),
        upstream=lambda _ledger: upstream,
        tally=row.tally,
    )


async def run_while(sidecar: Sidecar, row: Row, step: Callable[[StepConnection], Any]) -> None:
    """Run a sidecar beside a transformation whose process is started again a second after each death."""

    async def keep_starting() -> None:
        while True:
            await row.run_step(step)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_starting)
        await sidecar.run()
        nursery.cancel_scope.cancel()


class FaultyStore:
    """A store in a directory; its heirs have something the matter with them."""

    def __init__(self, root: Path) -> None:
        self._sound = DirectoryStore(root)

    async def fetch(self, bucket: str, key: str, file: int, *, admit: Admit | None = None) -> int:
        return await self._sound.fetch(bucket, key, file, admit=admit)

    async def put(self, bucket: str, key: str, file: int, size: int) -> None:
        await self._sound.put(bucket, key, file, size)

    async def check_bucket(self, bucket: str) -> None:
        await self._sound.check_bucket(bucket)

    async def ensure_bucket(self, bucket: str) -> None:
        await self._sound.ensure_bucket(bucket)
