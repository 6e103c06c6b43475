"""AMQP 0-9-1 frames to and from bytes, without any I/O.

A frame is `type:octet channel:short size:long payload end:octet` (section 2.3.5). `FrameReader` cuts the stream
into frames; the payloads of method frames are pamqp's to decode, save for the few that come or go with
every message (basic.deliver, basic.publish, basic.ack, basic.nack and the content header), which are packed by hand here.

Rules of this file:

1. A peer's bytes raise ProtocolViolation and nothing else.
2. Every byte is copied a bounded number of times, however the stream is cut up.
3. No payload keeps the chunk alive in which it came.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from pamqp import commands

from iterum_sidecar.amqp.errors import ProtocolViolation
from iterum_sidecar.amqp.properties import encode_short_string

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pamqp.base import Frame as Method

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
_FRAME_TYPES = frozenset({METHOD, HEADER, BODY, HEARTBEAT})
_FRAME_END = 0xCE
_END = b"\xce"

# Seven bytes before a payload and one after it: a frame of frame_max carries so much less.
FRAME_OVERHEAD = 8

# RabbitMQ 4.1 and later read and send up to this much before frame_max is negotiated, and refuse to go under it.
INITIAL_FRAME_MAX = 8192

DELIVER = commands.Basic.Deliver.index.to_bytes(4)
ACK = commands.Basic.Ack.index.to_bytes(4)
CONFIRMS = (ACK, commands.Basic.Nack.index.to_bytes(4))
CHANNEL_CLASS = commands.Channel.frame_id.to_bytes(2)

HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"

_PUBLISH = commands.Basic.Publish.index.to_bytes(4)
_BASIC_CLASS = commands.Basic.Properties.frame_id

_frame_header = struct.Struct(">BHI")
_ack_frame = struct.Struct(">BHIHHQBB")
_ack_payload = struct.Struct(">IQB")
_deliver_middle = struct.Struct(">Q?")
_content_header = struct.Struct(">HHQ")
_content_header_frame = struct.Struct(">BHIHHQ")

RawFrame: TypeAlias = tuple[int, int, bytes]
"""A frame's type, channel and payload."""


class FrameReader:
    """Cuts a stream of bytes into frames.

    A frame longer than `frame_max` bytes, overhead included, raises ProtocolViolation before it is awaited.
    """

    def __init__(self, frame_max: int = INITIAL_FRAME_MAX) -> None:
        self.frame_max = frame_max
        self._rest = bytearray()
        self._needed = 0

    def feed(self, data: bytes) -> Iterator[RawFrame]:
        """Yield the frames that `data` completes; exhaust the iterator before the next call.

        Raises ProtocolViolation at the first byte that cannot belong to a frame, after the frames before it.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest = bytearray()
        unpack = _frame_header.unpack_from
        size = len(data)
        position = 0
        self._needed = FRAME_OVERHEAD
        while size - position >= FRAME_OVERHEAD:
            kind, channel, length = unpack(data, position)
            start = position + 7
            end = start + length
            if kind not in _FRAME_TYPES:
                raise _not_a_frame(data[position:])
            if length > self.frame_max - FRAME_OVERHEAD:
                raise ProtocolViolation(
                    f"a frame of {length + FRAME_OVERHEAD} bytes, where {self.frame_max} are the limit"
                )
            if end >= size:
                self._needed = length + FRAME_OVERHEAD
                break
            if data[end] != _FRAME_END:
                raise ProtocolViolation(f"a frame that ends with {data[end]:#04x}")
            yield kind, channel, data[start:end]
            position = end + 1
        if position < size:
            self._rest += data[position:] if position else data


def _not_a_frame(data: bytes) -> ProtocolViolation:
    if data.startswith(b"AMQP"):
        version = ".".join(str(number) for number in data[4:8])
        return ProtocolViolation(f"the peer speaks AMQP {version}, not 0-9-1")
    return ProtocolViolation(f"this is not an AMQP frame: {data[:16]!r}")


def decode_method(payload: bytes) -> Method:
    """Decode the payload of a method frame with pamqp; raises ProtocolViolation."""
    try:
        index = int.from_bytes(payload[:4])
        method: Method = commands.INDEX_MAPPING[index]()
        method.unmarshal(payload[4:])
    # pamqp raises what its parts raise: KeyError, ValueError, OverflowError, RecursionError and more.
    except Exception as error:
        raise ProtocolViolation(f"an unreadable method: {error!r}") from error
    return method


def decode_deliver(payload: bytes) -> tuple[bytes, int, bool, str, str]:
    """Decode basic.deliver: consumer tag, delivery tag, redelivered, exchange, routing key."""
    try:
        middle = 5 + payload[4]
        delivery_tag, redelivered = _deliver_middle.unpack_from(payload, middle)
        exchange, routing_key = _decode_route(payload[middle + 9 :])
    except (IndexError, struct.error, ValueError) as error:
        raise ProtocolViolation(f"an unreadable basic.deliver: {error!r}") from error
    return payload[5:middle], delivery_tag, redelivered, exchange, routing_key


@lru_cache(maxsize=64)
def _decode_route(data: bytes) -> tuple[str, str]:
    """Decode exchange and routing key, which are the same in nearly every delivery."""
    middle = 1 + data[0]
    if len(data) != middle + 1 + data[middle]:
        raise ValueError("a short string of the wrong length")
    return data[1:middle].decode(), data[middle + 1 :].decode()


def decode_ack(payload: bytes) -> tuple[int, bool]:
    """Decode basic.ack or basic.nack: delivery tag and `multiple`."""
    try:
        _, delivery_tag, bits = _ack_payload.unpack_from(payload)
    except struct.error as error:
        raise ProtocolViolation(f"an unreadable acknowledgement: {error!r}") from error
    return delivery_tag, bool(bits & 1)


def decode_content_header(payload: bytes) -> tuple[int, bytes]:
    """Decode a content header: the body's size, and the properties as they stand on the wire."""
    try:
        class_id, _, body_size = _content_header.unpack_from(payload)
    except struct.error as error:
        raise ProtocolViolation(f"an unreadable content header: {error!r}") from error
    if class_id != _BASIC_CLASS:
        raise ProtocolViolation(f"a content header of class {class_id}")
    return body_size, payload[12:]


def encode_method(method: Method, channel: int) -> bytes:
    """Encode a method frame with pamqp; raises ValueError for what AMQP cannot carry."""
    try:
        payload = method.index.to_bytes(4) + method.marshal()
    except (TypeError, struct.error) as error:
        raise ValueError(f"{method.name} cannot be encoded: {error}") from error
    return b"".join((_frame_header.pack(METHOD, channel, len(payload)), payload, _END))


def encode_ack(channel: int, delivery_tag: int, multiple: bool) -> bytes:
    """Encode a frame of basic.ack."""
    return _ack_frame.pack(METHOD, channel, 13, 60, 80, delivery_tag, multiple, _FRAME_END)


def encode_requeue(channel: int, delivery_tag: int) -> bytes:
    """Encode a frame of basic.nack for one delivery, with requeue."""
    return _ack_frame.pack(METHOD, channel, 13, 60, 120, delivery_tag, 0b10, _FRAME_END)


@lru_cache(maxsize=256)
def encode_publish(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    """Encode a frame of basic.publish; cached, since a program publishes to few places."""
    payload = b"".join(
        (
            _PUBLISH,
            b"\x00\x00",
            encode_short_string(exchange),
            encode_short_string(routing_key),
            mandatory.to_bytes(),
        )
    )
    return b"".join((_frame_header.pack(METHOD, channel, len(payload)), payload, _END))


def encode_message(
    publish: bytes, channel: int, properties: bytes, body: bytes, frame_max: int
) -> list[bytes | memoryview]:
    """Encode all frames of a message after its `publish` frame, in the pieces that make them up.

    A body is cut so that each frame, with its own 8 bytes, holds at most `frame_max` bytes; big ones are not copied.
    Raises ValueError when the properties alone exceed a frame, which AMQP has no way to split.
    """
    size = len(body)
    header_size = 12 + len(properties)
    room = frame_max - FRAME_OVERHEAD
    if header_size > room:
        raise ValueError(
            f"headers of {len(properties)} bytes do not fit into a frame of {frame_max}"
        )
    header = _content_header_frame.pack(HEADER, channel, header_size, _BASIC_CLASS, 0, size)
    if not size:
        return [publish + header + properties + _END]
    if size <= room:
        body_header = _frame_header.pack(BODY, channel, size)
        return [b"".join((publish, header, properties, _END, body_header)), body, _END]
    pieces: list[bytes | memoryview] = [publish, header, properties, _END]
    view = memoryview(body)
    for start in range(0, size, room):
        part = view[start : start + room]
        pieces += (_frame_header.pack(BODY, channel, len(part)), part, _END)
    return pieces
