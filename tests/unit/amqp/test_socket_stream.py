"""A stream that waits only when it must, over pairs of real sockets, plain and with TLS."""

from __future__ import annotations

import socket
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest import mock

import pytest
import trio
import trio.testing
import trustme

from iterum_sidecar.amqp.socket_stream import READ_SIZE, SocketStream, wrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MUCH = bytes(range(256)) * 40_000


@contextmanager
def pair() -> Iterator[tuple[SocketStream, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield SocketStream(one), other


async def test_what_fits_is_sent_without_a_checkpoint() -> None:
    with pair() as (stream, other), trio.testing.assert_no_checkpoints():
        await stream.send_all(b"hello")
        assert other.recv(10) == b"hello"


async def test_what_is_there_is_received_without_a_checkpoint() -> None:
    with pair() as (stream, other), trio.testing.assert_no_checkpoints():
        other.sendall(b"hello")
        assert await stream.receive_some(3) == b"hel"
        assert await stream.receive_some() == b"lo"


async def test_what_does_not_fit_is_sent_as_the_peer_reads() -> None:
    with pair() as (stream, other):
        reader = SocketStream(other)
        came = bytearray()

        async def read() -> None:
            while len(came) < len(MUCH):
                came.extend(await reader.receive_some())
                await trio.lowlevel.checkpoint()

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await stream.send_all(memoryview(MUCH))
        assert bytes(came) == MUCH


async def test_a_read_takes_so_much_at_most_and_waits_for_more() -> None:
    with pair() as (stream, other), trio.fail_after(10):
        other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * READ_SIZE)
        other.sendall(bytes(READ_SIZE + 1))
        assert len(await stream.receive_some()) <= READ_SIZE
        while True:
            await stream.wait_readable()
            if len(await stream.receive_some()) == 1:
                break
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.wait_readable)
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            other.sendall(b"x")


async def test_the_peers_close_ends_reading_and_breaks_sending() -> None:
    with pair() as (stream, other):
        other.close()
        assert await stream.receive_some() == b""
        with pytest.raises(trio.BrokenResourceError, match="Broken pipe"):
            await stream.send_all(b"x")


async def test_who_waits_learns_of_our_own_close() -> None:
    with pair() as (stream, _):

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                await stream.aclose()
        for call in (stream.receive_some, lambda: stream.send_all(b"x"), stream.wait_readable):
            with pytest.raises(trio.ClosedResourceError):
                await call()
        await stream.aclose()


# -- over TLS


def answering(*answers: object) -> Callable[[], object]:
    """Return a call that raises or returns these, one after the other."""
    return mock.Mock(side_effect=answers)


async def test_who_needs_the_other_direction_does_not_get_in_its_way() -> None:
    """As when the peer asks for new keys while the socket is full: to read, something must be written first."""
    with pair() as (stream, other), trio.fail_after(10):
        read = answering(ssl.SSLWantWriteError(), ssl.SSLWantWriteError(), b"read")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, MUCH)
            await trio.testing.wait_all_tasks_blocked()
            assert await stream._call(read) == b"read"
            reader = SocketStream(other)
            came = 0
            while came < len(MUCH):
                await reader.wait_readable()
                came += len(await reader.receive_some())


async def test_the_reader_waits_on_while_the_writer_needs_its_direction() -> None:
    """As when the peer asks for new keys: to write, something must be read first, for which the reader comes to wait too."""
    with pair() as (stream, other), trio.fail_after(10):
        write = answering(ssl.SSLWantReadError(), 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream._call, write)
            await trio.testing.wait_all_tasks_blocked()
            await stream.wait_readable()
            other.send(b"read")
            await stream.wait_readable()
            assert await stream.receive_some() == b"read"


@contextmanager
def tls_pair(name: str = "here") -> Iterator[tuple[SocketStream, SocketStream]]:
    """A client's end and a server's, which have not shaken hands."""
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("here").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    one, other = socket.socketpair()
    one.setblocking(False)
    other.setblocking(False)
    server = server_context.wrap_socket(other, server_side=True, do_handshake_on_connect=False)
    client = wrap(one, client_context, name)
    with client._socket, server:
        yield client, SocketStream(server)


async def shake(one: SocketStream, other: SocketStream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.shake_hands)
        nursery.start_soon(other.shake_hands)


async def test_much_goes_both_ways_at_once_over_tls() -> None:
    with tls_pair() as (client, server), trio.fail_after(30):
        await shake(client, server)

        async def read(stream: SocketStream, came: bytearray) -> None:
            while len(came) < len(MUCH):
                await stream.wait_readable()
                came.extend(await stream.receive_some())

        at_client, at_server = bytearray(), bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, client, at_client)
            nursery.start_soon(read, server, at_server)
            nursery.start_soon(client.send_all, MUCH)
            nursery.start_soon(server.send_all, MUCH[::-1])
        assert bytes(at_server) == MUCH
        assert bytes(at_client) == MUCH[::-1]


async def test_the_rest_of_a_record_is_there_to_be_read() -> None:
    """The kernel has nothing more then, so that whoever waited for it would wait for ever."""
    with tls_pair() as (client, server), trio.fail_after(10):
        await shake(client, server)
        await server.send_all(b"hello")
        assert await client.receive_some(2) == b"he"
        await client.wait_readable()
        assert await client.receive_some() == b"llo"


async def test_a_certificate_for_another_is_refused() -> None:
    with tls_pair("elsewhere") as (client, server), trio.fail_after(10):

        async def fail() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await server.shake_hands()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            with pytest.raises(trio.BrokenResourceError) as caught:
                await client.shake_hands()
            await client.aclose()
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
