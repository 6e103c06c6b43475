"""The small HTTP server, over real sockets: what it answers, and what it survives."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import TypeAlias, cast

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from iterum_sidecar.telemetry import http
from iterum_sidecar.telemetry.http import Answer, Question, open_http_listeners, serve_http

END_SECONDS = 10
Connect: TypeAlias = Callable[[], Awaitable[trio.SocketStream]]


def answer(question: Question) -> Answer:
    if question.path == "/fault":
        raise RuntimeError("a fault")
    if question.path == "/nothing":
        return Answer(HTTPStatus.NOT_FOUND, "text/plain", b"nothing\n")
    return Answer(HTTPStatus.OK, "text/plain", f"{question.path} {question.accept}\n".encode())


@asynccontextmanager
async def served() -> AsyncIterator[Connect]:
    """Serve `answer` on a port of this machine, and yield what connects to it; all is closed when this is left."""
    listeners = await open_http_listeners("127.0.0.1", 0)
    port = listeners[0].socket.getsockname()[1]
    streams: list[trio.SocketStream] = []

    async def connect() -> trio.SocketStream:
        streams.append(await trio.open_tcp_stream("127.0.0.1", port))
        return streams[-1]

    with trio.fail_after(END_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_http, listeners, answer)
            try:
                yield connect
            finally:
                for stream in streams:
                    stream.socket.close()
                nursery.cancel_scope.cancel()


async def ask(stream: trio.abc.Stream, request: bytes) -> bytes:
    """Send a request and return the whole answer, by its content-length (none for HEAD)."""
    await stream.send_all(request)
    received = b""
    while b"\r\n\r\n" not in received:
        received += await some(stream)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length and not request.startswith(b"HEAD"):
        body += await some(stream)
    return head + b"\r\n\r\n" + body


async def some(stream: trio.abc.Stream) -> bytes:
    data = await stream.receive_some()
    if not data:
        raise EOFError
    return bytes(data)


GET = b"GET %s HTTP/1.1\r\nhost: sidecar\r\n%s\r\n"


async def test_a_connection_is_kept_for_the_next_request() -> None:
    async with served() as connect:
        stream = await connect()
        for number in range(3):
            said = await ask(stream, GET % (b"/path%d?query" % number, b"accept: text/a\r\n"))
            assert said.startswith(b"HTTP/1.1 200 OK\r\n")
            assert said.endswith(b"\r\n\r\n/path%d text/a\n" % number)


async def test_requests_sent_at_once_are_answered_in_their_order() -> None:
    async with served() as connect:
        stream = await connect()
        await stream.send_all(GET % (b"/one", b"") + GET % (b"/two", b"connection: close\r\n"))
        received = b""
        async for data in stream:
            received += data
        assert received.index(b"/one ") < received.index(b"/two ")


async def test_head_gets_the_head_alone() -> None:
    async with served() as connect:
        stream = await connect()
        said = await ask(stream, b"HEAD /it HTTP/1.1\r\nhost: sidecar\r\n\r\n")
        assert b"content-length: 5" in said
        assert said.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (GET % (b"/nothing", b""), b"404 Not Found"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi", b"405 Method Not Allowed"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", b"400 Bad Request"),
        (GET % (b"/", b"x: " + b"y" * 30_000 + b"\r\n"), b"431 Request Header Fields Too Large"),
        (
            b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999\r\n\r\n" + b"y" * 99_999,
            b"413 Request Entity Too Large",
        ),
        (
            b"HEAD / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999\r\n\r\n" + b"y" * 99_999,
            b"413 Request Entity Too Large",
        ),
        (b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n", b"405 Method Not Allowed"),
        (GET % (b"/", b"upgrade: websocket\r\nconnection: upgrade\r\n"), b"200 OK"),
        (b"GET /old HTTP/1.0\r\n\r\n", b"200 OK"),
        (GET % (b"/fault", b""), b"500 Internal Server Error"),
    ],
    ids=[
        *("unknown", "method", "no host", "TLS", "long head", "long body", "long body of HEAD"),
        *("CONNECT", "upgrade", "HTTP/1.0", "fault"),
    ],
)
async def test_what_is_unusual_gets_its_answer(request_bytes: bytes, status: bytes) -> None:
    async with served() as connect:
        stream = await connect()
        said = await ask(stream, request_bytes)
        assert said.split(b"\r\n")[0].lower() == b"http/1.1 " + status.lower()
        assert (await ask(await connect(), GET % (b"/still", b""))).endswith(b"/still \n")


async def test_one_connection_too_many_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "MOST_CONNECTIONS", 2)
    async with served() as limited:
        kept = [await limited() for _ in range(2)]
        for stream in kept:
            await ask(stream, GET % (b"/", b""))
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await ask(await limited(), GET % (b"/", b""))
        await kept[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert await ask(await limited(), GET % (b"/", b""))


async def test_a_slow_request_and_an_idle_connection_are_cut_off(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for sent, seconds in ((b"", http.IDLE_SECONDS), (b"GET / HT", http.REQUEST_SECONDS)):
        near, far = trio.testing.memory_stream_pair()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve, far)
            if sent:
                await near.send_all(sent)
            assert await near.receive_some() == b""
        assert trio.current_time() - began == pytest.approx(seconds)


async def _serve(stream: trio.abc.HalfCloseableStream) -> None:
    async with stream:
        await http._Connection(stream, answer).serve()


async def test_a_peer_that_goes_without_its_answer_disturbs_nobody() -> None:
    async with served() as connect:
        for _ in range(20):
            stream = await connect()
            await stream.send_all(GET % (b"/", b"") * 50)
            await stream.aclose()
        assert await ask(await connect(), GET % (b"/still", b""))


#: What requests are made of, and what breaks them.
PIECES = st.sampled_from(
    [
        *(b"GET ", b"HEAD ", b"POST ", b"CONNECT ", b"/live ", b"* ", b"HTTP/1.1", b"HTTP/1.0"),
        *(
            b"\r\n",
            b"\r\n\r\n",
            b"\n",
            b"host: a\r\n",
            b"connection: close\r\n",
            b"upgrade: h2c\r\n",
        ),
        *(b"content-length: 3\r\n", b"content-length: x\r\n", b"expect: 100-continue\r\n"),
        *(b"transfer-encoding: chunked\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b"abc", b"\0", b"\xff"),
    ]
)


@given(st.lists(PIECES, max_size=20), st.booleans())
def test_whatever_is_sent_ends_in_an_answer_or_a_close(pieces: list[bytes], whole: bool) -> None:
    async def converse() -> None:
        near, far = trio.testing.memory_stream_pair()

        async def send() -> None:
            with suppress(trio.BrokenResourceError):
                for sent in [b"".join(pieces)] if whole else pieces:
                    await near.send_all(sent)
                await near.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve, far)
            nursery.start_soon(send)
            while await near.receive_some():
                pass

    trio.run(converse, clock=trio.testing.MockClock(autojump_threshold=0))


class _NoDescriptors(trio.abc.Listener[trio.SocketStream]):
    """A listener of a process that has no descriptor free."""

    def __init__(self) -> None:
        self.asked = 0

    async def accept(self) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_that_no_connection_can_be_accepted_is_said_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    listener = _NoDescriptors()
    with trio.move_on_after(60):
        await serve_http([cast("trio.SocketListener", listener)], answer)
    assert listener.asked > 10
    (told,) = caplog.records
    assert told.name == "iterum_sidecar.telemetry.http"
    assert told.exc_info is None
