"""A connected socket, plain or TLS, that waits only when a call would block.

`trio.SocketStream` yields to the scheduler in every send and receive. A request of 4 KiB then costs
a fifth more, since nearly every send goes straight into the kernel's buffer. Here the system call
comes first and `trio.lowlevel.wait_readable` / `wait_writable` only after EAGAIN. What Trio's
streams promise by that is left to the caller: `Connection.exchange` looks for cancellation once in
each request, and long bodies yield by the megabyte.

Each wait has its own deadline, so that no peer can hold a task for ever.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = [
    "CertificateRefused",
    "ConnectFailed",
    "ConnectionLost",
    "Deadlines",
    "NoAnswer",
    "NoDescriptor",
    "StepTimeout",
    "Transport",
    "TransportError",
    "connect",
]

# One piece of a large body. It bounds what is copied at once and how long a single write to the
# volume can hold up the other tasks: about 0.1 ms on tmpfs.
CHUNK: Final = 256 * 1024

# A fast peer may keep the socket ready for the length of a whole body. After this many bytes
# without a wait, the other tasks get a turn: about 3 ms when an MD5 is computed on the way.
YIELD_EVERY: Final = 1024 * 1024


# What sendfile(2) answers about a file that it cannot send, such as one on some FUSE volumes...
_NO_SENDFILE: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EOVERFLOW})
# ... and about one that cannot be read. Everything else is about the socket.
_FILE_ERRORS: Final = frozenset({errno.EIO, errno.EBADF, errno.ESTALE})


# What socket(2) and connect(2) answer about us, and not about the peer.
_OUR_WANT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


class TransportError(Exception):
    """The connection failed; `code` is a short name that tells how."""

    code = "TransportError"


class ConnectFailed(TransportError):
    """No connection came about: refused, unroutable, an unknown name, or TLS could not be agreed."""

    code = "ConnectFailed"


class NoDescriptor(ConnectFailed):
    """This process or machine has no descriptor or memory free; `code` is errno's name for it."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.code = errno.errorcode[number]


class CertificateRefused(TransportError):
    """The server's certificate is not one that our TLS context trusts for this host."""

    code = "CertificateRefused"


class ConnectionLost(TransportError):
    """The peer closed or reset the connection in the middle of a request."""

    code = "ConnectionLost"


class StepTimeout(TransportError):
    """A step did not end, or did not advance, in its time."""

    code = "Timeout"


class NoAnswer(StepTimeout):
    """The head of the answer did not come in its time."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds that each step of a request may take; each is a bound of its own."""

    connect: float = 5.0
    """Name resolution and TCP handshake. Inside a cluster both take milliseconds; a lost SYN is
    sent again after 1 and 3 s, so 5 s forgives two losses."""

    handshake: float = 10.0
    """TLS. Two round trips and one signature, on a server that may be busy with many others."""

    answer: float = 10.0
    """From the last byte of the request to the end of the answer's head. A store that has lost our
    request never answers, and as long as we wait for it after its return nothing goes on. One that is
    slow gets more: twice as long each time (`client`), since AWS's own clients wait for 60 s."""

    progress: float = 20.0
    """Between two moments at which a body advances by at least a byte. TCP itself retransmits for
    minutes, but a store that is silent for this long in mid-body has always been gone."""


@final
class Transport:
    """The two directions of one connection; one task at a time.

    It is closed by `close` and by nothing else: after any exception, `Cancelled` included, what was
    on its way is half sent or half read, and the caller must close it.
    """

    __slots__ = ("_plain", "_receive_into", "_send", "_socket")

    def __init__(self, sock: socket.socket) -> None:
        """Take over `sock`, which is connected, non-blocking, and past its TLS handshake if any."""
        self._socket = sock
        self._plain = not isinstance(sock, ssl.SSLSocket)
        self._send = sock.send
        self._receive_into = sock.recv_into

    def close(self) -> None:
        """Close the socket without a goodbye; HTTP needs none, and TLS bodies carry their length.

        A task that waits on it is woken with `trio.ClosedResourceError`.
        """
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def is_fresh(self, scratch: memoryview) -> bool:
        """Tell whether nothing has come since the last answer: neither an end nor stray bytes.

        Either makes the connection unfit for another request. `scratch` is overwritten.
        """
        try:
            self._receive_into(scratch)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    async def send(self, data: bytes, seconds: float) -> None:
        """Send all of `data`; at most `seconds` pass without progress.

        Raises:
            ConnectionLost, StepTimeout.
        """
        sent = await self._send_some(data, seconds)
        if sent < len(data):
            with memoryview(data) as view:
                while sent < len(data):
                    sent += await self._send_some(view[sent:], seconds)

    async def send_file(self, file: int, offset: int, size: int, seconds: float) -> int:
        """Send `size` bytes of the descriptor `file` from `offset`; return how many there were.

        Fewer than `size` means that the file has ended. The kernel copies straight from the page
        cache where TLS does not forbid it. Reading may wait for a disk; the bytes have just been
        hashed for the signature, so they are in memory unless memory is short.

        Raises:
            ConnectionLost, StepTimeout.
            OSError: the file could not be read.
        """
        sent = 0
        last_yield = 0
        while sent < size:
            wanted = min(CHUNK, size - sent)
            count = None
            if self._plain:
                count = await self._sendfile_some(file, offset + sent, wanted, seconds)
            if count is None:
                chunk = os.pread(file, wanted, offset + sent)
                await self.send(chunk, seconds)
                count = len(chunk)
            if count == 0:
                break
            sent += count
            if sent - last_yield >= YIELD_EVERY:
                last_yield = sent
                await trio.lowlevel.checkpoint()
        return sent

    async def receive_into(self, view: memoryview, seconds: float) -> int:
        """Fill as much of `view` as one call gives; 0 is the end of the stream.

        Raises:
            ConnectionLost, StepTimeout.
        """
        while True:
            try:
                return self._receive_into(view)
            except (BlockingIOError, ssl.SSLWantReadError):
                wait = trio.lowlevel.wait_readable
            except ssl.SSLWantWriteError:
                wait = trio.lowlevel.wait_writable
            except OSError as error:
                raise ConnectionLost(_reason(error)) from error
            await self._wait(wait, seconds, "nothing came")

    async def until_readable(self) -> None:
        """Wait until the peer has sent something, or has closed; there is no deadline here."""
        await trio.lowlevel.wait_readable(self._socket)

    async def _send_some(self, data: bytes | memoryview, seconds: float) -> int:
        while True:
            try:
                return self._send(data)
            except (BlockingIOError, ssl.SSLWantWriteError):
                wait = trio.lowlevel.wait_writable
            except ssl.SSLWantReadError:
                wait = trio.lowlevel.wait_readable
            except OSError as error:
                raise ConnectionLost(_reason(error)) from error
            await self._wait(wait, seconds, "no byte of the request was taken")

    async def _sendfile_some(self, file: int, offset: int, size: int, seconds: float) -> int | None:
        while True:
            try:
                return os.sendfile(self._socket.fileno(), file, offset, size)
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno in _NO_SENDFILE:
                    return None
                if error.errno in _FILE_ERRORS:
                    raise
                raise ConnectionLost(_reason(error)) from error
            await self._wait(trio.lowlevel.wait_writable, seconds, "no byte of the body was taken")

    async def _wait(
        self, wait: Callable[[socket.socket], Awaitable[None]], seconds: float, what: str
    ) -> None:
        with trio.move_on_after(seconds) as scope:
            await wait(self._socket)
        if scope.cancelled_caught:
            raise StepTimeout(f"{what} for {seconds:g} s")


async def connect(
    host: str,
    port: int,
    context: ssl.SSLContext | None,
    deadlines: Deadlines,
    server_name: str = "",
) -> Transport:
    """Open a connection, through TLS when there is a `context`.

    The certificate must be for `server_name`, or for `host` where that is empty. The addresses of
    `host` are tried as RFC 8305 ("happy eyeballs") says.

    Raises:
        ConnectFailed, CertificateRefused, StepTimeout.
    """
    sock = await _connect_tcp(host, port, deadlines.connect)
    if context is None:
        return Transport(sock)
    try:
        # The handshake is ours to drive, since the socket does not block.
        wrapped = context.wrap_socket(
            sock, server_hostname=server_name or host, do_handshake_on_connect=False
        )
    except BaseException:
        sock.close()
        raise
    try:
        await _handshake(wrapped, deadlines.handshake)
    except BaseException:
        wrapped.close()
        raise
    return Transport(wrapped)


async def _connect_tcp(host: str, port: int, seconds: float) -> socket.socket:
    stream = None
    with trio.move_on_after(seconds):
        try:
            stream = await trio.open_tcp_stream(host, port)
        except OSError as error:
            want = _our_want(error)
            raise (NoDescriptor(want) if want else ConnectFailed(_reasons(error))) from error
        except UnicodeError as error:
            raise ConnectFailed("that is no host's name") from error
    if stream is None:
        raise StepTimeout(f"no connection came about within {seconds:g} s")
    # Trio has set TCP_NODELAY; from here on it need not know the socket.
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    _send_as_much_as_fits(sock)
    return sock


def _send_as_much_as_fits(sock: socket.socket) -> None:
    """Undo what Trio sets for interactive streams: to be writable only when less than 16 KiB wait to be sent (TCP_NOTSENT_LOWAT).

    A large body would be sent in pieces of that size, and wait for room after nearly every one.
    """
    # As Trio has it: not every kernel that Python knows the name for has the option too.
    with suppress(AttributeError, OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)  # the system's own


async def _handshake(sock: ssl.SSLSocket, seconds: float) -> None:
    with trio.move_on_after(seconds) as scope:
        while True:
            try:
                sock.do_handshake()
                return
            except ssl.SSLWantReadError:
                wait = trio.lowlevel.wait_readable
            except ssl.SSLWantWriteError:
                wait = trio.lowlevel.wait_writable
            except ssl.SSLCertVerificationError as error:
                reason = error.verify_message or str(error)
                raise CertificateRefused(f"its certificate is refused: {reason}") from error
            except OSError as error:
                raise ConnectFailed(f"TLS could not be agreed: {_reason(error)}") from error
            await wait(sock)
    if scope.cancelled_caught:
        raise StepTimeout(f"the TLS handshake did not end within {seconds:g} s")


def _our_want(error: OSError) -> int:
    """Return the errno of an attempt that failed for want of a descriptor or memory here; 0 if none did."""
    causes = error.__cause__
    attempts = causes.exceptions if isinstance(causes, ExceptionGroup) else (error,)
    numbers = (each.errno for each in attempts if isinstance(each, OSError))
    return next((number for number in numbers if number in _OUR_WANT), None) or 0


def _reasons(error: OSError) -> str:
    """Return why no address of a host could be connected to; what Trio says of them all names no reason."""
    causes = error.__cause__
    attempts = causes.exceptions if isinstance(causes, ExceptionGroup) else (causes,)
    told = [
        os.strerror(each.errno) for each in attempts if isinstance(each, OSError) and each.errno
    ]
    return ", ".join(dict.fromkeys(told)) or _reason(error)


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
