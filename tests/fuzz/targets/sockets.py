"""What a transformation sends, and a fragmenter: frames, and the messages in them."""

from __future__ import annotations

import json
import struct
from typing import Any

from iterum_sidecar.framing import FrameReader, FrameTooLong, encode_frame
from iterum_sidecar.local.fragmenter_messages import Group, decode_fragmenter_message
from iterum_sidecar.messages import (
    MAX_OUTPUT_NAME_BYTES,
    Done,
    Failed,
    Gathers,
    Kill,
    MessageRefused,
    RemoteFile,
    RemoteFragment,
    RemoteMetadata,
    Result,
    ResultRefused,
    decode_remote_fragment,
    decode_transformation_message,
    encode_message,
)
from tests.fuzz.targets.rules import check_custom, check_names, is_id
from tests.fuzz.targets.target import Target, pieces_of

__all__ = ["TARGETS"]

ID = "a" * 64
FRAME_LIMIT = 100


def read_frames(data: bytes) -> None:
    """Whole frames come out in order, however the bytes are cut, until one is announced that is too long."""
    reader = FrameReader(FRAME_LIMIT)
    found: list[bytes] = []
    refused = False
    try:
        for piece in pieces_of(data):
            found += reader.feed(piece)
            assert reader.buffered < FRAME_LIMIT + 4, "no more is held than an unfinished frame"
    except FrameTooLong as error:
        refused = error.claimed > error.limit == FRAME_LIMIT
    expected, position, stream = [], 0, data[1:]
    too_long = False
    while len(stream) - position >= 4:
        (length,) = struct.unpack_from("<I", stream, position)
        too_long = length > FRAME_LIMIT
        if too_long or len(stream) - position - 4 < length:
            break
        expected.append(stream[position + 4 : position + 4 + length])
        position += 4 + length
    assert refused == too_long
    assert found == expected
    assert refused or reader.buffered == len(stream) - position


def read_transformation_message(data: bytes) -> None:
    """A frame is what the contract's order says, or refused; a result that passes can be described on a queue."""
    try:
        message = decode_transformation_message(data)
    except ResultRefused as refusal:
        blamed = refusal.predecessors
    except MessageRefused:
        return
    else:
        check_kind(message, json.loads(data.decode(errors="surrogateescape")))
        if isinstance(message, Result):
            check_result(message)
        return
    assert blamed
    assert all(map(is_id, blamed))


def check_kind(message: object, plain: Any) -> None:  # noqa: ANN401 - whatever JSON holds
    """Hold the kind against the contract's section 2, as another reader of JSON sees the message."""
    files = plain.get("files")
    if isinstance(message, Result):
        assert isinstance(files, list)
        assert files
        return
    assert files in (None, [])
    own = plain.get("fragment_id")
    if isinstance(own, str) and len(own) == 64:
        assert message == Done(own)
    elif plain.get("status") == "complete":
        assert isinstance(message, Kill)
    elif isinstance(message, Failed):
        assert is_id(plain["failed"]["fragment_id"])
        assert message.reason == plain["failed"]["reason"][: len(message.reason)]
    else:
        assert isinstance(message, Gathers)
        assert message.fragments == plain["gathers"]["fragments"] >= 1


def check_result(result: Result) -> None:
    """Hold a result that passed against the contract's section 3, and send its description through."""
    names = [file.name for file in result.files]
    check_names(names)
    assert all(len(name.encode()) <= MAX_OUTPUT_NAME_BYTES for name in names)
    predecessors = result.metadata.predecessors
    assert predecessors
    assert all(map(is_id, predecessors))
    check_custom(bytes(result.metadata.custom))
    description = RemoteFragment(
        [RemoteFile(name, f"iterum_data/{ID}/{name}", "bucket") for name in names],
        RemoteMetadata(ID, sorted(set(predecessors)), None, result.metadata.custom),
    )
    assert decode_remote_fragment(encode_message(description)) == description


def read_fragmenter_message(data: bytes) -> None:
    """A frame of a fragmenter is a group of files, or the kill message, or refused."""
    try:
        message = decode_fragmenter_message(data)
    except MessageRefused:
        return
    if isinstance(message, Group):
        assert all(isinstance(each, str) for each in message.files)
        check_custom(message.custom or b"")


def _result(**changes: object) -> bytes:
    metadata = {"output_channel": None, "custom": None, "fragment_id": None, "predecessors": [ID]}
    result = {"files": [{"name": "cat.jpg", "path": "/v/output/cat.jpg"}], "metadata": metadata}
    return json.dumps(result | changes).encode()


_MESSAGES = (
    _result(),
    _result(metadata={"predecessors": [ID, "b" * 64], "custom": {"a": [1, 1e3, "é", None]}}),
    _result(files=[{"name": "a/b", "path": ""}, {"name": "a/c", "path": "\0"}]),
    _result(files=[{"name": "a", "path": "x"}, {"name": "a/b", "path": "y"}]),
    _result(metadata=None, files=[[]]),
    b'{"fragment_id": "' + ID.encode() + b'"}',
    b'{"fragment_id":"' + b"\\u0061" * 64 + b'"}',
    b'{"files":[],"fragment_id":17,"status":"complete"}',
    b'{"status": "complete"}',
    b'{"status":"\\u0063omplete"}',
    b'{"failed":{"fragment_id":"' + ID.encode() + b'","reason":"why"}}',
    b'{"gathers":{"fragments":50}}',
    b'{"gathers":{"fragments":99999999999999999999}}',
    b'{"status":{"status":[]}}',
    b"[" * 2000,
)
_KEYS = (
    b'"files"', b'"name"', b'"path"', b'"metadata"', b'"predecessors"', b'"custom"', b'"output_channel"',
    b'"fragment_id"', b'"status"', b'"complete"', b'"failed"', b'"reason"', b'"gathers"', b'"fragments"',
)  # fmt: skip
_JSON = (
    b"{", b"}", b"[", b"]", b":", b",", b"null", b"true", b"1e999", b"-0", b'"', b'""', b"\\u0000", b"\\ud800", b"\\ude00",
    b"\xff", b"\xed\xa0\x80", b"..", b"/", b"\\/", b'"' + ID.encode() + b'"',
)  # fmt: skip
JSON_WORDS = _JSON

_FRAMES = (
    b"\0" + b"".join(map(encode_frame, (b"", b"x", b"y" * FRAME_LIMIT))),
    b"\2" + encode_frame(b"z" * (FRAME_LIMIT + 1)),
    b"\6" + encode_frame(b"one") + struct.pack("<I", 0xFFFFFFFF) + b"{",
    b"\4" + encode_frame(b"half")[:-1],
)

TARGETS = (
    Target(
        "frames", read_frames, _FRAMES, (b"\0\0\0\0", b"\x64\0\0\0", b"\x65\0\0\0", b"\xff" * 4)
    ),
    Target("transformation", read_transformation_message, _MESSAGES, _KEYS + _JSON, says_json=True),
    Target(
        "fragmenter",
        read_fragmenter_message,
        (
            b'{"files":["a/1","b/2"],"metadata":{"k":1}}',
            b'{"files":[],"metadata":null}',
            b'{"files":["a"],"metadata":[]}',
            b'{"status":"complete"}',
            b'{"status":"complete","files":[]}',
        ),
        (b'"files"', b'"metadata"', b'"status"', b'"complete"', *_JSON),
        says_json=True,
    ),
)
