"""One input connection of the transformation: the frames that it is sent, and whether it waits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from iterum_sidecar.framing import FRAME_LENGTH_SIZE, encode_frame
from iterum_sidecar.messages import (
    ACCEPTED,
    KILL_MESSAGE,
    LocalFile,
    LocalFragment,
    LocalMetadata,
    encode_message,
)
from iterum_sidecar.telemetry.logs import get_log

if TYPE_CHECKING:
    from iterum_sidecar.cargo import FragmentEntry
    from iterum_sidecar.roster import Seat
    from iterum_sidecar.unix_sockets import Peer

__all__ = ["ANNOUNCED_LENGTH", "InputConnection", "describe"]

_log = get_log(__name__)

#: The length that is announced. Descriptions of some 300 files fit in; more is for the connection's next life.
ANNOUNCED_LENGTH = 64 * 1024


class InputConnection:
    """A connection on the input socket and its seat in the roster."""

    def __init__(self, peer: Peer, seat: Seat[Any, Any]) -> None:
        self.peer = peer
        self.seat = seat
        self.killed = False
        """Whether the kill message has been said to it."""
        self.given_up = False
        """Whether it was closed because it hung, and what it held has been told of."""
        self.read_at: float | None = None
        """When it was first seen, by `look`, to have read all that it was sent."""
        self._announced = 0

    @property
    def is_announced(self) -> bool:
        """Whether the length of its next frame has been sent, and the rest has not."""
        return self._announced > 0

    def fits(self, payload: bytes) -> bool:
        """Whether it can be sent such a message now."""
        return not self._announced or len(payload) <= self._announced

    def send(self, payload: bytes) -> None:
        """Send a message that `fits`; where its length was announced, it is filled up: JSON does not mind blanks."""
        self.read_at = None
        if self._announced:
            self.peer.send(payload.ljust(self._announced))
            self._announced = 0
        else:
            self.peer.send(encode_frame(payload))

    def announce(self) -> None:
        """Send the length of the next frame, and not the frame."""
        if not self._announced:
            self._announced = ANNOUNCED_LENGTH
            self.peer.send(encode_frame(bytes(ANNOUNCED_LENGTH))[:FRAME_LENGTH_SIZE])

    def waits_for_input(self) -> bool:
        """Whether it has read what was announced, and so waits in its read."""
        return self.is_announced and self.peer.unread() == 0

    def look(self, now: float) -> None:
        """Note whether it has read all that it was sent."""
        if self.read_at is None and (self.is_announced or self.peer.unread() == 0):
            self.read_at = now

    async def until_closed(self) -> None:
        """Return when either side has closed the connection, or the transformation has sent something on it."""
        try:
            while (arrived := self.peer.receive_nowait()) is None:
                await self.peer.wait_readable()
        except trio.ClosedResourceError:
            return  # closed on this side while it was waited for
        if arrived:
            _log.warning("breach: something was sent on an input connection; closing it")

    def kill(self) -> None:
        """Say the kill message, once."""
        if not self.killed:
            self.killed = True
            self.send(KILL_MESSAGE)


def describe(entry: FragmentEntry) -> bytes:
    """Return the message that hands a fragment to the transformation."""
    message, workspace = entry.work.message, entry.work.workspace
    if message is None or workspace is None:
        raise AssertionError(f"{entry!r} has no files")
    metadata = message.metadata
    return encode_message(
        LocalFragment(
            [LocalFile(file.name, f"{workspace.path}/{file.name}") for file in message.files],
            LocalMetadata(metadata.fragment_id, metadata.predecessors or [], metadata.custom),
            ACCEPTED,
        )
    )
