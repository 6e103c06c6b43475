"""Many things, some of them at a time, in threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")


def at_a_time(workers: int, work: Callable[[T], None], items: Iterable[T]) -> None:
    """Do the work for each item, in a pool of as many threads as there are workers."""
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work, items):
            pass
