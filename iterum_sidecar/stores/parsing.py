"""What httptools says of one HTTP answer: its head, and a body that tells its own end; without I/O."""

from __future__ import annotations

from typing import final

import httptools

from .transport import TransportError

__all__ = ["BadAnswer", "Parsing"]


class BadAnswer(TransportError):
    """What came is not an HTTP answer, or not one that may be sent to us."""

    code = "BadAnswer"


@final
class Parsing:
    """What httptools reports about one answer, interim answers (1xx) left out."""

    __slots__ = (
        "complete",
        "headers",
        "is_head",
        "keep_alive",
        "overrun",
        "parser",
        "pieces",
        "status",
    )

    def __init__(self, is_head: bool) -> None:
        self.is_head = is_head
        self.headers: dict[bytes, bytes] = {}
        self.status = 0
        self.pieces: list[bytes] = []
        self.complete = False
        self.keep_alive = False
        self.overrun = False
        self.parser = httptools.HttpResponseParser(self)

    def release(self) -> None:
        """Let go of the parser, which holds our methods: a cycle would keep each body for the GC."""
        del self.parser

    @property
    def chunked(self) -> bool:
        """Whether the body tells its own end."""
        return self.headers.get(b"transfer-encoding", b"").lower().endswith(b"chunked")

    def feed(self, data: memoryview) -> None:
        """Parse what came.

        Raises:
            BadAnswer.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            raise BadAnswer("the server wants to speak another protocol") from error
        except httptools.HttpParserError as error:
            if not self.complete:
                raise BadAnswer(f"not an HTTP answer: {error}") from error
            self.overrun = True

    def on_message_begin(self) -> None:
        """httptools: an answer begins."""
        if self.complete:
            self.overrun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: a header, or a trailer."""
        # What comes after the body (trailers) is nobody's concern, and must not take the place of what the head said.
        if not self.complete and not self.status:
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """httptools: the head is whole; it may be an interim one."""
        if self.complete:
            return
        status = self.parser.get_status_code()
        if status >= 200:
            self.status = status
            # The parser forgets the Connection header as soon as the message is complete.
            self.keep_alive = self.parser.should_keep_alive()
            self.complete = self.is_head

    def on_body(self, data: bytes) -> None:
        """httptools: a piece of the body."""
        if self.complete:
            self.overrun = True
        else:
            self.pieces.append(data)

    def on_message_complete(self) -> None:
        """httptools: the answer is whole."""
        if self.status:
            self.complete = True
        else:
            self.headers.clear()
