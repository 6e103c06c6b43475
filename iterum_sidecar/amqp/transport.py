"""How a byte stream to the broker comes to be; tests and tunnels bring their own `StreamFactory`."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

import trio

from iterum_sidecar.amqp.errors import ConnectError
from iterum_sidecar.amqp.socket_stream import SocketStream, wrap

if TYPE_CHECKING:
    from iterum_sidecar.amqp.parameters import ConnectionParameters

StreamFactory: TypeAlias = Callable[
    ["ConnectionParameters", ssl.SSLContext | None], Awaitable[trio.abc.Stream]
]
"""Makes a connected stream, TLS included where a context is given; raises ConnectError or OSError."""


async def open_stream(
    parameters: ConnectionParameters, ssl_context: ssl.SSLContext | None
) -> trio.abc.Stream:
    """Connect by TCP, and by TLS over it when there is a context.

    The certificate has to match `parameters.server_name`, or the host where that is empty, as the context demands. Raises ConnectError, which is
    retryable unless the certificate was refused.
    """
    host, port = parameters.host, parameters.port
    try:
        opened = await trio.open_tcp_stream(host, port)
    except OSError as error:
        raise ConnectError(f"cannot connect to {host}:{port}: {error}") from error
    # Trio has set TCP_NODELAY; from here on it need not know the socket.
    sock = socket.socket(fileno=opened.socket.detach())
    if ssl_context is None:
        return SocketStream(sock)
    try:
        stream = wrap(sock, ssl_context, parameters.server_name or host)
    except BaseException:
        sock.close()
        raise
    try:
        await stream.shake_hands()
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(stream)
        reason = error.__cause__ or error
        refused = isinstance(reason, ssl.SSLCertVerificationError)
        raise ConnectError(
            f"cannot speak TLS with {host}:{port}: {reason}", retryable=not refused
        ) from error
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream
