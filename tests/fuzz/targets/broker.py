"""What a broker sends: frames, methods, the properties of messages, and a whole handshake."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import trio
from pamqp import commands

from iterum_sidecar.amqp import AmqpError, ConnectionParameters, Consumer, ProtocolViolation, codec
from iterum_sidecar.amqp.channel_state import ChannelState
from iterum_sidecar.amqp.confirmations import Confirmations
from iterum_sidecar.amqp.handshake import Handshake
from iterum_sidecar.amqp.link import Link
from iterum_sidecar.amqp.properties import decode_properties, encode_properties
from iterum_sidecar.brokers.amqp import carriable
from tests.fuzz.targets.target import Target, pieces_of
from tests.unit.amqp.false_broker import frame

if TYPE_CHECKING:
    from pamqp.base import Frame as Method

__all__ = ["TARGETS"]

FRAME_MAX = 8192
LARGEST_BODY = 1000


def read_frames(data: bytes) -> None:
    """Frames are read until one is none; each of their payloads is read, or raises the package's own error."""
    reader = codec.FrameReader(FRAME_MAX)
    size = 0
    with suppress(ProtocolViolation):
        for piece in pieces_of(data):
            for kind, _, payload in reader.feed(piece):
                size += len(payload) + codec.FRAME_OVERHEAD
                decode_payload(kind, payload)
            assert len(reader._rest) < FRAME_MAX, "no more is held than an unfinished frame"
    assert size <= len(data)


def decode_payload(kind: int, payload: bytes) -> None:
    """Read a payload as each thing that it may be."""
    if kind == codec.METHOD:
        for decode in (codec.decode_method, codec.decode_deliver, codec.decode_ack):
            with suppress(ProtocolViolation):
                decode(payload)
    elif kind == codec.HEADER:
        with suppress(ProtocolViolation):
            _, properties = codec.decode_content_header(payload)
            republish(properties)


def republish(data: bytes) -> None:
    """Whatever the properties of a message: they are unreadable, or it can be put back with a reason beside them."""
    try:
        properties = decode_properties(data)
    except ProtocolViolation:
        return
    headers = {**properties.headers, "x-iterum-reason": "why", "x-iterum-attempts": 1}
    with suppress(ValueError):
        encode_properties("application/json", headers, True, None, "1", None)
    kept = carriable(headers)
    assert kept.keys() >= {"x-iterum-reason", "x-iterum-attempts"}
    encoded = encode_properties("application/json", kept, True, None, "1", None)
    assert len(encoded) < 8 * 1024
    assert decode_properties(encoded).headers.keys() == kept.keys()


async def _cancel(_: Consumer) -> None:
    await trio.lowlevel.checkpoint()


def drive_channel(data: bytes) -> None:
    """A channel that consumes and publishes takes any frames, or raises ProtocolViolation, and holds no more than it may."""
    released: list[int] = []
    link = Link(FRAME_MAX, LARGEST_BODY)
    state = ChannelState(link, 1, released.append)
    state.confirmations = Confirmations()
    confirmations = [state.confirmations.add(None) for _ in range(2)]
    consumer = Consumer("1-1", "queue", _cancel)
    state.consumers[b"1-1"] = consumer
    reader = codec.FrameReader(FRAME_MAX)
    with suppress(ProtocolViolation):
        for piece in pieces_of(data):
            for kind, _, payload in reader.feed(piece):
                if released:
                    return  # the number is free for another channel, and this state out of reach
                state.handle(kind, payload)
                assert len(state._assembler._begun) <= LARGEST_BODY
    assert len(released) <= 1
    assert link.outbox.buffered <= len(data) * 2
    for delivery in consumer._ready:
        assert len(delivery.body) <= LARGEST_BODY
    assert all(each.done for each in confirmations) or state.failure is None


class _Broker:
    """As much of a stream as a handshake needs: what is sent to it is dropped, and it says what it has to say."""

    def __init__(self, data: bytes) -> None:
        self._pieces = pieces_of(data)

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, size: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return next(self._pieces, b"")


def shake_hands(data: bytes) -> None:
    """A handshake comes to an agreement that we can keep, or to one of the package's errors."""

    async def main() -> None:
        broker = cast("trio.abc.Stream", _Broker(data))
        handshake = Handshake(broker, ConnectionParameters())
        with suppress(AmqpError):
            agreement = await handshake.run(60, "name")
            assert FRAME_MAX <= agreement.frame_max <= 131_072
            assert 0 < agreement.channel_max <= 2047
            assert 0 <= agreement.heartbeat <= 60

    trio.run(main)


def _method(method: Method, channel: int = 1) -> bytes:
    return codec.encode_method(method, channel)


_DELIVER = _method(commands.Basic.Deliver("1-1", 1, False, "", "queue"))


def _header(size: int, properties: bytes = b"\0\0") -> bytes:
    return frame(codec.HEADER, 1, struct.pack(">HHQ", 60, 0, size) + properties)


def _headers(table: bytes) -> bytes:
    return struct.pack(">HI", 0x2000, len(table)) + table


_PROPERTIES = (
    b"\0\0",
    encode_properties("application/json", {"a": 1, "b": "c"}, True, "10", "id", None),
    _headers(b"\x01kV"),
    _headers(b"\xc8" + b"k" * 200 + b"V"),
    _headers(b"\x01kS\0\0\0\x01\xff"),
    _headers(b"\x01kT" + struct.pack(">Q", 1_800_000_000_000_000)),
    _headers(b"\x01kD\xff\x7f\xff\xff\xff"),
    _headers(b"\x01kA\0\0\0\x05VVVVV"),
    _headers(b"\x01kF\0\0\0\x05\x02kkt\x01"),
    _headers(b"\x01kd\x7f\xf8\0\0\0\0\0\0"),
    _headers(b"\x01kd\xf8" + b"\0" * 7),
    _headers(b"\x01kx\0\0\0\x02\xff\xfe"),
    b"\xff\xfc" + b"\x01a" * 14,
)
_CHANNEL = (
    b"\6" + _DELIVER + _header(2) + frame(codec.BODY, 1, b"{}"),
    b"\0" + _DELIVER + _header(0),
    b"\5" + _DELIVER + _header(4) + frame(codec.BODY, 1, b"a") * 4,
    b"\6" + _DELIVER + _header(LARGEST_BODY + 1),
    b"\6" + _method(commands.Basic.Return(312, "NO_ROUTE", "", "queue")) + _header(0),
    b"\6" + _method(commands.Basic.Ack(1, True)) + _method(commands.Basic.Nack(2)),
    b"\6" + _method(commands.Basic.Cancel("1-1", False)) + _method(commands.Channel.Flow(False)),
    b"\6" + _method(commands.Channel.Close(404, "NOT_FOUND", 50, 10)),
    b"\6" + _header(2),
)
_START = commands.Connection.Start(0, 9, {"product": "RabbitMQ"}, "PLAIN AMQPLAIN", "en_US")
_HANDSHAKE = (
    b"\6"
    + _method(_START, 0)
    + _method(commands.Connection.Tune(2047, 131_072, 60), 0)
    + _method(commands.Connection.OpenOk(), 0),
    b"\0" + _method(_START, 0) + _method(commands.Connection.Tune(0, 0, 0), 0),
    b"\6" + _method(_START, 0) + _method(commands.Connection.Tune(1, 100, 1), 0),
    b"\6" + _method(commands.Connection.Close(530, "NOT_ALLOWED", 10, 40), 0),
    b"\6" + codec.PROTOCOL_HEADER,
)
_WORDS = (
    *(index.to_bytes(4) for index in sorted(commands.INDEX_MAPPING)),
    *(b"\1\0\1\0\0\0", b"\2\0\1\0\0\0", b"\3\0\1\0\0\0", b"\xce", b"\x08\0\0\0\0\0\0\xce", b"\x001-1", b"\0<\0\0"),
    *(b"\x01k" + kind for kind in (b"A", b"B", b"D", b"F", b"I", b"S", b"T", b"V", b"b", b"d", b"f", b"l", b"t", b"x")),
)  # fmt: skip

TARGETS = (
    Target(
        "amqp-frames",
        read_frames,
        (*_CHANNEL, *(b"\6" + _header(1, each) for each in _PROPERTIES), b"\6AMQP\0\0\x09\1"),
        _WORDS,
    ),
    Target("amqp-properties", republish, _PROPERTIES, _WORDS),
    Target("amqp-channel", drive_channel, _CHANNEL, _WORDS),
    Target("amqp-handshake", shake_hands, _HANDSHAKE, _WORDS),
)
