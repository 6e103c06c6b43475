"""Many things, some of them at a time, on Trio."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

T = TypeVar("T")


async def at_a_time(workers: int, work: Callable[[T], Awaitable[None]], items: Iterable[T]) -> None:
    """Do the work for each item, in as many tasks as there are workers."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    async with trio.open_nursery() as nursery:
        for _ in range(workers):
            nursery.start_soon(worker)
