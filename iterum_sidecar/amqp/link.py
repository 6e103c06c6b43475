"""What the channels of one connection share."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from trio.lowlevel import ParkingLot

from iterum_sidecar.amqp.outbox import Outbox

if TYPE_CHECKING:
    from iterum_sidecar.amqp.errors import ConnectionLost

_epochs = count(1)


class Link:
    """The state of a live connection as its channels see it.

    `epoch` grows with each connection of the process; `frame_max` and `max_body_size` are in bytes; `blocked` is
    the broker's reason for taking no messages, or None; `failure` is set once, when the connection has ended.
    """

    def __init__(self, frame_max: int, max_body_size: int) -> None:
        self.epoch = next(_epochs)
        self.frame_max = frame_max
        self.max_body_size = max_body_size
        self.outbox = Outbox()
        self.blocked: str | None = None
        self.blocked_changed = ParkingLot()
        self.failure: ConnectionLost | None = None

    def set_blocked(self, reason: str | None) -> None:
        """Note that the broker has stopped taking messages, or with None that it takes them again."""
        self.blocked = reason
        self.blocked_changed.unpark_all()
        if reason is None:
            self.outbox.has_room.unpark_all()

    def fail(self, failure: ConnectionLost) -> None:
        """Note the end of the connection and wake who waits for it to change."""
        self.failure = failure
        self.outbox.fail(failure)
        self.blocked_changed.unpark_all()
