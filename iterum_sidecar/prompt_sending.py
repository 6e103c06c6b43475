"""Sending into a memory channel without a turn of the scheduler, where there is room.

`send` of a memory channel always lets every other task run before it returns. A fragment is sent from stage to stage a dozen times, and
each such turn costs more than what is sent. Whoever sends so needs another checkpoint in its loop.
"""

from __future__ import annotations

from typing import TypeVar

import trio

__all__ = ["send_promptly"]

T = TypeVar("T")


async def send_promptly(channel: trio.MemorySendChannel[T], item: T) -> None:
    """Send an item at once if there is room or somebody waits for it, and otherwise wait as `send` does; raises what `send` raises."""
    try:
        channel.send_nowait(item)
    except trio.WouldBlock:
        await channel.send(item)
