from __future__ import annotations

import struct
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iterum_sidecar.framing import DEFAULT_FRAME_LIMIT, FrameReader, FrameTooLong, encode_frame

PAYLOADS = st.lists(st.binary(max_size=40), max_size=8)


def feed_in_pieces(reader: FrameReader, data: bytes, cuts: list[int]) -> list[bytes]:
    frames: list[bytes] = []
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        frames += reader.feed(data[start:end])
    return frames


@given(payloads=PAYLOADS, cuts=st.lists(st.integers(min_value=0), max_size=20))
def test_any_split_of_the_bytes_gives_the_same_frames(
    payloads: list[bytes], cuts: list[int]
) -> None:
    reader = FrameReader()
    data = b"".join(map(encode_frame, payloads))
    assert feed_in_pieces(reader, data, cuts) == payloads
    assert reader.buffered == 0


@given(payloads=PAYLOADS)
def test_bytes_that_come_one_by_one_give_each_frame_at_its_last_byte(
    payloads: list[bytes],
) -> None:
    reader = FrameReader()
    frames: list[bytes] = []
    for payload in payloads:
        frame = encode_frame(payload)
        for number in range(len(frame) - 1):
            assert list(reader.feed(frame[number : number + 1])) == []
            assert reader.buffered == number + 1
        frames += reader.feed(frame[-1:])
        assert reader.buffered == 0
    assert frames == payloads


@given(payloads=PAYLOADS, rest=st.binary(max_size=30))
def test_an_unfinished_frame_is_held_and_counted(payloads: list[bytes], rest: bytes) -> None:
    reader = FrameReader()
    unfinished = encode_frame(rest + b"!")[:-1]
    assert list(reader.feed(b"".join(map(encode_frame, payloads)) + unfinished)) == payloads
    assert reader.buffered == len(unfinished)
    assert list(reader.feed(b"!")) == [rest + b"!"]


@given(
    payloads=PAYLOADS,
    claimed=st.integers(41, 2**32 - 1),
    cuts=st.lists(st.integers(min_value=0), max_size=5),
)
def test_a_claim_above_the_limit_is_refused_with_the_frames_before_it_delivered(
    payloads: list[bytes], claimed: int, cuts: list[int]
) -> None:
    reader = FrameReader(limit=40)
    data = b"".join(map(encode_frame, payloads))
    delivered = feed_in_pieces(reader, data, cuts)
    announced = encode_frame(b"last") + struct.pack("<I", claimed) + b"more"
    with pytest.raises(FrameTooLong) as caught:
        delivered.extend(reader.feed(announced))
    assert delivered == [*payloads, b"last"]
    assert (caught.value.claimed, caught.value.limit) == (claimed, 40)


def test_a_claim_is_refused_as_soon_as_its_four_bytes_are_there() -> None:
    reader = FrameReader(limit=1024)
    assert list(reader.feed(b"\x01\x04\x00")) == []
    with pytest.raises(FrameTooLong, match=r"1,025 bytes was announced, the limit is 1,024"):
        list(reader.feed(b"\x00"))


def test_a_frame_of_exactly_the_limit_passes() -> None:
    assert list(FrameReader(limit=5).feed(encode_frame(b"12345"))) == [b"12345"]


def test_an_empty_frame_is_a_frame() -> None:
    assert list(FrameReader().feed(b"\0\0\0\0" * 3)) == [b"", b"", b""]


def test_a_claim_allocates_nothing() -> None:
    reader = FrameReader()
    tracemalloc.start()
    try:
        assert list(reader.feed(struct.pack("<I", DEFAULT_FRAME_LIMIT) + b"x")) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024
    assert reader.buffered == 5


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_frame_stays_what_it_was_when_the_buffer_it_came_in_is_used_again(
    kind: type[bytes | bytearray | memoryview],
) -> None:
    data = bytearray(encode_frame(b"hello"))
    given_data = kind(data)
    frames = list(FrameReader().feed(given_data))
    data[:] = bytes(len(data))
    assert frames == [b"hello"]


def test_the_length_is_little_endian_and_counts_bytes() -> None:
    assert encode_frame("é".encode() * 150) == b"\x2c\x01\x00\x00" + "é".encode() * 150
