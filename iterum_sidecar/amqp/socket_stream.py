"""A byte stream over a socket, plain or TLS, that waits only when a call would block.

Trio's own streams let every other task run in each send and each receive. A broker's connection sends and receives for every message,
nearly always without having to wait, and each such turn costs more than the system call itself. What Trio's streams promise by it is the
caller's business: there is a checkpoint only where this one waits.

One task may receive while another sends, over TLS too: each call into OpenSSL is whole, and who has to wait calls again.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final, TypeVar, final

import trio

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

__all__ = ["READ_SIZE", "SocketStream", "wrap"]

#: What one read takes at most, in bytes: some hundred deliveries. Above 128 KiB the C library would map memory for each read.
READ_SIZE: Final = 65536

# Until a direction of a TLS connection is asked again that needs the other one, where somebody waits for that; it hardly ever happens.
_BUSY_SECONDS: Final = 0.01

T = TypeVar("T")


@final
class SocketStream(trio.abc.Stream):
    """A connected socket as a stream of Trio's, one task for each direction; it owns the socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock

    async def wait_readable(self) -> None:
        """Return when something has come or the peer has closed, or may have; always a checkpoint.

        Raises:
            trio.ClosedResourceError.
        """
        self._check()
        # OpenSSL takes one record at a time from the kernel, so what it may hold is the rest of the one that was read last.
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            await trio.lowlevel.checkpoint()
        else:
            await self._wait(trio.lowlevel.wait_readable)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until something can be sent; raises trio.ClosedResourceError."""
        self._check()
        await trio.lowlevel.wait_writable(self._socket)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything; a checkpoint only if the kernel does not take it at once.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError.
        """
        sent = await self._call(self._socket.send, data)
        if sent < len(data):
            with memoryview(data) as view:
                while sent < len(data):
                    sent += await self._call(self._socket.send, view[sent:])

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what has come, empty at the end of the stream; a checkpoint only if nothing is there yet.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError.
        """
        return await self._call(self._socket.recv, READ_SIZE if max_bytes is None else max_bytes)

    async def aclose(self) -> None:
        """Close the socket, without a goodbye of TLS; whoever waits for it gets trio.ClosedResourceError."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
        await trio.lowlevel.checkpoint()

    async def shake_hands(self) -> None:
        """Agree on TLS with the peer.

        Raises:
            trio.BrokenResourceError: caused by what went wrong, such as ssl.SSLCertVerificationError.
        """
        if isinstance(self._socket, ssl.SSLSocket):
            await self._call(self._socket.do_handshake)

    async def _call(self, call: Callable[..., T], *arguments: object) -> T:
        """Make a call, again as often as it would block."""
        while True:
            try:
                return call(*arguments)
            except ssl.SSLWantWriteError:
                wait = trio.lowlevel.wait_writable
            except ssl.SSLWantReadError:
                wait = trio.lowlevel.wait_readable
            except BlockingIOError:
                sends = call == self._socket.send
                wait = trio.lowlevel.wait_writable if sends else trio.lowlevel.wait_readable
            except OSError as error:
                self._check()
                raise trio.BrokenResourceError(f"the socket failed: {error}") from error
            await self._wait(wait)

    async def _wait(self, wait: Callable[[socket.socket], Awaitable[None]]) -> None:
        try:
            await wait(self._socket)
        except trio.BusyResourceError:
            # TLS has something of its own to say, for which the task of the other direction waits already.
            await trio.sleep(_BUSY_SECONDS)

    def _check(self) -> None:
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError("this stream was closed")


def wrap(sock: socket.socket, context: ssl.SSLContext, server_name: str) -> SocketStream:
    """Return a stream that speaks TLS over a connected socket once it has shaken hands; the certificate must be for `server_name`."""
    sock.setblocking(False)
    return SocketStream(
        context.wrap_socket(sock, server_hostname=server_name, do_handshake_on_connect=False)
    )
