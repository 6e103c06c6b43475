"""How much of long descriptions is on its way from the transformation to the broker's confirm.

The stages between bound the number of results, which is enough for descriptions of some hundred bytes. A description may have as many
megabytes as a frame, and is held about three times on its way: as it came, as it is published, and within its lineage message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from iterum_sidecar.cargo import FragmentOutput

__all__ = ["Freight"]

#: Bytes from which on a description counts.
LONG = 64 * 1024
#: How many descriptions as long as the longest frame may be on their way at a time.
LONGEST_FRAMES = 4


class Freight:
    """The long descriptions that are on their way; one is always let on, however long it is."""

    def __init__(self, frame_limit: int) -> None:
        self.limit = LONGEST_FRAMES * frame_limit
        """Bytes that may be on their way."""
        self.held = 0
        """Bytes that are."""
        self._sizes: dict[FragmentOutput, int] = {}
        self._changed = trio.Event()

    async def let_on(self, output: FragmentOutput, size: int) -> None:
        """Return when there is room for an output whose description has so many bytes; `arrived` gives it back."""
        if size < LONG:
            return
        while self._sizes and self.held + size > self.limit:
            await self._changed.wait()
        self._sizes[output] = size
        self.held += size

    def arrived(self, output: FragmentOutput) -> None:
        """An output is safe, or refused. Calling it again changes nothing."""
        size = self._sizes.pop(output, 0)
        if size:
            self.held -= size
            self._changed.set()
            self._changed = trio.Event()
