from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands
from pamqp.frame import unmarshal
from pamqp.header import ContentHeader

from iterum_sidecar.amqp import ProtocolViolation, codec
from tests.unit.amqp.false_broker import frame

FRAME_MAX = 8192
ROOM = FRAME_MAX - codec.FRAME_OVERHEAD

raw_frames = st.tuples(
    st.sampled_from([codec.METHOD, codec.HEADER, codec.BODY, codec.HEARTBEAT]),
    st.integers(0, 65535),
    st.binary(max_size=300) | st.sampled_from([b"", b"x" * (ROOM - 1), b"x" * ROOM]),
)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(edges)]


@settings(deadline=None)
@given(st.lists(raw_frames, max_size=8), st.lists(st.integers(min_value=0), max_size=30))
def test_frames_are_the_same_however_the_bytes_are_cut(
    frames: list[codec.RawFrame], cuts: list[int]
) -> None:
    data = b"".join(frame(*each) for each in frames)
    reader = codec.FrameReader(FRAME_MAX)
    assert [each for piece in pieces_of(data, cuts) for each in reader.feed(piece)] == frames


@settings(deadline=None)  # kilobytes in single bytes take their time
@given(st.lists(raw_frames, max_size=3))
def test_frames_come_byte_by_byte(frames: list[codec.RawFrame]) -> None:
    data = b"".join(frame(*each) for each in frames)
    reader = codec.FrameReader(FRAME_MAX)
    assert [each for byte in data for each in reader.feed(bytes([byte]))] == frames


def read(data: bytes, cuts: list[int]) -> tuple[list[codec.RawFrame], bool]:
    reader = codec.FrameReader(FRAME_MAX)
    frames = []
    try:
        for piece in pieces_of(data, cuts):
            for each in reader.feed(piece):
                frames.append(each)  # noqa: PERF402 - those before an error count
    except ProtocolViolation:
        return frames, True
    return frames, False


@given(
    st.lists(raw_frames, max_size=3),
    st.binary(max_size=40),
    st.lists(st.integers(min_value=0), max_size=10),
)
def test_garbage_raises_the_typed_error_after_the_frames_before_it(
    frames: list[codec.RawFrame], garbage: bytes, cuts: list[int]
) -> None:
    data = b"".join(frame(*each) for each in frames) + garbage
    found, _ = outcome = read(data, cuts)
    assert found[: len(frames)] == frames
    assert outcome == read(data, [])


def test_a_frame_over_the_limit_is_refused_before_it_has_come() -> None:
    reader = codec.FrameReader(FRAME_MAX)
    whole = frame(codec.BODY, 1, b"x" * (ROOM + 1))
    with pytest.raises(ProtocolViolation, match="8193 bytes, where 8192"):
        list(reader.feed(whole[:8]))


def test_a_wrong_frame_end_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="ends with 0xcd"):
        list(codec.FrameReader().feed(frame(codec.BODY, 1, b"x")[:-1] + b"\xcd"))


def test_another_version_of_the_protocol_is_called_by_its_name() -> None:
    with pytest.raises(ProtocolViolation, match=r"the peer speaks AMQP 0\.1\.0\.0"):
        list(codec.FrameReader().feed(b"AMQP\x00\x01\x00\x00"))


def test_a_payload_is_an_object_of_its_own() -> None:
    [(_, _, payload)] = codec.FrameReader().feed(frame(codec.BODY, 1, b"payload"))
    assert type(payload) is bytes


@given(st.binary(max_size=200))
def test_no_payload_raises_anything_but_the_typed_error(payload: bytes) -> None:
    for decode in (
        codec.decode_method,
        codec.decode_deliver,
        codec.decode_ack,
        codec.decode_content_header,
    ):
        with suppress(ProtocolViolation):
            decode(payload)


@given(st.sampled_from(sorted(commands.INDEX_MAPPING)), st.binary(max_size=200))
def test_no_arguments_of_a_known_method_raise_anything_but_the_typed_error(
    index: int, arguments: bytes
) -> None:
    with suppress(ProtocolViolation):
        codec.decode_method(index.to_bytes(4) + arguments)


def test_tables_nested_without_end_raise_the_typed_error() -> None:
    table = b""
    for _ in range(5000):
        table = b"\x01kF" + len(table).to_bytes(4) + table
    start = commands.Connection.Start.index.to_bytes(4) + b"\x00\x09"
    with pytest.raises(ProtocolViolation, match="RecursionError"):
        codec.decode_method(start + len(table).to_bytes(4) + table + bytes(8))


names = st.text(max_size=60)


@given(names, st.integers(1, 2**63), st.booleans(), names, names)
def test_deliver_is_read_as_pamqp_reads_it(
    tag: str, number: int, redelivered: bool, exchange: str, routing_key: str
) -> None:
    method = commands.Basic.Deliver(tag, number, redelivered, "", routing_key)
    method.exchange = exchange
    payload = method.index.to_bytes(4) + b"".join(
        (
            len(tag.encode()).to_bytes(),
            tag.encode(),
            number.to_bytes(8),
            redelivered.to_bytes(),
            len(exchange.encode()).to_bytes(),
            exchange.encode(),
            len(routing_key.encode()).to_bytes(),
            routing_key.encode(),
        )
    )
    assert codec.decode_deliver(payload) == (
        tag.encode(),
        number,
        redelivered,
        exchange,
        routing_key,
    )


@given(st.integers(1, 65535), st.integers(1, 2**62), st.booleans())
def test_acknowledgements_are_what_pamqp_makes(channel: int, tag: int, multiple: bool) -> None:
    ack = codec.encode_method(commands.Basic.Ack(tag, multiple), channel)
    assert codec.encode_ack(channel, tag, multiple) == ack
    assert codec.decode_ack(ack[7:-1]) == (tag, multiple)
    nack = codec.encode_method(commands.Basic.Nack(tag, False, True), channel)
    assert codec.encode_requeue(channel, tag) == nack


def test_publish_is_what_pamqp_makes() -> None:
    for mandatory in (False, True):
        method = commands.Basic.Publish(0, "exchange", "key", mandatory)
        expected = codec.encode_method(method, 3)
        assert codec.encode_publish(3, "exchange", "key", mandatory) == expected


@settings(deadline=None)
@given(
    st.sampled_from([0, 1, ROOM - 1, ROOM, ROOM + 1, 2 * ROOM - 1, 2 * ROOM, 2 * ROOM + 1])
    | st.integers(0, 3 * ROOM)
)
def test_a_body_is_cut_with_room_for_each_frames_own_bytes(size: int) -> None:
    body = bytes(index % 251 for index in range(size))
    publish = codec.encode_publish(5, "", "queue", True)
    pieces = codec.encode_message(publish, 5, b"\x00\x00", body, FRAME_MAX)
    data = b"".join(pieces)
    frames = list(codec.FrameReader(FRAME_MAX).feed(data))
    assert [kind for kind, _, _ in frames[:2]] == [codec.METHOD, codec.HEADER]
    assert {channel for _, channel, _ in frames} == {5}
    assert codec.decode_content_header(frames[1][2]) == (size, b"\x00\x00")
    bodies = [payload for kind, _, payload in frames[2:] if kind == codec.BODY]
    assert b"".join(bodies) == body
    assert len(bodies) == len(frames) - 2 == -(-size // ROOM)
    # pamqp reads the same.
    consumed, _, _ = unmarshal(data)
    _, _, header = unmarshal(data[consumed:])
    assert isinstance(header, ContentHeader)
    assert header.body_size == size


def test_properties_that_exceed_a_frame_are_refused() -> None:
    assert codec.encode_message(b"", 1, b"x" * (ROOM - 12), b"", FRAME_MAX)
    with pytest.raises(ValueError, match="do not fit"):
        codec.encode_message(b"", 1, b"x" * (ROOM - 11), b"", FRAME_MAX)


def test_a_content_header_of_another_class_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="class 90"):
        codec.decode_content_header(b"\x00\x5a" + bytes(12))


def test_what_a_method_cannot_carry_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"Basic\.Qos"):
        codec.encode_method(commands.Basic.Qos(prefetch_count=65536), 1)
