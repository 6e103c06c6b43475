"""The frames of the two sockets: a 4-byte unsigned little-endian length, then that many bytes.

Sans-I/O: bytes go in as they come, in any pieces, and whole frames come out. A length is a peer's claim
and allocates nothing: what is held is what has arrived, and a claim above the limit is refused at once.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "DEFAULT_FRAME_LIMIT",
    "FRAME_LENGTH_SIZE",
    "FrameReader",
    "FrameTooLong",
    "encode_frame",
]

#: A description of 20,000 files with long names is about 6 MiB; RabbitMQ 4 refuses messages over 16 MiB.
DEFAULT_FRAME_LIMIT = 16 * 1024 * 1024

_LENGTH = struct.Struct("<I")
FRAME_LENGTH_SIZE = _LENGTH.size


class FrameTooLong(ValueError):
    """A peer announced a frame longer than `limit` bytes; nothing after it can be read any more."""

    def __init__(self, claimed: int, limit: int) -> None:
        super().__init__(f"a frame of {claimed:,} bytes was announced, the limit is {limit:,}")
        self.claimed = claimed
        self.limit = limit


def encode_frame(payload: bytes) -> bytes:
    """Return `payload` as one frame. Raises struct.error for a payload of 4 GiB or more."""
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Cuts a stream of bytes into the payloads of its frames."""

    __slots__ = ("_buffer", "_limit")

    def __init__(self, limit: int = DEFAULT_FRAME_LIMIT) -> None:
        self._buffer = bytearray()
        self._limit = limit

    @property
    def buffered(self) -> int:
        """How many bytes of an unfinished frame are held; 0 between frames."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """Take what has arrived and yield every payload that it completes, oldest first.

        Exhaust the iterator before feeding again.

        Raises:
            FrameTooLong: a length above the limit; the payloads before it have been yielded.
        """
        buffer = self._buffer
        buffer += data
        available = len(buffer)
        start = 0
        try:
            while available - start >= 4:
                (length,) = _LENGTH.unpack_from(buffer, start)
                if length > self._limit:
                    raise FrameTooLong(length, self._limit)
                end = start + 4 + length
                if end > available:
                    break
                payload = bytes(memoryview(buffer)[start + 4 : end])
                start = end
                yield payload
        finally:
            del buffer[:start]
