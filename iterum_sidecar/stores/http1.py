"""One keep-alive HTTP/1.1 connection: a request out, an answer in, one after the other.

httptools (Node's llhttp) parses the head and chunked bodies, and refuses what makes the length of a
body ambiguous (two lengths, a length beside `chunked`: request smuggling's tools). A body whose
length was announced is not parsed at all: it goes from the socket through the connection's one
buffer to whoever wants it.

A connection may carry another request only after a whole, well-formed answer that left nothing
behind and promised to keep it open. In all other cases, cancellation included, `reusable` stays
false and the owner closes it.
"""

from __future__ import annotations

from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import TYPE_CHECKING, Final, Protocol, final

import trio

from .parsing import BadAnswer, Parsing
from .transport import CHUNK, YIELD_EVERY, ConnectionLost, NoAnswer, TransportError

if TYPE_CHECKING:
    from .deadline_watch import DeadlineWatch
    from .transport import Deadlines, Transport

__all__ = ["Answer", "BadAnswer", "Connection", "FileEnded", "Request", "ShortBody", "Sink"]

# All of a head, and all that may come in a body of chunks (their lengths, trailers) before more of
# the body itself: the parser holds a header until its end, whatever its length. S3 allows 2 KiB of user metadata and adds about 1 KiB of its own; Go's and Node's
# servers stop at 1 MiB and 16 KiB.
HEAD_LIMIT: Final = 64 * 1024

# A body that is kept in memory: a page of a listing. 1,000 keys of 1,024 bytes, each byte
# percent-encoded, are 3 MiB; nothing else that is wanted comes near.
KEPT_LIMIT: Final = 8 * 1024 * 1024


class ShortBody(TransportError):
    """The answer's body ended before the length that its head announced."""

    code = "ShortBody"


class FileEnded(Exception):
    """The file that a request sends has fewer bytes by now than were announced."""


class Sink(Protocol):
    """Where the body of a successful answer goes."""

    def begin(self, answer: Answer) -> None:
        """Take note of the head, before any of the body."""
        ...

    def write(self, data: bytes | memoryview) -> object:
        """Take the next piece; `data` is only valid during the call."""
        ...


@final
class Request:
    """A request as bytes. `head` is complete; the body is `data`, or a region of a file.

    `sink` takes the body of an answer with status 200; any other body is kept in the answer.
    `headless` is for HEAD, whose answers have a length and no body. `answer_seconds` replaces the
    connection's own deadline for the answer's head.
    """

    __slots__ = ("answer_seconds", "file", "head", "is_head", "offset", "sink", "size")

    def __init__(
        self,
        head: bytes,
        *,
        sink: Sink | None = None,
        is_head: bool = False,
        file: int = -1,
        offset: int = 0,
        size: int = 0,
        answer_seconds: float | None = None,
    ) -> None:
        self.head = head
        self.sink = sink
        self.is_head = is_head
        self.file = file
        self.offset = offset
        self.size = size
        self.answer_seconds = answer_seconds


@final
class Answer:
    """An answer's status, its headers (names in lower case) and, unless a sink took it, its body."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: dict[bytes, bytes]) -> None:
        self.status = status
        self.headers = headers
        self.body = b""

    def __repr__(self) -> str:
        return f"<Answer {self.status}, {len(self.headers)} headers, {len(self.body)} bytes>"

    def header(self, name: bytes) -> str:
        """Return a header as text, the empty string when it is absent."""
        return self.headers.get(name, b"").decode("latin-1")


@final
class Connection:
    """Carries one request at a time over a transport.

    `answer_begun` tells whether a byte of the last request's answer came, `reusable` whether another
    request may follow. `idle_since` is the pool's to keep.
    """

    __slots__ = (
        "_buffer",
        "_deadlines",
        "_expired",
        "_transport",
        "_watch",
        "answer_begun",
        "idle_since",
        "reusable",
    )

    def __init__(
        self, transport: Transport, deadlines: Deadlines, watch: DeadlineWatch | None = None
    ) -> None:
        self._transport = transport
        self._deadlines = deadlines
        self._watch = watch
        self._expired = False
        # The kernel gives the pages of a mapping when they are touched (a bytearray touches all of its
        # own), so a connection that carries small objects never uses more than it reads.
        self._buffer = memoryview(mmap(-1, CHUNK, flags=MAP_PRIVATE | MAP_ANONYMOUS))
        self.answer_begun = False
        self.reusable = False
        self.idle_since = 0.0

    def close(self) -> None:
        """Close the connection; whatever was under way on it fails."""
        self.reusable = False
        self._transport.close()

    def expire(self) -> None:
        """Close the connection because the answer did not come in its time."""
        self._expired = True
        self.close()

    def is_fresh(self) -> bool:
        """Tell whether the peer has neither closed nor said anything unasked since the last answer."""
        return self._transport.is_fresh(self._buffer)

    async def exchange(self, request: Request) -> Answer:
        """Send `request` and return its answer, whose body has been read to its end.

        Raises:
            TransportError: one of its kinds; the answer, if any, was not whole.
            FileEnded: the request's file is shorter than announced.
            OSError: the request's file could not be read, or the sink could not write.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self.reusable = self.answer_begun = False
        lost = await self._send(request)
        parsing = Parsing(request.is_head)
        try:
            return await self._receive(request, parsing, lost)
        finally:
            parsing.release()

    async def _receive(
        self, request: Request, parsing: Parsing, lost: ConnectionLost | None
    ) -> Answer:
        seconds = request.answer_seconds
        if seconds is None:
            seconds = self._deadlines.answer
        try:
            await self._receive_head(parsing, seconds)
        except ConnectionLost as error:
            raise lost or error from None
        answer = Answer(parsing.status, parsing.headers)
        if parsing.complete and not parsing.pieces:
            if request.sink is not None and answer.status == 200:
                request.sink.begin(answer)
        else:
            await self._receive_body(request.sink, answer, parsing)
        self.reusable = (
            parsing.keep_alive and parsing.complete and not parsing.overrun and lost is None
        )
        return answer

    async def _send(self, request: Request) -> ConnectionLost | None:
        """Send all of the request, or what the peer takes of it.

        A server that refuses a request early answers, closes, and so breaks our sending. The loss
        is returned, not raised: the reason may be there to be read.
        """
        seconds = self._deadlines.progress
        try:
            await self._transport.send(request.head, seconds)
            if request.size:
                size = request.size
                sent = await self._transport.send_file(request.file, request.offset, size, seconds)
                if sent < size:
                    raise FileEnded(f"{sent} of {size} bytes")
        except ConnectionLost as error:
            return error
        return None

    async def _receive_head(self, parsing: Parsing, seconds: float) -> None:
        watch = self._watch
        if watch is not None and watch.is_kept:
            watch.begin(self, trio.current_time() + seconds)
            try:
                await self._read_head(parsing, seconds)
                return
            except (trio.ClosedResourceError, ConnectionLost):
                if not self._expired:
                    raise
            finally:
                watch.end(self)
        else:
            with trio.move_on_after(seconds):
                await self._read_head(parsing, seconds)
                return
        raise NoAnswer(f"no answer within {seconds:.3g} s")

    async def _read_head(self, parsing: Parsing, seconds: float) -> None:
        # An answer cannot be here before its request was worked on: wait first, then read.
        await self._transport.until_readable()
        received = 0
        while not parsing.status:
            if received == HEAD_LIMIT:
                raise BadAnswer(f"the answer's head is longer than {HEAD_LIMIT} bytes")
            room = self._buffer[: HEAD_LIMIT - received]
            count = await self._transport.receive_into(room, seconds)
            if count == 0:
                raise ConnectionLost("the connection was closed before the answer's head ended")
            self.answer_begun = True
            received += count
            parsing.feed(room[:count])

    async def _receive_body(self, sink: Sink | None, answer: Answer, parsing: Parsing) -> None:
        if sink is not None and answer.status == 200:
            await self._receive_into(sink, answer, parsing)
        else:
            kept = _Kept()
            await self._receive_into(kept, answer, parsing)
            answer.body = bytes(kept.data)

    async def _receive_into(self, sink: Sink, answer: Answer, parsing: Parsing) -> None:
        sink.begin(answer)
        announced = answer.headers.get(b"content-length")
        if parsing.complete or announced is None:
            await self._receive_parsed(sink, parsing)
        else:
            await self._receive_announced(sink, parsing, int(announced))

    async def _receive_announced(self, sink: Sink, parsing: Parsing, size: int) -> None:
        """Pass on a body of known length in whole buffers, so that small ones are written once."""
        buffer = self._buffer
        filled = 0
        for piece in parsing.pieces:
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
        missing = size - filled
        last_yield = missing
        while missing:
            room = buffer[filled : filled + missing]
            count = await self._transport.receive_into(room, self._deadlines.progress)
            if count == 0:
                raise ShortBody(f"{size - missing} of {size} bytes came")
            filled += count
            missing -= count
            if filled == CHUNK or not missing:
                sink.write(buffer[:filled])
                filled = 0
            if last_yield - missing >= YIELD_EVERY:
                last_yield = missing
                await trio.lowlevel.checkpoint()
        parsing.complete = True

    async def _receive_parsed(self, sink: Sink, parsing: Parsing) -> None:
        """Pass on a body that is here already, is chunked, or goes on until the peer closes."""
        received = idle = 0
        while True:
            if parsing.pieces:
                idle = 0
            elif idle > HEAD_LIMIT:
                raise BadAnswer(f"{idle} bytes of an answer came that held nothing of its body")
            for piece in parsing.pieces:
                sink.write(piece)
            parsing.pieces.clear()
            if parsing.complete:
                return
            count = await self._transport.receive_into(self._buffer, self._deadlines.progress)
            if count == 0:
                break
            parsing.feed(self._buffer[:count])
            received += count
            idle += count
            if received >= YIELD_EVERY:
                received = 0
                await trio.lowlevel.checkpoint()
        if parsing.chunked:
            raise ShortBody("the connection was closed before the last chunk")
        if not isinstance(sink, _Kept):
            # Its end could not be told from a lost connection.
            raise BadAnswer("the answer's body has no length")


@final
class _Kept:
    """A sink that keeps the body in memory."""

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data = bytearray()

    def begin(self, answer: Answer) -> None:
        pass

    def write(self, data: bytes | memoryview) -> None:
        if len(self.data) + len(data) > KEPT_LIMIT:
            raise BadAnswer(f"the answer's body is longer than {KEPT_LIMIT} bytes")
        self.data += data
