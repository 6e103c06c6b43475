"""From a fresh stream to an open connection: start, tune, open (section 2.2.4)."""

from __future__ import annotations

import platform
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import trio
from pamqp import commands

from iterum_sidecar.amqp import codec
from iterum_sidecar.amqp.errors import (
    ACCESS_REFUSED,
    NOT_ALLOWED,
    AccessRefused,
    ConnectError,
    ConnectionClosedByBroker,
    EndedAfterTls,
    HandshakeTimeout,
    ProtocolViolation,
)
from iterum_sidecar.amqp.methods import spec_name
from iterum_sidecar.amqp.socket_stream import READ_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pamqp.base import Frame as Method

    from iterum_sidecar.amqp.parameters import ConnectionParameters

# RabbitMQ itself gives a client 10 s for the whole handshake; a broker that needs longer for one step is not well.
STEP_SECONDS = 10.0

# What RabbitMQ offers by default: large enough that few bodies are cut, small enough to share the line.
FRAME_MAX = 131_072
# RabbitMQ 4.1 and later refuse less, and nobody offers less.
FRAME_MAX_AT_LEAST = 8192
# RabbitMQ's own default; a broker that sets no limit would make ours 65535, and nobody opens so many on purpose.
CHANNEL_MAX = 2047

_CAPABILITIES = {
    "authentication_failure_close": True,
    "basic.nack": True,
    "connection.blocked": True,
    "consumer_cancel_notify": True,
    "publisher_confirms": True,
}

MethodT = TypeVar("MethodT", bound="Method")


class Agreement(NamedTuple):
    """What both sides agreed on: bytes in a frame, the highest channel, and seconds between heartbeats (0: none)."""

    frame_max: int
    channel_max: int
    heartbeat: int


class Handshake:
    """One handshake over `stream`; frames that come after it are left in `frames`, what the broker says of itself in `server_properties`."""

    def __init__(self, stream: trio.abc.Stream, parameters: ConnectionParameters) -> None:
        self.reader = codec.FrameReader(codec.INITIAL_FRAME_MAX)
        self.frames: Iterator[codec.RawFrame] = iter(())
        self.server_properties: Mapping[str, object] = {}
        self._stream = stream
        self._parameters = parameters

    async def run(self, heartbeat: int, connection_name: str) -> Agreement:
        """Open the connection.

        Raises HandshakeTimeout, AccessRefused, ConnectError (EndedAfterTls at the first step over TLS) when the
        stream ends or the broker cannot do what is needed, ConnectionClosedByBroker, and ProtocolViolation.
        """
        start = await self._exchange(codec.PROTOCOL_HEADER, commands.Connection.Start)
        self.server_properties = start.server_properties or {}
        if "PLAIN" not in str(start.mechanisms).split():
            raise ConnectError(
                f"the broker offers no PLAIN, only {start.mechanisms}", retryable=False
            )
        tune = await self._exchange(self._start_ok(connection_name), commands.Connection.Tune)
        agreement = agree(tune, heartbeat)
        tune_ok = commands.Connection.TuneOk(
            channel_max=agreement.channel_max,
            frame_max=agreement.frame_max,
            heartbeat=agreement.heartbeat,
        )
        self.reader.frame_max = agreement.frame_max
        opening = commands.Connection.Open(virtual_host=self._parameters.vhost)
        await self._exchange(
            codec.encode_method(tune_ok, 0) + codec.encode_method(opening, 0),
            commands.Connection.OpenOk,
        )
        return agreement

    def _start_ok(self, connection_name: str) -> bytes:
        start_ok = commands.Connection.StartOk(
            client_properties={
                "product": "iterum_sidecar.amqp",
                "platform": f"Python {platform.python_version()}, Trio {trio.__version__}",
                "connection_name": connection_name,
                "capabilities": dict(_CAPABILITIES),
            },
            mechanism="PLAIN",
            response=f"\0{self._parameters.user}\0{self._parameters.password}",
            locale="en_US",
        )
        frame = codec.encode_method(start_ok, 0)
        if len(frame) > codec.INITIAL_FRAME_MAX:
            raise ValueError(
                f"user, password and connection name do not fit into {codec.INITIAL_FRAME_MAX} bytes"
            )
        return frame

    async def _exchange(self, request: bytes, awaited: type[MethodT]) -> MethodT:
        step = spec_name(awaited.name)
        with trio.move_on_after(STEP_SECONDS):
            try:
                await self._stream.send_all(request)
                return await self._receive(awaited, step)
            except trio.BrokenResourceError as error:
                reason = error.__cause__ or error
                raise self._ended(awaited, f"broke while {step} was awaited: {reason}") from error
        raise HandshakeTimeout(step, STEP_SECONDS)

    async def _receive(self, awaited: type[MethodT], step: str) -> MethodT:
        while True:
            for kind, channel, payload in self.frames:
                if kind == codec.HEARTBEAT:
                    continue
                if kind != codec.METHOD or channel:
                    raise ProtocolViolation(f"a frame of type {kind} while {step} was awaited")
                method = codec.decode_method(payload)
                if isinstance(method, awaited):
                    return method
                if isinstance(method, commands.Connection.Close):
                    await self._refused(method)
                raise ProtocolViolation(f"{spec_name(method.name)} while {step} was awaited")
            data = await self._stream.receive_some(READ_SIZE)
            if not data:
                raise self._ended(awaited, f"ended while {step} was awaited")
            self.frames = self.reader.feed(bytes(data))
            # A peer that sends without end must not keep the deadline from being noticed.
            await trio.lowlevel.checkpoint()

    def _ended(self, awaited: type[Method], how: str) -> ConnectError:
        parameters = self._parameters
        is_first = awaited is commands.Connection.Start
        kind = EndedAfterTls if parameters.tls and is_first else ConnectError
        return kind(f"the connection to {parameters.host}:{parameters.port} {how}")

    async def _refused(self, close: commands.Connection.Close) -> None:
        code, text = close.reply_code or 0, close.reply_text or ""
        close_ok = codec.encode_method(commands.Connection.CloseOk(), 0)
        # The broker has said all it had to say, and need not hear this.
        with suppress(trio.BrokenResourceError):
            await self._stream.send_all(close_ok)
        if code in (ACCESS_REFUSED, NOT_ALLOWED):
            raise AccessRefused(self._parameters.user, self._parameters.vhost, code, text)
        raise ConnectionClosedByBroker(code, text)


def agree(tune: commands.Connection.Tune, heartbeat: int) -> Agreement:
    """Answer the broker's offer; 0 means no limit there. Raises ConnectError if its frames are too small."""
    frame_max = min(tune.frame_max or FRAME_MAX, FRAME_MAX)
    if frame_max < FRAME_MAX_AT_LEAST:
        raise ConnectError(
            f"the broker's frame_max of {frame_max} is under {FRAME_MAX_AT_LEAST} bytes",
            retryable=False,
        )
    return Agreement(
        frame_max=frame_max,
        channel_max=min(tune.channel_max or CHANNEL_MAX, CHANNEL_MAX),
        heartbeat=min(tune.heartbeat or heartbeat, heartbeat),
    )
