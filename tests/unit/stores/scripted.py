"""A server that says exactly what a test tells it to, to whoever asks, over real sockets."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LOCAL = "127.0.0.1"


class Act(Enum):
    """What the server does besides sending bytes."""

    CLOSE = auto()
    RESET = auto()
    SILENCE = auto()
    """Nothing more comes, and the connection stays open."""
    AT_ONCE = auto()
    """First in an answer: it comes before the request's body is read, and that never is."""
    GATE = auto()
    """Wait for `Scripted.gate`."""


Answer = bytes | Sequence[bytes | Act]


@dataclass
class Scripted:
    """The server's script, and what it saw.

    Each request takes the next answer of `script`; the last one serves for all that follow.
    """

    script: list[Answer]
    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connections: int = 0
    open_connections: int = 0
    gate: trio.Event = field(default_factory=trio.Event)
    asked: trio.Event = field(default_factory=trio.Event)
    next_request: trio.Event = field(default_factory=trio.Event)
    closed: trio.Event = field(default_factory=trio.Event)

    def request_lines(self) -> list[str]:
        return [request.partition(b"\r\n")[0].decode() for request in self.requests]

    async def until_requests(self, count: int) -> None:
        """Wait until so many requests at least have come."""
        while len(self.requests) < count:
            await self.next_request.wait()

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        self.open_connections += 1
        try:
            async with stream:
                while await self._serve_one(stream):
                    pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.open_connections -= 1
            self.closed.set()

    async def _serve_one(self, stream: trio.SocketStream) -> bool:
        received = b""
        while b"\r\n\r\n" not in received:
            data = await stream.receive_some()
            if not data:
                return False
            received += data
        head, _, body = received.partition(b"\r\n\r\n")
        self.requests.append(head)
        self.asked.set()
        self.next_request.set()
        self.next_request = trio.Event()
        steps = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(steps, bytes):
            steps = [steps]
        if steps[0] is not Act.AT_ONCE:
            length = int(header(head, "content-length") or 0)
            while len(body) < length:
                data = await stream.receive_some()
                if not data:
                    return False
                body += data
            self.bodies.append(body)
        for step in steps:
            if isinstance(step, bytes):
                await stream.send_all(step)
            elif step is Act.SILENCE:
                await trio.sleep_forever()
            elif step is Act.GATE:
                await self.gate.wait()
            elif step is not Act.AT_ONCE:
                if step is Act.RESET:
                    stream.socket.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                return False
        return True


def header(head: bytes, name: str) -> str | None:
    """A request's header, None when it is absent."""
    for line in head.decode().split("\r\n")[1:]:
        found, _, value = line.partition(": ")
        if found.lower() == name:
            return value
    return None


def answer(status: int, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """An answer with a length; `length` announces another one than the body's. What is no failure has an ETag, as with every store."""
    lines = [f"HTTP/1.1 {status} Whatever", *headers]
    if status == 200 and not any(each.lower().startswith("etag:") for each in headers):
        lines.append('ETag: "an-etag"')
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def error(status: int, code: str, *headers: str) -> bytes:
    """An S3 error."""
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>Why.</Message></Error>'
    return answer(status, body.encode(), *headers)


@asynccontextmanager
async def scripted(*script: Answer) -> AsyncIterator[Scripted]:
    """Run a server with this script."""
    server = Scripted(list(script))
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, server.serve, 0, host=LOCAL))
        server.port = listeners[0].socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()
