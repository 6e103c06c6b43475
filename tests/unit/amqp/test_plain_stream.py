"""A stream that waits only when it must, over a pair of real sockets."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from iterum_sidecar.amqp.plain_stream import READ_SIZE, PlainStream

if TYPE_CHECKING:
    from collections.abc import Iterator

MUCH = bytes(range(256)) * 40_000


@contextmanager
def pair() -> Iterator[tuple[PlainStream, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield PlainStream(one), other


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
        reader = PlainStream(other)
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
