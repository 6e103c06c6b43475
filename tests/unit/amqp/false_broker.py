"""A broker that does exactly what a test tells it, in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import pytest
import trio
from pamqp import commands
from pamqp.base import Frame as Method
from pamqp.header import ContentHeader
from trio.lowlevel import ParkingLot
from trio.testing import lockstep_stream_one_way_pair, memory_stream_one_way_pair

from iterum_sidecar.amqp import ConnectionParameters, codec

if TYPE_CHECKING:
    import ssl


Answer = Callable[[Method], Method | None]
MethodT = TypeVar("MethodT", bound=Method)
ErrorT = TypeVar("ErrorT", bound=Exception)

PARAMETERS = ConnectionParameters(user="user", password="secret", vhost="pipelines")


class DeclareOk(commands.Queue.DeclareOk):
    """queue.declare-ok for a queue of any name."""

    def validate(self) -> None:
        pass


ANSWERS: dict[type[Method], Answer] = {
    commands.Connection.StartOk: lambda _: commands.Connection.Tune(2047, 131072, 60),
    commands.Connection.Open: lambda _: commands.Connection.OpenOk(),
    commands.Connection.Close: lambda _: commands.Connection.CloseOk(),
    commands.Channel.Open: lambda _: commands.Channel.OpenOk(),
    commands.Channel.Close: lambda _: commands.Channel.CloseOk(),
    commands.Confirm.Select: lambda _: commands.Confirm.SelectOk(),
    commands.Basic.Qos: lambda _: commands.Basic.QosOk(),
    commands.Basic.Consume: lambda method: commands.Basic.ConsumeOk(str(method["consumer_tag"])),
    commands.Basic.Cancel: lambda method: commands.Basic.CancelOk(str(method["consumer_tag"])),
    commands.Queue.Declare: lambda method: DeclareOk(str(method["queue"]), 7, 1),
}


def silence(_: Method) -> None:
    """Answer nothing."""


def ending_with(error: type[ErrorT], match: str | None = None) -> pytest.RaisesExc[ErrorT]:
    """Expect an error where the last line of a block is not what raises it, but the end of a context in it."""
    return pytest.raises(error, match=match)


class FalseBroker:
    """The other end of a connection's stream.

    `answers` says what each method is answered with, at first as a broker that is well would. Everything that
    came is in `received`, with its channel, in order; `send` and its like write at once.
    """

    def __init__(self, *, lockstep: bool = False) -> None:
        self.answers = dict(ANSWERS)
        self.received: list[tuple[int, object]] = []
        pair = lockstep_stream_one_way_pair if lockstep else memory_stream_one_way_pair
        client_send, self.requests = pair()
        _, self._replies = memory_stream_one_way_pair()
        self.client_stream: trio.abc.Stream = trio.StapledStream(client_send, self._replies)
        self.parameters: ConnectionParameters | None = None
        self.serving = trio.CancelScope()
        self._reader = codec.FrameReader(131072)
        self._came = ParkingLot()
        self._taken = 0

    async def stream_factory(
        self, parameters: ConnectionParameters, ssl_context: ssl.SSLContext | None
    ) -> trio.abc.Stream:
        self.parameters = parameters
        assert ssl_context is None
        return self.client_stream

    async def serve(self) -> None:
        """Read and answer until the client hangs up or `serving` is cancelled."""
        with self.serving:
            header = b""
            while len(header) < 8:
                header += await self.requests.receive_some(8 - len(header))
            assert header == codec.PROTOCOL_HEADER
            start = commands.Connection.Start(0, 9, {}, "AMQPLAIN PLAIN", "en_US")
            if self.answers.get(commands.Connection.Start) is not silence:
                self.send(start)
            await self.read()

    async def read(self) -> None:
        """Read and answer on, after a `serve` that was cancelled."""
        while data := await self.requests.receive_some(65536):
            for kind, channel, payload in self._reader.feed(bytes(data)):
                self._take(kind, channel, payload)

    def _take(self, kind: int, channel: int, payload: bytes) -> None:
        item: object = payload
        if kind == codec.METHOD:
            item = codec.decode_method(payload)
        elif kind == codec.HEADER:
            item = ContentHeader()
            item.unmarshal(payload)
        self.received.append((channel, item))
        self._came.unpark_all()
        if isinstance(item, Method):
            answer = self.answers.get(type(item), silence)(item)
            if answer is not None:
                self.send(answer, channel)

    async def wait_for(self, awaited: type[MethodT]) -> MethodT:
        """Wait for the next method of a kind, after the one that was waited for last."""
        while True:
            while self._taken == len(self.received):
                await self._came.park()
            _, item = self.received[self._taken]
            self._taken += 1
            if isinstance(item, awaited):
                return item

    def all_of(self, kind: type[MethodT]) -> list[MethodT]:
        return [item for _, item in self.received if isinstance(item, kind)]

    def write(self, data: bytes) -> None:
        self._replies.put_data(data)

    def hang_up(self) -> None:
        self._replies.put_eof()

    def send(self, method: Method, channel: int = 0) -> None:
        self.write(codec.encode_method(method, channel))

    def send_content(
        self,
        method: Method,
        body: bytes,
        *,
        channel: int = 1,
        properties: commands.Basic.Properties | None = None,
        announced: int | None = None,
        piece: int = 100_000,
    ) -> None:
        self.send(method, channel)
        header = ContentHeader(0, len(body) if announced is None else announced, properties)
        self.write(frame(codec.HEADER, channel, header.marshal()))
        for start in range(0, len(body), piece):
            self.write(frame(codec.BODY, channel, body[start : start + piece]))

    def deliver(
        self,
        number: int,
        body: bytes = b"body",
        *,
        channel: int = 1,
        consumer: int = 1,
        redelivered: bool = False,
        properties: commands.Basic.Properties | None = None,
        piece: int = 100_000,
    ) -> None:
        self.send_content(
            commands.Basic.Deliver(f"{channel}-{consumer}", number, redelivered, "", "queue"),
            body,
            channel=channel,
            properties=properties,
            piece=piece,
        )


class BrokenPipe(trio.abc.Stream):
    """A stream that cannot send any more once `broken` is set, nor be read once `reset` is."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.broken = False
        self.reset = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.broken:
            raise trio.BrokenResourceError from BrokenPipeError("broken pipe")
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self.stream.receive_some(max_bytes)
        if self.reset:
            raise trio.BrokenResourceError from ConnectionResetError("connection reset")
        return data

    async def aclose(self) -> None:
        await self.stream.aclose()


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return b"".join(
        (kind.to_bytes(), channel.to_bytes(2), len(payload).to_bytes(4), payload, b"\xce")
    )
