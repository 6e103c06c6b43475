"""The messages of a fragmenter's two sockets (contract, section 8): the list that it is sent, and what it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Raw, Struct

from iterum_sidecar.messages import Kill, MessageRefused, short_string

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Group", "decode_fragmenter_message", "encode_file_list"]

_NOTHING = Raw(b"")
#: RecursionError: a message that is nested deeper than Python's stack.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Group(Struct):
    """The files that form a fragment, as they stand in the list, and the fragment's custom metadata, if any."""

    files: list[str]
    metadata: Raw = _NOTHING

    @property
    def custom(self) -> bytes | None:
        """The metadata as JSON; None when it is absent, null or an empty object."""
        custom = bytes(self.metadata)
        if custom in {b"", b"null"} or not custom[1:-1].strip():
            return None
        return custom


class _Classified(Struct):
    """The keys by which a fragmenter's messages are told apart."""

    files: Raw = _NOTHING
    status: Raw = _NOTHING


_encoder = msgspec.json.Encoder()
_group_decoder = msgspec.json.Decoder(Group)
_classifier = msgspec.json.Decoder(_Classified)


def encode_file_list(names: Sequence[str], hashes: Sequence[str]) -> bytes:
    """Return the message that lists every file as `<name>/<hash>`; both sequences are of one length."""
    payload = bytearray(b'{"data_files":[')
    for name, content_hash in zip(names, hashes, strict=True):
        _encoder.encode_into(f"{name}/{content_hash}", payload, -1)
        payload += b","
    if names:
        del payload[-1:]
    payload += b"]}"
    return bytes(payload)


def decode_fragmenter_message(payload: bytes) -> Group | Kill:
    """Read one frame of the fragmenter's output socket. A group may be empty and may name anything.

    Raises:
        MessageRefused: it is neither a group nor the kill message; with the place and the reason.
    """
    try:
        message = _classifier.decode(payload)
        if short_string(message.status) == "complete" and bytes(message.files) in {
            b"",
            b"null",
            b"[]",
        }:
            return Kill()
        if not bytes(message.files):
            raise MessageRefused("neither a group of files nor the kill message")
        group = _group_decoder.decode(payload)
        metadata = bytes(group.metadata)
        metadata.decode()
    except _UNREADABLE as error:
        raise MessageRefused(str(error)) from None
    if metadata not in {b"", b"null"} and not metadata.startswith(b"{"):
        raise MessageRefused("Expected `object | null` - at `$.metadata`")
    return group
