"""A byte stream over a plain socket that waits only when a call would block.

`trio.SocketStream` lets every other task run in each send and each receive. A broker's connection sends and receives for every message,
nearly always without having to wait, and each such turn costs more than the system call itself. What Trio's streams promise by it is the
caller's business: there is a checkpoint only where these wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import trio

if TYPE_CHECKING:
    import socket

__all__ = ["READ_SIZE", "PlainStream"]

#: What one read takes at most, in bytes: some hundred deliveries. Above 128 KiB the C library would map memory for each read.
READ_SIZE: Final = 65536


@final
class PlainStream(trio.abc.Stream):
    """A connected socket as a stream of Trio's, one task for each direction; it owns the socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock

    async def wait_readable(self) -> None:
        """Return when something has come or the peer has closed; always a checkpoint.

        Raises:
            trio.ClosedResourceError.
        """
        if self._socket.fileno() < 0:
            raise _closed()
        await trio.lowlevel.wait_readable(self._socket)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until something can be sent; raises trio.ClosedResourceError."""
        if self._socket.fileno() < 0:
            raise _closed()
        await trio.lowlevel.wait_writable(self._socket)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything; a checkpoint only if the kernel does not take it at once.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError.
        """
        sent = await self._send_some(data)
        if sent < len(data):
            with memoryview(data) as view:
                while sent < len(data):
                    sent += await self._send_some(view[sent:])

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what has come, empty at the end of the stream; a checkpoint only if nothing is there yet.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError.
        """
        while True:
            try:
                return self._socket.recv(READ_SIZE if max_bytes is None else max_bytes)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
            except OSError as error:
                raise self._failure(error) from error

    async def aclose(self) -> None:
        """Close the socket; whoever waits for it gets trio.ClosedResourceError."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
        await trio.lowlevel.checkpoint()

    async def _send_some(self, data: bytes | bytearray | memoryview) -> int:
        while True:
            try:
                return self._socket.send(data)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)
            except OSError as error:
                raise self._failure(error) from error

    def _failure(self, error: OSError) -> Exception:
        if self._socket.fileno() < 0:
            return _closed()
        return trio.BrokenResourceError(f"the socket failed: {error}")


def _closed() -> trio.ClosedResourceError:
    return trio.ClosedResourceError("this stream was closed")
