"""The frames of the two sockets as the transformation reads and writes them; `messages` has the sidecar's side.

What is read is taken as loosely as the peers need: Go writes `null` for an empty list, and an end without a word.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from iterum_sidecar.framing import encode_frame
from iterum_sidecar.messages import (
    KILL_MESSAGE,
    MOST_GATHERED,
    Done,
    Failed,
    Gathers,
    LocalFile,
    MessageRefused,
    decode_transformation_message,
)

__all__ = [
    "FRAME_LIMIT",
    "KILL_FRAME",
    "NOTHING",
    "Handout",
    "HandoutMetadata",
    "Kill",
    "SidecarRefused",
    "decode_sidecar_message",
    "done_frame",
    "failed_frame",
    "gathers_frame",
    "result_frame",
]

#: Far above any description; what claims to be longer is no frame.
FRAME_LIMIT = 1 << 30

NOTHING = Raw(b"")
KILL_FRAME = encode_frame(KILL_MESSAGE)


class SidecarRefused(ValueError):
    """The sidecar has sent what is no message of the contract; the text says why."""


class HandoutMetadata(Struct):
    """What a fragment says about itself."""

    fragment_id: str
    predecessors: list[str] | None = None
    custom: Raw = NOTHING


class Handout(Struct):
    """A fragment as it is handed out, and what this sidecar understands beyond the contract."""

    files: list[LocalFile]
    metadata: HandoutMetadata
    accepts: frozenset[str] = frozenset()


class Kill:
    """Nothing more will come."""


class _Arrived(Struct):
    files: list[LocalFile] | None = None
    metadata: HandoutMetadata | None = None
    accepts: list[Any] | None = None
    status: Raw = NOTHING


class _ResultMetadata(Struct, omit_defaults=True):
    predecessors: list[str]
    output_channel: str | None = None
    custom: Raw = NOTHING


class _Result(Struct):
    files: list[LocalFile]
    metadata: _ResultMetadata


class _FailedMessage(Struct):
    failed: Failed


class _GathersMessage(Struct):
    gathers: Gathers


_decoder = msgspec.json.Decoder(_Arrived)
_encode = msgspec.json.Encoder().encode
_KILL = Kill()


def decode_sidecar_message(payload: bytes) -> Handout | Kill:
    """Read one frame of the input socket.

    Raises:
        SidecarRefused: it is neither a fragment nor the kill message.
    """
    try:
        arrived = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SidecarRefused(f"what the sidecar sent is no message: {error}") from None
    metadata = arrived.metadata
    if metadata is not None:
        if bytes(metadata.custom) == b"null":
            metadata.custom = NOTHING
        accepts = frozenset(each for each in arrived.accepts or () if isinstance(each, str))
        return Handout(arrived.files or [], metadata, accepts)
    if bytes(arrived.status) and not arrived.files:
        return _KILL
    raise SidecarRefused("what the sidecar sent is neither a fragment nor the kill message")


def result_frame(
    files: list[LocalFile], predecessors: list[str], channel: str | None, custom: Raw
) -> bytes:
    """Return the frame of a result, once it has been read as the sidecar will read it.

    Raises:
        ValueError: the sidecar would refuse it; the text says where and why.
    """
    try:
        payload = _encode(_Result(files, _ResultMetadata(predecessors, channel, custom)))
        decode_transformation_message(payload)
    except (MessageRefused, UnicodeEncodeError) as error:
        raise ValueError(str(error)) from None
    return encode_frame(payload)


def done_frame(fragment_id: str) -> bytes:
    """Return the frame that says that a fragment is finished."""
    return encode_frame(_encode(Done(fragment_id)))


def failed_frame(fragment_id: str, reason: str) -> bytes:
    """Return the frame that says that a fragment cannot be worked; for a sidecar that accepts "failed"."""
    return encode_frame(_encode(_FailedMessage(Failed(fragment_id, reason))))


def gathers_frame(fragments: int) -> bytes:
    """Return the frame that asks to hold so many fragments at a time; for a sidecar that accepts "gathers"."""
    return encode_frame(_encode(_GathersMessage(Gathers(min(fragments, MOST_GATHERED)))))
