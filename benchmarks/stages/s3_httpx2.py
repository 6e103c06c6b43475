"""Objects by httpx2's AsyncClient on Trio, signed by hand as the floor's requests are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import httpx2
import trio

from benchmarks.floor import Store
from benchmarks.stages.on_trio import at_a_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.stages.task import Meter, Task

READ_SIZE = 1 << 18


class _Client:
    """An AsyncClient with as many connections as there are requests at a time, and signed heads for it."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._signer = Store(task.endpoint, task.access_key, task.secret_key)
        self.http = httpx2.AsyncClient(
            base_url=f"http://{task.endpoint}",
            limits=httpx2.Limits(
                max_connections=task.at_a_time, max_keepalive_connections=task.at_a_time
            ),
            timeout=60,
            trust_env=False,
        )

    def headers(self, method: str, key: str, length: int) -> dict[str, str]:
        """Return the headers of a request for an object, signed."""
        head = self._signer.head(method, self._task.bucket, key, length).decode()
        lines = head.split("\r\n")[1:-2]
        return dict(line.split(": ", 1) for line in lines)

    def url(self, key: str) -> str:
        """Return where an object is."""
        return f"/{self._task.bucket}/{key}"


def get(task: Task, meter: Meter) -> None:
    """Stream each object to a file."""
    trio.run(_get, task, meter)


async def _get(task: Task, meter: Meter) -> None:
    client = _Client(task)

    async def fetch(number: int) -> None:
        key = task.file_name(number)
        headers = client.headers("GET", key, 0)
        file = os.open(task.path(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            async with client.http.stream("GET", client.url(key), headers=headers) as answer:
                answer.raise_for_status()
                async for data in answer.aiter_raw():
                    os.write(file, data)
        finally:
            os.close(file)

    async with client.http:
        with meter:
            await at_a_time(task.at_a_time, fetch, range(task.count))


async def _pieces(file: int) -> AsyncIterator[bytes]:
    while data := os.read(file, READ_SIZE):
        yield data


def put(task: Task, meter: Meter) -> None:
    """Stream each file to an object."""
    trio.run(_put, task, meter)


async def _put(task: Task, meter: Meter) -> None:
    client = _Client(task)

    async def send(number: int) -> None:
        key = task.file_name(number)
        file = os.open(task.path(number), os.O_RDONLY)
        try:
            size = os.fstat(file).st_size
            headers = client.headers("PUT", key, size)
            content = os.read(file, size) if size <= READ_SIZE else _pieces(file)
            answer = await client.http.put(client.url(key), content=content, headers=headers)
            answer.raise_for_status()
        finally:
            os.close(file)

    async with client.http:
        with meter:
            await at_a_time(task.at_a_time, send, range(task.count))
