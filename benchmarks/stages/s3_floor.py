"""Objects by the floor's straight line: signed by hand, without checksums, on kept sockets."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from benchmarks.floor import Store
from benchmarks.stages.on_trio import at_a_time

if TYPE_CHECKING:
    from benchmarks.stages.task import Meter, Task


def get(task: Task, meter: Meter) -> None:
    """Fetch each object to a file."""
    trio.run(_get, task, meter)


async def _get(task: Task, meter: Meter) -> None:
    store = Store(task.endpoint, task.access_key, task.secret_key)

    async def fetch(number: int) -> None:
        file = os.open(task.path(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        await store.request("GET", task.bucket, task.file_name(number), target=file)
        os.close(file)

    with meter:
        await at_a_time(task.at_a_time, fetch, range(task.count))


def put(task: Task, meter: Meter) -> None:
    """Store each file as an object."""
    trio.run(_put, task, meter)


async def _put(task: Task, meter: Meter) -> None:
    store = Store(task.endpoint, task.access_key, task.secret_key)

    async def send(number: int) -> None:
        file = os.open(task.path(number), os.O_RDONLY)
        await store.request("PUT", task.bucket, task.file_name(number), source=file)
        os.close(file)

    with meter:
        await at_a_time(task.at_a_time, send, range(task.count))
