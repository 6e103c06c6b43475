"""One connection and one server that says what the test tells it to."""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.stores.http1 import (
    KEPT_LIMIT,
    Answer,
    BadAnswer,
    Connection,
    FileEnded,
    Request,
    ShortBody,
)
from iterum_sidecar.stores.transport import (
    CHUNK,
    ConnectFailed,
    ConnectionLost,
    Deadlines,
    StepTimeout,
    connect,
)
from tests.unit.stores.contract import KIB, MIB, memory_file
from tests.unit.stores.scripted import LOCAL, Act, answer, scripted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Long enough for any answer that does come, short enough to wait for one that does not.
SHORT = 0.1
PATIENT = Deadlines(connect=20, handshake=20, answer=20, progress=20)
GET = b"GET /bucket/key HTTP/1.1\r\nhost: here\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Collected:
    """A sink that remembers everything."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.heads: list[Answer] = []

    def begin(self, answer: Answer) -> None:
        self.heads.append(answer)

    def write(self, data: bytes | memoryview) -> None:
        self.pieces.append(bytes(data))

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


@asynccontextmanager
async def connected(port: int, deadlines: Deadlines = PATIENT) -> AsyncIterator[Connection]:
    connection = Connection(await connect(LOCAL, port, None, deadlines), deadlines)
    try:
        yield connection
    finally:
        connection.close()


def put_head(size: int) -> bytes:
    return f"PUT /bucket/key HTTP/1.1\r\nContent-Length: {size}\r\n\r\n".encode()


async def test_an_answer() -> None:
    async with scripted(answer(200, b"body", "ETag: x")) as server, connected(server.port) as conn:
        sink = Collected()
        found = await conn.exchange(Request(GET, sink=sink))
        assert (found.status, found.header(b"etag"), found.body) == (200, "x", b"")
        assert sink.body == b"body"
        assert sink.heads == [found]
        assert conn.reusable
        assert conn.is_fresh()
        assert "200" in repr(found)


async def test_many_answers_on_one_connection() -> None:
    script = [answer(200, bytes([n]) * n * 50_000) for n in range(10)]
    async with scripted(*script) as server, connected(server.port) as conn:
        for number in range(10):
            sink = Collected()
            await conn.exchange(Request(GET, sink=sink))
            assert sink.body == bytes([number]) * number * 50_000
            assert conn.reusable
        assert server.connections == 1


@pytest.mark.parametrize("size", [100 * KIB, 256 * KIB])
async def test_a_small_body_is_written_once(size: int) -> None:
    body = bytes(size)
    async with scripted(answer(200, body)) as server, connected(server.port) as conn:
        sink = Collected()
        await conn.exchange(Request(GET, sink=sink))
        assert sink.pieces == [body]


async def test_a_large_body_comes_in_bounded_pieces() -> None:
    body = bytes(range(256)) * 20_000
    async with scripted(answer(200, body)) as server, connected(server.port) as conn:
        sink = Collected()
        await conn.exchange(Request(GET, sink=sink))
        assert sink.body == body
        assert {len(piece) for piece in sink.pieces[:-1]} == {256 * KIB}


async def test_an_answer_byte_by_byte() -> None:
    whole = answer(200, b"body", "X-A: b")
    pieces = [whole[i : i + 1] for i in range(len(whole))]
    async with scripted(pieces) as server, connected(server.port) as conn:
        sink = Collected()
        found = await conn.exchange(Request(GET, sink=sink))
        assert found.header(b"x-a") == "b"
        assert sink.body == b"body"
        assert conn.reusable


async def test_chunks() -> None:
    chunks = CHUNKED + b"4\r\nwiki\r\n5;x=y\r\npedia\r\n0\r\nTrailer: t\r\n\r\n"
    halves = [chunks[:60], chunks[60:]]
    async with scripted(halves, chunks) as server, connected(server.port) as conn:
        for _ in range(2):
            sink = Collected()
            await conn.exchange(Request(GET, sink=sink))
            assert sink.body == b"wikipedia"
            assert conn.reusable


async def test_what_follows_the_last_chunk_changes_nothing_of_the_head() -> None:
    chunks = CHUNKED + b"4\r\nwiki\r\n0\r\nETag: other\r\nX: y\r\n\r\n"
    for pieces in ([chunks], [chunks[:60], chunks[60:]]):
        async with scripted(pieces) as server, connected(server.port) as conn:
            found = await conn.exchange(Request(GET))
            assert (found.body, found.headers) == (b"wiki", {b"transfer-encoding": b"chunked"})


@pytest.mark.parametrize("more", [b"X: y\r\n", b"x", b"0"])
async def test_a_body_that_goes_on_and_says_nothing(more: bytes) -> None:
    """Trailers without end, one trailer without end, and a chunk's length without end."""
    end = b"" if more == b"0" else b"0\r\n"
    script: list[bytes | Act] = [
        CHUNKED + b"4\r\nwiki\r\n" + end,
        *([more * (KIB * 16)] * 64),
        Act.SILENCE,
    ]
    async with scripted(script) as server, connected(server.port) as conn:
        with pytest.raises(BadAnswer):
            await conn.exchange(Request(GET))
        assert not conn.reusable


async def test_many_chunks() -> None:
    chunks = CHUNKED + b"".join(b"8000\r\n" + bytes(0x8000) + b"\r\n" for _ in range(64))
    async with scripted(chunks + b"0\r\n\r\n") as server, connected(server.port) as conn:
        sink = Collected()
        await conn.exchange(Request(GET, sink=sink))
        assert sink.body == bytes(2 * MIB)


async def test_errors_are_kept_and_not_given_to_the_sink() -> None:
    async with scripted(answer(404, b"<Error/>")) as server, connected(server.port) as conn:
        sink = Collected()
        found = await conn.exchange(Request(GET, sink=sink))
        assert found.body == b"<Error/>"
        assert sink.heads == []
        assert conn.reusable


async def test_an_empty_object() -> None:
    async with scripted(answer(200)) as server, connected(server.port) as conn:
        sink = Collected()
        await conn.exchange(Request(GET, sink=sink))
        assert len(sink.heads) == 1
        assert sink.body == b""
        assert conn.reusable


async def test_an_answer_to_head_has_a_length_and_no_body() -> None:
    async with scripted(answer(200, length=1234)) as server, connected(server.port) as conn:
        for _ in range(2):
            found = await conn.exchange(Request(GET, is_head=True))
            assert found.header(b"content-length") == "1234"
            assert conn.reusable


async def test_no_content() -> None:
    async with (
        scripted(b"HTTP/1.1 204 No Content\r\n\r\n") as server,
        connected(server.port) as conn,
    ):
        for _ in range(2):
            assert (await conn.exchange(Request(GET))).status == 204
            assert conn.reusable


async def test_interim_answers_are_left_out() -> None:
    interim = b"HTTP/1.1 100 Continue\r\nX-Not: this\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n"
    async with (
        scripted([interim, answer(200, b"body")], interim + answer(200)) as server,
        connected(server.port) as conn,
    ):
        for _ in range(2):
            found = await conn.exchange(Request(GET))
            assert found.status == 200
            assert found.header(b"x-not") == ""
            assert conn.reusable


@pytest.mark.parametrize(
    "whole",
    [
        answer(200, b"body", "Connection: close"),
        answer(200, b"body").replace(b"1.1", b"1.0"),
        answer(200, b"body") + b"stray bytes",
        answer(200, b"body") + answer(200, b"another body"),
        answer(200) + answer(404),
    ],
)
async def test_answers_after_which_the_connection_is_not_used_again(whole: bytes) -> None:
    async with scripted(whole) as server, connected(server.port) as conn:
        found = await conn.exchange(Request(GET))
        assert found.status == 200
        assert found.body in (b"body", b"")
        assert not conn.reusable


async def test_stray_bytes_that_come_later() -> None:
    async with (
        scripted([answer(200), Act.GATE, b"stray", Act.CLOSE]) as server,
        connected(server.port) as conn,
    ):
        await conn.exchange(Request(GET))
        assert conn.reusable
        assert conn.is_fresh()
        server.gate.set()
        await server.closed.wait()
        assert not conn.is_fresh()


async def test_a_body_without_a_length_is_kept_but_never_an_object() -> None:
    endless: list[bytes | Act] = [b"HTTP/1.1 500 Oh\r\n\r\nwhy", Act.CLOSE]
    headless: list[bytes | Act] = [b"HTTP/1.1 200 OK\r\n\r\nhalf an object?", Act.CLOSE]
    async with scripted(endless, headless) as server:
        async with connected(server.port) as conn:
            assert (await conn.exchange(Request(GET))).body == b"why"
            assert not conn.reusable
        async with connected(server.port) as conn:
            with pytest.raises(BadAnswer, match="no length"):
                await conn.exchange(Request(GET, sink=Collected()))


@pytest.mark.parametrize(
    "whole",
    [
        b"garbage\r\n\r\n",
        b"\0" * 100,
        b"HTTP/1.1 abc\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        CHUNKED + b"zz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
    ],
    ids=lambda whole: ascii(whole[:60]),
)
async def test_what_is_no_answer(whole: bytes) -> None:
    async with scripted([whole, Act.SILENCE]) as server, connected(server.port) as conn:
        with pytest.raises(BadAnswer):
            await conn.exchange(Request(GET, sink=Collected()))
        assert not conn.reusable
        assert conn.answer_begun


async def test_a_body_that_is_too_long_to_keep() -> None:
    long: list[bytes | Act] = [answer(500, length=10**12)[:], *([bytes(MIB)] * 9)]
    async with scripted(long) as server, connected(server.port) as conn:
        with pytest.raises(BadAnswer, match=str(KEPT_LIMIT)):
            await conn.exchange(Request(GET))


@pytest.mark.parametrize("end", [Act.CLOSE, Act.RESET])
@pytest.mark.parametrize(
    ("begun", "kinds"),
    [
        (b"", (ConnectionLost,)),
        (b"HTTP/1.1 200 O", (ConnectionLost,)),
        (answer(200, b"half", length=8), (ShortBody, ConnectionLost)),
        (CHUNKED + b"4\r\nwi", (ShortBody, ConnectionLost)),
    ],
)
async def test_an_end_in_the_middle(
    begun: bytes, kinds: tuple[type[Exception], ...], end: Act
) -> None:
    steps: list[bytes | Act] = [begun, end] if begun else [end]
    async with scripted(steps) as server, connected(server.port) as conn:
        with pytest.raises(kinds):
            await conn.exchange(Request(GET, sink=Collected()))
        assert not conn.reusable
        if end is Act.CLOSE:
            assert conn.answer_begun is bool(begun)


@pytest.mark.parametrize(
    "begun", [b"", b"HTTP/1.1 200 O", answer(200, b"half", length=8), CHUNKED + b"4\r\nwi"]
)
async def test_silence_in_an_answer(begun: bytes) -> None:
    deadlines = Deadlines(answer=SHORT, progress=SHORT)
    steps: list[bytes | Act] = [begun, Act.SILENCE] if begun else [Act.SILENCE]
    async with scripted(steps) as server, connected(server.port, deadlines) as conn:
        with pytest.raises(StepTimeout, match=f"{SHORT:g} s"):
            await conn.exchange(Request(GET, sink=Collected()))
        assert not conn.reusable


async def test_a_request_may_wait_longer_for_its_answer() -> None:
    deadlines = Deadlines(answer=0.0)
    async with scripted(answer(200)) as server, connected(server.port, deadlines) as conn:
        assert (await conn.exchange(Request(GET, answer_seconds=20))).status == 200


async def test_a_server_that_does_not_read() -> None:
    deadlines = Deadlines(progress=SHORT)
    async with scripted([Act.AT_ONCE, Act.SILENCE]) as server:
        async with connected(server.port, deadlines) as conn:
            with memory_file(bytes(32 * MIB)) as file:
                request = Request(put_head(32 * MIB), file=file, size=32 * MIB)
                with pytest.raises(StepTimeout, match="was taken"):
                    await conn.exchange(request)
        async with connected(server.port, deadlines) as conn:
            with pytest.raises(StepTimeout, match="was taken"):
                await conn.exchange(Request(put_head(32 * MIB) + bytes(32 * MIB)))


async def test_a_body_from_a_file() -> None:
    content = bytes(range(256)) * 12_000
    async with scripted(answer(200)) as server, connected(server.port) as conn:
        with memory_file(content) as file:
            size = len(content) - 1000
            await conn.exchange(Request(put_head(size), file=file, offset=500, size=size))
        assert server.bodies == [content[500:-500]]


async def test_a_file_that_ends_early() -> None:
    async with scripted(answer(200)) as server, connected(server.port) as conn:
        with memory_file(bytes(MIB)) as file, pytest.raises(FileEnded):
            await conn.exchange(Request(put_head(2 * MIB), file=file, size=2 * MIB))
        assert not conn.reusable


async def test_an_early_refusal_is_read_although_the_rest_is_not_taken() -> None:
    refusal = answer(403, b"<Error/>", "Connection: close")
    async with (
        scripted([Act.AT_ONCE, refusal, Act.CLOSE]) as server,
        connected(server.port) as conn,
    ):
        with memory_file(bytes(64 * MIB)) as file:
            request = Request(put_head(64 * MIB), file=file, size=64 * MIB)
            found = await conn.exchange(request)
        assert (found.status, found.body) == (403, b"<Error/>")
        assert not conn.reusable


async def test_a_sink_that_fails() -> None:
    class Full(Collected):
        def write(self, data: bytes | memoryview) -> None:
            raise OSError("no space")

    async with scripted(answer(200, b"body")) as server, connected(server.port) as conn:
        with pytest.raises(OSError, match="no space"):
            await conn.exchange(Request(GET, sink=Full()))
        assert not conn.reusable


@pytest.mark.parametrize(
    "steps", [[Act.SILENCE], [answer(200, length=9), Act.SILENCE], [Act.AT_ONCE, Act.SILENCE]]
)
async def test_cancellation(steps: list[bytes | Act]) -> None:
    async with scripted(steps) as server, connected(server.port) as conn:
        with memory_file(bytes(32 * MIB)) as file:
            size = 32 * MIB if Act.AT_ONCE in steps else 0
            request = Request(put_head(size), file=file, size=size, sink=Collected())
            with trio.move_on_after(SHORT) as scope:
                await conn.exchange(request)
        assert scope.cancelled_caught
        assert not conn.reusable


async def test_cancelled_before_anything_is_sent() -> None:
    async with scripted(answer(200)) as server, connected(server.port) as conn:
        with trio.CancelScope() as scope:
            scope.cancel()
            await conn.exchange(Request(GET))
        assert scope.cancelled_caught
        assert server.requests == []


async def test_closing_wakes_who_waits() -> None:
    async with scripted([Act.SILENCE]) as server, connected(server.port) as conn:

        async def ask() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await conn.exchange(Request(GET))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await server.asked.wait()
            conn.close()


async def test_nobody_listens() -> None:
    with trio.socket.socket() as sock:
        await sock.bind((LOCAL, 0))
        with pytest.raises(ConnectFailed):
            await connect(LOCAL, sock.getsockname()[1], None, PATIENT)
    with pytest.raises(ConnectFailed):
        await connect("no-such-host.invalid", 80, None, PATIENT)


async def test_a_connection_that_does_not_come_about(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_arguments: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(trio, "open_tcp_stream", never)
    with pytest.raises(StepTimeout, match="no connection"):
        await connect(LOCAL, 1, None, Deadlines(connect=SHORT))


async def test_a_handshake_that_does_not_end() -> None:
    async with scripted(answer(200)) as server:
        context = ssl.create_default_context()
        with pytest.raises(StepTimeout, match="handshake"):
            await connect(LOCAL, server.port, context, Deadlines(handshake=SHORT))


async def test_a_server_without_tls() -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host=LOCAL)

        async def no_tls(stream: trio.SocketStream) -> None:
            async with stream:
                await stream.receive_some()
                await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        nursery.start_soon(trio.serve_listeners, no_tls, listeners)
        port = listeners[0].socket.getsockname()[1]
        with pytest.raises(ConnectFailed, match="TLS"):
            await connect(LOCAL, port, ssl.create_default_context(), PATIENT)
        nursery.cancel_scope.cancel()


async def test_a_large_body_waits_for_no_mark_of_trios() -> None:
    """Trio's 16 KiB of what may wait to be sent (TCP_NOTSENT_LOWAT) would cut each body into pieces of that size."""
    async with scripted(answer(200)) as server, connected(server.port) as connection:
        sock = connection._transport._socket
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 0


async def test_a_connection_that_has_read_nothing_takes_little_memory() -> None:
    """Its buffer is for large bodies, and the kernel gives each page of it when it is first touched."""
    async with scripted(answer(200)) as server:
        transport = await connect(LOCAL, server.port, None, PATIENT)
        before = resident_bytes()
        kept = [Connection(transport, PATIENT) for _ in range(100)]
        assert resident_bytes() - before < len(kept) * CHUNK / 4
        transport.close()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
