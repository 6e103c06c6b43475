"""Objects by `iterum_sidecar.stores`, used as the stages of the sidecar use it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from benchmarks.stages.on_trio import at_a_time
from iterum_sidecar.stores.s3 import S3Store

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from benchmarks.stages.task import Meter, Task


def _store(task: Task) -> S3Store:
    host, _, port = task.endpoint.partition(":")
    return S3Store(host, int(port), task.access_key, task.secret_key)


async def _measured(store: S3Store, meter: Meter, work: Awaitable[None]) -> None:
    """Measure work with the store as the sidecar keeps it: one task for the deadlines of all requests."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.watch_deadlines)
        with meter:
            await work
        nursery.cancel_scope.cancel()


def get(task: Task, meter: Meter) -> None:
    """Fetch each object to a file; its bytes are held against the store's checksum."""
    trio.run(_get, task, meter)


async def _get(task: Task, meter: Meter) -> None:
    async with _store(task) as store:

        async def fetch(number: int) -> None:
            file = os.open(task.path(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                await store.fetch(task.bucket, task.file_name(number), file)
            finally:
                os.close(file)

        await _measured(store, meter, at_a_time(task.at_a_time, fetch, range(task.count)))


def put(task: Task, meter: Meter) -> None:
    """Store each file as an object; each request is signed over its body."""
    trio.run(_put, task, meter)


async def _put(task: Task, meter: Meter) -> None:
    async with _store(task) as store:

        async def send(number: int) -> None:
            file = os.open(task.path(number), os.O_RDONLY)
            try:
                size = os.fstat(file).st_size
                await store.put(task.bucket, task.file_name(number), file, size)
            finally:
                os.close(file)

        await _measured(store, meter, at_a_time(task.at_a_time, send, range(task.count)))
