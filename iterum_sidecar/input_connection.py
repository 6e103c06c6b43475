"""One input connection of the transformation: the frames that it is sent, and whether it waits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iterum_sidecar.framing import FRAME_LENGTH_SIZE, encode_frame
from iterum_sidecar.messages import KILL_MESSAGE

if TYPE_CHECKING:
    from iterum_sidecar.roster import Seat
    from iterum_sidecar.unix_sockets import Peer

__all__ = ["ANNOUNCED_LENGTH", "InputConnection"]

#: The length that is announced. Descriptions of some 300 files fit in; more is for the connection's next life.
ANNOUNCED_LENGTH = 64 * 1024


class InputConnection:
    """A connection on the input socket and its seat in the roster."""

    def __init__(self, peer: Peer, seat: Seat[Any, Any]) -> None:
        self.peer = peer
        self.seat = seat
        self.killed = False
        """Whether the kill message has been said to it."""
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

    def kill(self) -> None:
        """Say the kill message, once."""
        if not self.killed:
            self.killed = True
            self.send(KILL_MESSAGE)
