"""The properties of a message, both ways.

These are on the path of every message, where pamqp's attribute-by-attribute loops cost more than all the rest of
a delivery; field tables and timestamps inside them are still pamqp's.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pamqp import decode, encode

from iterum_sidecar.amqp.errors import ProtocolViolation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from pamqp.common import FieldValue

    Headers: TypeAlias = Mapping[str, FieldValue]

# A field's name is cut silently by pamqp beyond this, which AMQP 0-9-1 (4.2.5.5) sets as the limit.
FIELD_NAME_LIMIT = 128
SHORT_STRING_LIMIT = 255
PERSISTENT = 2

NO_HEADERS: Headers = MappingProxyType({})

_CONTENT_TYPE = 0x8000
_HEADERS = 0x2000
_DELIVERY_MODE = 0x1000
_EXPIRATION = 0x0100
_MESSAGE_ID = 0x0080
_TIMESTAMP = 0x0040


class Properties(NamedTuple):
    """What a publisher said about a message; None where it said nothing."""

    content_type: str | None = None
    content_encoding: str | None = None
    headers: Headers = NO_HEADERS
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: datetime | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None


NO_PROPERTIES = Properties()

_SHORT_STRING, _OCTET, _TABLE, _MOMENT = range(4)

# In the order of their flags, which is the order on the wire; cluster-id, the fourteenth, is deprecated and unused.
_LAYOUT = (
    (0x8000, 0, _SHORT_STRING),
    (0x4000, 1, _SHORT_STRING),
    (0x2000, 2, _TABLE),
    (0x1000, 3, _OCTET),
    (0x0800, 4, _OCTET),
    (0x0400, 5, _SHORT_STRING),
    (0x0200, 6, _SHORT_STRING),
    (0x0100, 7, _SHORT_STRING),
    (0x0080, 8, _SHORT_STRING),
    (0x0040, 9, _MOMENT),
    (0x0020, 10, _SHORT_STRING),
    (0x0010, 11, _SHORT_STRING),
    (0x0008, 12, _SHORT_STRING),
)
# Cluster-id, and the bit that announces a further word of flags, which the basic class never needs.
_UNUSED_FLAGS = 0x0007


@lru_cache(maxsize=64)
def _present(flags: int) -> tuple[tuple[int, int], ...]:
    """Return index and kind of each property that `flags` announces; publishers use few combinations."""
    return tuple((index, kind) for mask, index, kind in _LAYOUT if flags & mask)


def decode_properties(data: bytes) -> Properties:
    """Decode the flags and property list of a content header; raises ProtocolViolation."""
    try:
        flags = data[0] << 8 | data[1]
        if not flags:
            return NO_PROPERTIES
        if flags & _UNUSED_FLAGS:
            raise ValueError(f"unknown property flags {flags:#06x}")
        values: list[object] = list(NO_PROPERTIES)
        position = 2
        for index, kind in _present(flags):
            if kind == _SHORT_STRING:
                start = position + 1
                position = start + data[position]
                values[index] = data[start:position].decode()
            elif kind == _OCTET:
                values[index] = data[position]
                position += 1
            elif kind == _TABLE:
                end = position + 4 + int.from_bytes(data[position : position + 4])
                values[index] = _table(data[position:end])
                position = end
            else:
                values[index] = _moment(data[position : position + 8])
                position += 8
        if position != len(data):
            raise ValueError(f"{len(data)} bytes of properties, where {position} were announced")
    # pamqp raises what its parts raise: ValueError, KeyError, OverflowError, RecursionError and more.
    except Exception as error:
        raise ProtocolViolation(f"unreadable message properties: {error!r}") from error
    return Properties._make(values)


def _table(data: bytes) -> Headers:
    """Decode a table; one that the codec cannot read is taken for an empty one, because its message is still good."""
    try:
        return MappingProxyType(decode.field_table(data)[1])
    # pamqp raises what its parts raise: a moment that is out of range, a type that it does not know.
    except Exception:
        return NO_HEADERS


def _moment(data: bytes) -> datetime | None:
    """Decode a timestamp; one beyond Python's years (some publishers count milliseconds) is taken for none."""
    try:
        return decode.timestamp(data)[1]
    except (OverflowError, ValueError, OSError):
        return None


def encode_short_string(value: str) -> bytes:
    """Encode a string of at most 255 bytes in UTF-8; raises ValueError."""
    data = value.encode()
    if len(data) > SHORT_STRING_LIMIT:
        raise ValueError(f"longer than {SHORT_STRING_LIMIT} bytes: {value[:40]!r}...")
    return len(data).to_bytes() + data


@lru_cache(maxsize=64)
def _constant_part(content_type: str | None, persistent: bool, more_flags: int) -> bytes:
    flags = more_flags
    parts = []
    if content_type is not None:
        flags |= _CONTENT_TYPE
        parts.append(encode_short_string(content_type))
    if persistent:
        flags |= _DELIVERY_MODE
        parts.append(PERSISTENT.to_bytes())
    return b"".join((flags.to_bytes(2), *parts))


def encode_properties(
    content_type: str | None,
    headers: Headers | None,
    persistent: bool,
    expiration: str | None,
    message_id: str | None,
    timestamp: datetime | None,
) -> bytes:
    """Encode the flags and property list of a content header; raises ValueError for what AMQP cannot carry."""
    if not headers and expiration is None and timestamp is None:
        if message_id is None:
            return _constant_part(content_type, persistent, 0)
        return _constant_part(content_type, persistent, _MESSAGE_ID) + encode_short_string(
            message_id
        )
    flags = 0
    parts = []
    fields: tuple[tuple[int, object, Callable[..., bytes]], ...] = (
        (_CONTENT_TYPE, content_type, encode_short_string),
        (_HEADERS, headers or None, _encode_headers),
        (_DELIVERY_MODE, PERSISTENT if persistent else None, int.to_bytes),
        (_EXPIRATION, expiration, encode_short_string),
        (_MESSAGE_ID, message_id, encode_short_string),
        (_TIMESTAMP, timestamp, encode.timestamp),
    )
    for flag, value, encoder in fields:
        if value is not None:
            flags |= flag
            parts.append(encoder(value))
    return b"".join((flags.to_bytes(2), *parts))


def encode_all_properties(properties: Properties) -> bytes:
    """Encode the flags and property list of a message as it came, or nearly so; raises ValueError for what AMQP cannot carry."""
    encoders: tuple[Callable[..., bytes], ...] = (
        encode_short_string,
        int.to_bytes,
        _encode_headers,
        encode.timestamp,
    )
    flags = 0
    parts = []
    for flag, index, kind in _LAYOUT:
        value = properties[index]
        if value is not None and (kind != _TABLE or value):
            flags |= flag
            parts.append(encoders[kind](value))
    return b"".join((flags.to_bytes(2), *parts))


def _encode_headers(headers: Headers) -> bytes:
    table = dict(headers)
    try:
        _check_names(table)
        return encode.field_table(table)
    # Besides what no type fits: a double that is too large for pamqp's float, and tables that are nested too deep.
    except (TypeError, ArithmeticError, struct.error, RecursionError) as error:
        raise ValueError(f"AMQP cannot carry these headers: {error}") from error


def _check_names(value: object) -> None:
    if isinstance(value, dict):
        for name in value:
            if len(name.encode()) > FIELD_NAME_LIMIT:
                raise ValueError(f"a header's name exceeds {FIELD_NAME_LIMIT} bytes: {name!r}")
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            _check_names(each)
