"""What waits to be sent: many small writes, few system calls.

Anybody writes synchronously; one task sends everything that has gathered since it last looked.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from trio.lowlevel import ParkingLot

if TYPE_CHECKING:
    from collections.abc import Iterable

    import trio

    from iterum_sidecar.amqp.errors import ConnectionLost

# Publishers wait above the first and go on below the second: enough for some thousand small messages in one
# round, little beside the memory of any process; the gap between them keeps publishers from waking for each send.
HIGH_WATER = 1024 * 1024
LOW_WATER = HIGH_WATER // 2

# One send_all gets at most about this much, so that joining a large body's frames never doubles its memory.
SEND_SIZE = 256 * 1024


class Outbox:
    """The bytes of one connection on their way to the kernel.

    `buffered` and `sent` count bytes: not yet handed over, and handed over since the start. `has_room` is
    unparked whenever a publisher should look again.
    """

    def __init__(self) -> None:
        self.buffered = 0
        self.sent = 0
        self.has_room = ParkingLot()
        self._pieces: deque[bytes | memoryview] = deque()
        self._work = ParkingLot()
        self._progress = ParkingLot()
        self._has_sender = True
        self._failure: ConnectionLost | None = None

    @property
    def is_full(self) -> bool:
        """Whether more than the high-water mark is buffered."""
        return self.buffered >= HIGH_WATER

    @property
    def written(self) -> int:
        """All bytes that were ever written, whether or not they have been sent."""
        return self.sent + self.buffered

    def write(self, data: bytes) -> None:
        """Buffer whole frames, to be sent in the order of the calls."""
        self._pieces.append(data)
        self.buffered += len(data)
        if self._work:
            self._work.unpark()

    def write_pieces(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Buffer frames that come in pieces; nothing gets between them."""
        for piece in pieces:
            self._pieces.append(piece)
            self.buffered += len(piece)
        if self._work:
            self._work.unpark()

    async def flush(self) -> None:
        """Wait until all that was buffered before the call is with the kernel; raises ConnectionLost."""
        target = self.written
        while self.sent < target:
            if self._failure is not None:
                raise self._failure.again()
            await self._progress.park()

    async def drain(self) -> None:
        """Wait until nothing is buffered or nobody sends any more, even on a connection that has failed."""
        while self.buffered and self._has_sender:
            await self._progress.park()

    def fail(self, failure: ConnectionLost) -> None:
        """Wake everybody who waits for something to be sent."""
        self._failure = failure
        self._progress.unpark_all()
        self.has_room.unpark_all()

    async def send_to(self, stream: trio.abc.SendStream) -> None:
        """Send what is written, for ever; the errors are the stream's."""
        try:
            while True:
                while not self._pieces:
                    await self._work.park()
                data = self._next_batch()
                await stream.send_all(data)
                self.buffered -= len(data)
                self.sent += len(data)
                self._progress.unpark_all()
                if self.has_room and self.buffered <= LOW_WATER:
                    self.has_room.unpark_all()
        finally:
            self._has_sender = False
            self._progress.unpark_all()

    def _next_batch(self) -> bytes:
        pieces = self._pieces
        batch = []
        size = 0
        while pieces and size < SEND_SIZE:
            piece = pieces.popleft()
            size += len(piece)
            batch.append(piece)
        return b"".join(batch)
