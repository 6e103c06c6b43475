"""A small HTTP/1.1 server for probes and scrapes: GET and HEAD, short answers, over h11.

It serves machines that ask for a few lines every few seconds. Whatever a peer sends, it gets an answer or a closed connection,
and the program that is asked about itself does not notice.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

import h11
import trio

from iterum_sidecar.telemetry.logs import get_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

__all__ = ["Answer", "Question", "open_http_listeners", "serve_http"]

_log = get_log(__name__)

#: Seconds for a whole request to come, from the first byte or from the last answer, and for an answer to be taken.
REQUEST_SECONDS = 10.0
#: Seconds that an idle connection is kept; Prometheus and kubelet open a new one when it is gone.
IDLE_SECONDS = 90.0
#: Connections at a time; one more is closed at once.
MOST_CONNECTIONS = 64
#: Bytes of a request's head, of the body that nobody reads, and of what is still taken from a peer that was refused.
MOST_HEAD = 16 * 1024
MOST_BODY = 64 * 1024
MOST_LEFT = 1024 * 1024
#: Bytes that are read at a time: less than a head may have, which h11 measures only while it is not whole.
READ_SIZE = 4096


class Question(NamedTuple):
    """A request, as far as it matters: its path without the query, and the media types that it accepts."""

    path: str
    accept: str


class Answer(NamedTuple):
    """What is answered. `body` is left out of the answer to HEAD."""

    status: HTTPStatus
    content_type: str
    body: bytes


async def open_http_listeners(host: str | None, port: int) -> list[trio.SocketListener]:
    """Listen on the address; None is every interface.

    Raises:
        OSError: the address is in use, or not of this machine.
    """
    return await trio.open_tcp_listeners(port, host=host)


async def serve_http(
    listeners: list[trio.SocketListener], answer: Callable[[Question], Answer]
) -> NoReturn:
    """Answer requests until cancelled, then close the listeners; an error that `answer` raises is logged, and answered with 500."""
    attend = partial(_attend, answer=answer, slots=trio.Semaphore(MOST_CONNECTIONS))
    with _told_once("trio.serve_listeners"):
        await trio.serve_listeners(attend, listeners)


@contextmanager
def _told_once(logger_name: str) -> Iterator[None]:
    """Say the first of what a logger of Trio's says as a warning of ours: without a descriptor free it says it ten times a second."""
    logger, handler = logging.getLogger(logger_name), _ToldOnce()
    before = logger.handlers[:], logger.propagate
    logger.handlers[:], logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers[:], logger.propagate = before


class _ToldOnce(logging.Handler):
    _told = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._told:
            self._told = True
            _log.warning(
                "probes and metrics cannot be asked for at the moment; this is said once",
                reason=record.getMessage(),
            )


async def _attend(
    stream: trio.abc.HalfCloseableStream,
    *,
    answer: Callable[[Question], Answer],
    slots: trio.Semaphore,
) -> None:
    """Serve one connection to its end, whatever its peer does."""
    async with stream:
        try:
            slots.acquire_nowait()
        except trio.WouldBlock:
            return
        try:
            await _Connection(stream, answer).serve()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the peer is gone, with or without its answer
        except Exception as error:  # a fault here must not end the program that is asked
            _log.exception("a connection could not be served", error)
        finally:
            slots.release()


class _TooLarge(Exception):
    """A request has a body of a size that nobody means."""


class _Connection:
    """One connection: h11 knows the protocol, this moves its bytes."""

    def __init__(
        self, stream: trio.abc.HalfCloseableStream, answer: Callable[[Question], Answer]
    ) -> None:
        self._stream = stream
        self._answer = answer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEAD)
        self._head_only = False
        """Whether the request is HEAD, whose answer has no body, even if it is a refusal."""

    async def serve(self) -> None:
        """Answer its requests, one after the other, until either side has had enough."""
        while await self._serve_one():
            try:
                self._http.start_next_cycle()
            except h11.LocalProtocolError:
                return  # one side has said that this was the last

    async def _serve_one(self) -> bool:
        """Read a request and answer it; False when none came."""
        self._head_only = False
        try:
            with trio.move_on_after(IDLE_SECONDS) as patience:
                request = await self._read_request(patience)
        except h11.RemoteProtocolError as error:
            await self._refuse(HTTPStatus(error.error_status_hint))
            return False
        except _TooLarge:
            await self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return False
        if patience.cancelled_caught or request is None:
            return False
        with trio.move_on_after(REQUEST_SECONDS) as taking:
            await self._send(self._answer_to(request))
        return not taking.cancelled_caught

    async def _read_request(self, patience: trio.CancelScope) -> h11.Request | None:
        request: h11.Request | None = None
        body = 0
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                data = await self._stream.receive_some(READ_SIZE)
                # From the first byte on, a peer that sends slowly has no more time than this.
                patience.deadline = min(patience.deadline, trio.current_time() + REQUEST_SECONDS)
                self._http.receive_data(bytes(data))
            elif isinstance(event, h11.Request):
                request = event
                self._head_only = request.method == b"HEAD"
            elif isinstance(event, h11.Data):
                body += len(event.data)
                if body > MOST_BODY:
                    raise _TooLarge
            elif isinstance(event, h11.EndOfMessage):
                return request
            else:
                return None

    def _answer_to(self, request: h11.Request) -> Answer:
        if request.method not in {b"GET", b"HEAD"}:
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED)
        path = request.target.decode("ascii", errors="replace").partition("?")[0]
        accept = b", ".join(value for name, value in request.headers if name == b"accept")
        try:
            return self._answer(Question(path, accept.decode("latin-1")))
        except (
            Exception
        ) as error:  # what is asked for may be at fault; the peer is told so, and the log
            _log.exception("a request could not be answered", error, path=path)
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR)

    async def _refuse(self, status: HTTPStatus) -> None:
        """Answer what is no request that is served, as far as an answer may still be sent."""
        if self._http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return
        with trio.move_on_after(REQUEST_SECONDS):
            await self._send(_plain(status), close=True)
            await self._stream.send_eof()
            # A close with something unread is a reset, by which the peer can lose the answer (RFC 9112, section 9.6).
            left = MOST_LEFT
            while left > 0 and (data := await self._stream.receive_some()):
                left -= len(data)

    async def _send(self, answer: Answer, *, close: bool = False) -> None:
        headers = [
            ("content-type", answer.content_type),
            ("content-length", str(len(answer.body))),
            ("date", formatdate(usegmt=True)),
            ("cache-control", "no-store"),
        ]
        if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
            headers.append(("allow", "GET, HEAD"))
        if close:
            headers.append(("connection", "close"))
        response = h11.Response(
            status_code=answer.status, headers=headers, reason=answer.status.phrase
        )
        sent = self._http.send(response) or b""
        if not self._head_only:
            sent += self._http.send(h11.Data(data=answer.body)) or b""
        sent += self._http.send(h11.EndOfMessage()) or b""
        await self._stream.send_all(sent)


def _plain(status: HTTPStatus) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", f"{status.phrase}\n".encode())
