"""Objects by obstore, which is Rust's object_store, on asyncio."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from obstore.store import S3Store

from benchmarks.stages.on_asyncio import at_a_time

if TYPE_CHECKING:
    from benchmarks.stages.task import Meter, Task

#: Its default of 10 MB keeps whole objects in memory.
READ_SIZE = 1 << 18


def _store(task: Task) -> S3Store:
    return S3Store(
        task.bucket,
        endpoint=f"http://{task.endpoint}",
        access_key_id=task.access_key,
        secret_access_key=task.secret_key,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


def get(task: Task, meter: Meter) -> None:
    """Stream each object to a file."""
    asyncio.run(_get(task, meter))


async def _get(task: Task, meter: Meter) -> None:
    store = _store(task)

    async def fetch(number: int) -> None:
        answer = await store.get_async(task.file_name(number))
        file = os.open(task.path(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            async for data in answer.stream(READ_SIZE):
                os.write(file, data)
        finally:
            os.close(file)

    with meter:
        await at_a_time(task.at_a_time, fetch, range(task.count))


def put(task: Task, meter: Meter) -> None:
    """Store each file as an object, in one request."""
    asyncio.run(_put(task, meter))


async def _put(task: Task, meter: Meter) -> None:
    store = _store(task)

    async def send(number: int) -> None:
        await store.put_async(task.file_name(number), Path(task.path(number)), use_multipart=False)

    with meter:
        await at_a_time(task.at_a_time, send, range(task.count))
