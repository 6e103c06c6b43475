"""Puts messages together: a method, a content header, and body frames until the announced size is reached."""

from __future__ import annotations

from typing import TypeAlias

from pamqp import commands

from iterum_sidecar.amqp.codec import decode_content_header
from iterum_sidecar.amqp.errors import ProtocolViolation
from iterum_sidecar.amqp.properties import NO_PROPERTIES, Properties, decode_properties

# Properties of up to this size are kept to be recognised when the next message has the same.
_REMEMBERED_SIZE = 1024

Deliver: TypeAlias = tuple[bytes, int, bool, str, str]
Message: TypeAlias = tuple[Deliver | commands.Basic.Return, Properties, bytes]
"""The method that announced it, its properties and its body."""


class BodyTooLarge(Exception):
    """A content header announced more bytes than may be held; the channel has to be closed."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class ContentAssembler:
    """The message that is coming in on one channel; at most `max_body_size` bytes of body are ever held."""

    def __init__(self, max_body_size: int) -> None:
        self._max_body_size = max_body_size
        self._method: Deliver | commands.Basic.Return | None = None
        self._properties: Properties | None = None
        self._begun = bytearray()
        self._missing = 0
        self._last_raw = b"\x00\x00"
        self._last_properties = NO_PROPERTIES

    @property
    def is_expecting(self) -> bool:
        """Whether a message has begun, so that only its header and body may follow."""
        return self._method is not None

    def begin(self, method: Deliver | commands.Basic.Return) -> None:
        """Take the method that announces a message."""
        self._method = method

    def header(self, payload: bytes) -> Message | None:
        """Take a content header; returns the message if it has no body.

        Raises ProtocolViolation where none may come, and BodyTooLarge.
        """
        if self._method is None or self._properties is not None:
            raise ProtocolViolation("a content header without its method")
        size, raw = decode_content_header(payload)
        if size > self._max_body_size:
            raise BodyTooLarge(size)
        if raw == self._last_raw:
            self._properties = self._last_properties
        else:
            self._properties = decode_properties(raw)
            if len(raw) <= _REMEMBERED_SIZE:
                self._last_raw = raw
                self._last_properties = self._properties
        self._missing = size
        return None if size else self._complete(b"")

    def body(self, payload: bytes) -> Message | None:
        """Take a body frame; returns the message that it completes. Raises ProtocolViolation."""
        missing = self._missing - len(payload)
        if missing < 0 or self._properties is None:
            raise ProtocolViolation("more body than was announced")
        if not missing and not self._begun:
            return self._complete(payload)
        # No list of pieces: a broker may send single bytes, and each would take fifty times as much.
        self._begun += payload
        self._missing = missing
        if missing:
            return None
        body = bytes(self._begun)
        self._begun = bytearray()
        return self._complete(body)

    def _complete(self, body: bytes) -> Message:
        assert self._method is not None
        assert self._properties is not None
        message = self._method, self._properties, body
        self._method = None
        self._properties = None
        self._missing = 0
        return message
