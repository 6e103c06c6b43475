from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands

from iterum_sidecar.amqp import Properties, ProtocolViolation
from iterum_sidecar.amqp.properties import (
    NO_PROPERTIES,
    decode_properties,
    encode_all_properties,
    encode_properties,
    encode_short_string,
)

short = st.text(min_size=1, max_size=60)
moments = st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=st.just(UTC)).map(
    lambda moment: moment.replace(microsecond=0)
)
# At most 120 bytes, where a name may have 128.
names = st.text(max_size=30)
values = st.recursive(
    st.text() | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.none() | moments,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=10,
)
headers = st.dictionaries(names, values, max_size=5)


def optional(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.none() | strategy


@given(
    st.fixed_dictionaries(
        {
            "content_type": optional(short),
            "headers": optional(headers),
            "persistent": st.booleans(),
            "expiration": optional(short),
            "message_id": optional(short),
            "timestamp": optional(moments),
        }
    )
)
def test_what_we_encode_pamqp_encodes_alike_and_we_decode(fields: dict[str, object]) -> None:
    data = encode_properties(**fields)  # type: ignore[arg-type]
    delivery_mode = 2 if fields.pop("persistent") else None
    fields["headers"] = fields["headers"] or None
    known = commands.Basic.Properties(delivery_mode=delivery_mode, **fields)  # type: ignore[arg-type]
    assert data == known.marshal()
    decoded = decode_properties(data)
    assert decoded.headers == (fields.pop("headers") or {})
    assert decoded.delivery_mode == delivery_mode
    assert {name: getattr(decoded, name) for name in fields} == fields


@given(
    st.builds(
        Properties,
        optional(short),
        optional(short),
        headers,
        optional(st.sampled_from([1, 2])),
        optional(st.integers(0, 255)),
        *[optional(short)] * 4,
        optional(moments),
        *[optional(short)] * 3,
    )
)
def test_a_message_can_go_on_with_all_that_it_came_with(properties: Properties) -> None:
    data = encode_all_properties(properties)
    fields = properties._asdict()
    known = commands.Basic.Properties(
        headers=fields.pop("headers") or None, message_type=fields.pop("type"), **fields
    )
    assert data == known.marshal()
    assert decode_properties(data) == properties


def test_every_property_is_decoded() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    everything = commands.Basic.Properties(
        "text/plain", "gzip", {"a": [1]}, 1, 9, "correlation", "reply", "1000", "id", moment,
        "type", "user", "app",
    )  # fmt: skip
    assert decode_properties(everything.marshal()) == Properties(
        "text/plain", "gzip", {"a": [1]}, 1, 9, "correlation", "reply", "1000", "id", moment,
        "type", "user", "app",
    )  # fmt: skip


def test_no_properties() -> None:
    assert decode_properties(b"\x00\x00") is NO_PROPERTIES
    assert NO_PROPERTIES.headers == {}


def test_headers_cannot_be_changed() -> None:
    decoded = decode_properties(commands.Basic.Properties(headers={"a": 1}).marshal())
    with pytest.raises(TypeError):
        decoded.headers["a"] = 2  # type: ignore[index]


@given(st.binary(max_size=100))
def test_garbage_raises_the_typed_error_alone(data: bytes) -> None:
    with suppress(ProtocolViolation):
        decode_properties(data)


@given(st.integers(0, 65535), st.binary(max_size=100))
def test_garbage_behind_any_flags_raises_the_typed_error_alone(flags: int, data: bytes) -> None:
    with suppress(ProtocolViolation):
        decode_properties(flags.to_bytes(2) + data)


def test_a_string_cut_off_at_the_end_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="were announced"):
        decode_properties(b"\x80\x00\x05abc")


def test_limits_of_names() -> None:
    assert encode_short_string("ä" * 127) == b"\xfe" + ("ä" * 127).encode()
    with pytest.raises(ValueError, match="255 bytes"):
        encode_short_string("ä" * 128)
    assert encode_properties(None, {"ä" * 64: 1}, True, None, None, None)
    for table in ({"ä" * 65: 1}, {"a": {"ä" * 65: 1}}, {"a": [1, {"ä" * 65: 1}]}):
        with pytest.raises(ValueError, match="128 bytes"):
            encode_properties(None, table, True, None, None, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot carry"):
        encode_properties(None, {"a": 2**64}, True, None, None, None)
