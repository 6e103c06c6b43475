"""One output connection of the transformation, and how much of unfinished frames all of them together may make us hold."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.framing import FrameReader

if TYPE_CHECKING:
    from iterum_sidecar.unix_sockets import Peer

__all__ = ["OutputConnection", "UnfinishedFrames"]

#: How many frames of the greatest length may be on their way at a time, on all connections together. Those of a step are a few
#: hundred bytes long: more than this hold back the ends of their frames, or are none.
LONGEST_FRAMES = 4


_numbers = count(1)


class OutputConnection:
    """A connection on the output socket: its frames, and whether it has said kill."""

    def __init__(self, peer: Peer, frame_limit: int) -> None:
        self.peer = peer
        self.source = next(_numbers)
        """What the ledger knows it by."""
        self.frames = FrameReader(frame_limit)
        self.lock = trio.Lock()
        """Held by whoever reads from it."""
        self.said_kill = False


class UnfinishedFrames:
    """The bytes of unfinished frames that are held on all connections, and whom to give up when they are too many."""

    def __init__(self, frame_limit: int) -> None:
        self.limit = LONGEST_FRAMES * frame_limit
        """Bytes that may be held."""
        self._held: dict[OutputConnection, int] = {}
        self._total = 0

    def count(self, connection: OutputConnection) -> OutputConnection | None:
        """Note what a connection holds now; returns the one that holds most if all together hold too much."""
        held = connection.frames.buffered
        self._total += held - self._held.pop(connection, 0)
        if held:
            self._held[connection] = held
        if self._total <= self.limit:
            return None
        return max(self._held, key=self._held.__getitem__)

    def forget(self, connection: OutputConnection) -> None:
        """A connection is closed."""
        self._total -= self._held.pop(connection, 0)
