"""Memory channels without a turn of the scheduler where there is room, or something to take.

`send` and `receive` of a memory channel always let every other task run before they return. A fragment is passed from stage to stage a dozen
times, and each such turn costs more than what is passed. Whoever uses these needs another checkpoint in its loop, or a channel in which
no more can gather meanwhile: one that is filled by tasks, which have no turn before it has been emptied.
"""

from __future__ import annotations

from typing import Generic, Self, TypeVar, final

import trio

__all__ = ["promptly", "send_promptly"]

T = TypeVar("T")


async def send_promptly(channel: trio.MemorySendChannel[T], item: T) -> None:
    """Send an item at once if there is room or somebody waits for it, and otherwise wait as `send` does; raises what `send` raises."""
    try:
        channel.send_nowait(item)
    except trio.WouldBlock:
        await channel.send(item)


@final
class promptly(Generic[T]):
    """Iterate over what comes through a channel, waiting only when there is nothing; ends as the channel's own iteration does."""

    __slots__ = ("_channel",)

    def __init__(self, channel: trio.MemoryReceiveChannel[T]) -> None:
        self._channel = channel

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            return self._channel.receive_nowait()
        except trio.WouldBlock:
            pass
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        try:
            return await self._channel.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
