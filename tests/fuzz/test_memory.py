"""What is held of a stranger's message is bounded by what came of it, whatever it says."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.amqp.content import ContentAssembler
from iterum_sidecar.local.fragmenter_messages import decode_fragmenter_message
from iterum_sidecar.messages import decode_remote_fragment, decode_transformation_message
from iterum_sidecar.stores.answers import leaves, read_page

if TYPE_CHECKING:
    from collections.abc import Callable

ID = b'"' + b"a" * 64 + b'"'
COUNT = 400_000
LISTS = b"[" + b",".join([b"[]"] * COUNT) + b"]"
OBJECTS = b"[" + b",".join([b'{"":0}'] * COUNT) + b"]"
#: Python's smallest string takes 50 bytes, a struct of three 40 more; a file that is described in 25 bytes becomes four of them.
TIMES = 12


def peak_of(read: Callable[[bytes], object], data: bytes) -> float:
    """Return how many times the message's own size were held at once while it was read."""
    tracemalloc.start()
    try:
        read(data)
    except ValueError:
        pass  # refused, as most of these are
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak / max(len(data), 64 * 1024)


def with_key(key: bytes, value: bytes) -> bytes:
    return b'{"' + key + b'":' + value + b"}"


@pytest.mark.parametrize("value", [LISTS, OBJECTS, b'"' + b"\\u0061" * COUNT + b'"'])
@pytest.mark.parametrize(
    "key",
    [b"files", b"fragment_id", b"status", b"failed", b"gathers", b"metadata", b"other"],
)  # fmt: skip
def test_a_frame(key: bytes, value: bytes) -> None:
    assert peak_of(decode_transformation_message, with_key(key, value)) < TIMES


@pytest.mark.parametrize(
    "files", [b"[5]", b"[" + b",".join([b'{"name":"","path":""}'] * COUNT) + b"]"]
)
@pytest.mark.parametrize("predecessors", [LISTS, OBJECTS, b"[" + ID + b"]"])
def test_a_result(files: bytes, predecessors: bytes) -> None:
    metadata = with_key(b"predecessors", predecessors)
    message = b'{"files":' + files + b',"metadata":' + metadata + b"}"
    assert peak_of(decode_transformation_message, message) < TIMES


@pytest.mark.parametrize("files", [LISTS, b"[5]"])
def test_a_group_of_a_fragmenter(files: bytes) -> None:
    message = b'{"files":' + files + b',"status":' + LISTS + b"}"
    assert peak_of(decode_fragmenter_message, message) < TIMES


@pytest.mark.parametrize("key", [b"custom", b"predecessors", b"fragment_id", b"target_queue"])
def test_a_fragment(key: bytes) -> None:
    for value in (LISTS, OBJECTS):
        metadata = b'{"fragment_id":' + ID + b',"' + key + b'":' + value + b"}"
        files = b'[{"name":"a","path":"b","bucket":"c"}]'
        message = b'{"files":' + files + b',"metadata":' + metadata + b"}"
        assert peak_of(decode_remote_fragment, message) < TIMES


def _deep(depth: int) -> bytes:
    return b"<a>" * depth + b"<b/>" * depth + b"</a>" * depth


@pytest.mark.parametrize(
    "document",
    [
        _deep(3000),
        b"<a><" + b"x" * 10_000 + b">" + b"<b/>" * 10_000 + b"</" + b"x" * 10_000 + b"></a>",
        b"<a>" + b"".join(b"<b%d/>" % number for number in range(45_000)) + b"</a>",
        b"<a>" + b"&#65;" * COUNT + b"</a>",
        b"<a " + b"".join(b"b%d='' " % number for number in range(45_000)) + b"/>",
    ],
)  # fmt: skip
def test_a_document_of_a_store(document: bytes) -> None:
    # An element of four bytes is a pair of strings, up to a number of elements that is not reached by less than 200 kB.
    assert peak_of(leaves, document) < 64
    assert peak_of(read_page, document) < 64


def test_a_body_that_comes_byte_by_byte() -> None:
    size = 300_000
    assembler = ContentAssembler(size)

    def assemble(_: bytes) -> None:
        assembler.begin((b"1-1", 1, False, "", "queue"))
        assembler.header(b"\x00<\x00\x00" + size.to_bytes(8) + b"\x00\x00")
        message = None
        for _each in range(size):
            message = assembler.body(b"x" + b"")
        assert message is not None
        assert message[2] == b"x" * size

    assert peak_of(assemble, b"x" * size) < TIMES
