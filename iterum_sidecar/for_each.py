"""Work on many items, a few at a time, until one of them is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

__all__ = ["for_each"]

ItemT = TypeVar("ItemT")


async def for_each(
    items: Sequence[ItemT],
    work: Callable[[ItemT], Awaitable[None]],
    *,
    at_a_time: int,
    refusal: type[Exception],
) -> None:
    """Do `work` for every item, `at_a_time` at most at once; the first `refusal` cancels the rest and is raised bare.

    Any other error is raised as a nursery raises it.
    """
    if len(items) == 1:
        await work(items[0])
        return
    refusals: list[Exception] = []

    async def take_turns(left: Iterator[ItemT], scope: trio.CancelScope) -> None:
        for item in left:
            try:
                await work(item)
            except refusal as error:
                refusals.append(error)
                scope.cancel("one of the items is refused")

    left = iter(items)
    async with trio.open_nursery() as nursery:
        for _ in range(min(at_a_time, len(items))):
            nursery.start_soon(take_turns, left, nursery.cancel_scope)
    if refusals:
        raise refusals[0]
