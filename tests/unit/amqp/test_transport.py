"""The one test here that uses sockets; TLS is tested against a real broker."""

from __future__ import annotations

import socket

import pytest
import trio

from iterum_sidecar.amqp import ConnectError, ConnectionParameters, open_stream
from iterum_sidecar.amqp.socket_stream import SocketStream


async def test_a_stream_goes_to_the_host_and_port_of_the_url() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    parameters = ConnectionParameters(host="127.0.0.1", port=port)
    async with listener, await open_stream(parameters, None) as stream:
        assert isinstance(stream, SocketStream)
        assert stream._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        async with await listener.accept() as other:
            await other.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
    with pytest.raises(ConnectError, match=f"cannot connect to 127.0.0.1:{port}") as caught:
        await open_stream(parameters, None)
    assert caught.value.retryable
