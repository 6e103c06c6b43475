"""Upstream: wait until all earlier steps are finished, and tell intake."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iterum_sidecar.cargo import News

if TYPE_CHECKING:
    import trio

    from iterum_sidecar.upstream import Upstream

__all__ = ["run"]


async def run(*, upstream: Upstream, news: trio.MemorySendChannel[News]) -> None:
    """Send FINISHED once, when it is so."""
    with news:
        await upstream.wait_until_finished()
        news.send_nowait(News.FINISHED)
