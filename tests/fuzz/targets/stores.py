"""What an object store answers: HTTP, the headers that S3 adds, and its documents."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import trio

from iterum_sidecar.stores.answers import (
    XmlRefused,
    error_of,
    is_failure,
    leaves,
    read_page,
    read_upload_id,
)
from iterum_sidecar.stores.http1 import HEAD_LIMIT, KEPT_LIMIT, Answer, Connection, Request
from iterum_sidecar.stores.port import StoreError
from iterum_sidecar.stores.retries import http_date_seconds, retry_after_seconds
from iterum_sidecar.stores.transport import Deadlines, Transport, TransportError
from iterum_sidecar.stores.verification import choose_check
from tests.fuzz.targets.target import Target, pieces_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TARGETS"]


class _Server:
    """As much of a transport as an exchange needs: it takes what is sent, and says what it has to say, piece by piece."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""
        self.left = True

    async def send(self, data: bytes, seconds: float) -> None:
        await trio.lowlevel.checkpoint()

    async def until_readable(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_into(self, view: memoryview, seconds: float) -> int:
        await trio.lowlevel.checkpoint()
        data = self._rest or next(self._pieces, b"")
        count = min(len(data), len(view))
        view[:count] = data[:count]
        self._rest = data[count:]
        self.left = count > 0
        return count

    def is_drained(self) -> bool:
        """Tell whether everything has been read that was said."""
        return not self._rest and next(self._pieces, None) is None


class _Sink:
    """Counts what it is given."""

    def __init__(self) -> None:
        self.answer: Answer | None = None
        self.size = 0

    def begin(self, answer: Answer) -> None:
        self.answer = answer
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        assert self.answer is not None
        self.size += len(data)


def exchange(data: bytes) -> None:
    """An answer is whole and well-formed, or a TransportError; what is left behind is never taken for the next answer."""
    if len(data) < 2:
        return
    is_head, has_sink = bool(data[0] & 1), bool(data[0] & 2)
    sink = _Sink()
    server = _Server(pieces_of(data[1:]))
    connection = Connection(cast("Transport", server), Deadlines())
    request = Request(b"GET / HTTP/1.1\r\n\r\n", sink=sink if has_sink else None, is_head=is_head)

    async def main() -> Answer | None:
        try:
            return await connection.exchange(request)
        except TransportError:
            assert not connection.reusable
            return None

    answer = trio.run(main)
    if answer is None:
        return
    assert 200 <= answer.status <= 999
    assert sum(len(name) + len(value) for name, value in answer.headers.items()) <= HEAD_LIMIT
    assert len(answer.body) <= KEPT_LIMIT
    announced = answer.headers.get(b"content-length")
    if announced is not None and answer.status not in {204, 304} and not is_head:
        taken = sink.size if has_sink and answer.status == 200 else len(answer.body)
        assert taken == int(announced)
    # A piece is read whole or not at all unless a length ends in it; then what follows was never asked for.
    assert not connection.reusable or server.is_drained() or data[1] % 7 != 6
    read_answer(answer)


def read_answer(answer: Answer) -> None:
    """Read everything of an answer that anybody reads."""
    assert isinstance(error_of(answer, "get", "bucket", "key"), StoreError)
    assert isinstance(error_of(answer, "look at", "bucket"), StoreError)
    check = choose_check(answer.headers)
    if check is not None:
        check.update(b"x")
        check.holds()
    date = answer.header(b"date")
    http_date_seconds(date)
    wait = retry_after_seconds(date, time.time())
    assert wait is None or wait >= 0


def read_documents(data: bytes) -> None:
    """A document is what it should be, or XmlRefused; an error is told in one line of no great length."""
    with suppress(XmlRefused):
        found = leaves(data)
        assert sum(len(path) + len(text) for path, text in found) <= 64 * len(data)
    with suppress(XmlRefused):
        page = read_page(data)
        assert all(each.size >= 0 for each in page.objects)
    with suppress(XmlRefused):
        assert read_upload_id(data)
    answer = Answer(400 + len(data) % 200, {b"retry-after": data[:40], b"date": data[-40:]})
    answer.body = data
    is_failure(answer)
    read_answer(answer)
    error = error_of(answer, "get", "bucket", "key")
    assert str(error).isprintable()
    assert len(str(error)) < 500
    assert error.code.isprintable()


def _answer(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"".join(b"%s\r\n" % header for header in headers)
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, head, len(body), body)


_ERROR = b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code><Message>Why.</Message></Error>'
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_ANSWERS = (
    b"\2\6" + _answer(b"content", b'ETag: "9a0364b9e99bb480dd25e1f0284c8555"'),
    b"\3\0" + _answer(b"", b"x-amz-checksum-crc32: AAAAAA=="),
    b"\0\4" + _answer(_ERROR, b"Retry-After: 3", b"Date: Thu, 01 Jan 1970 00:00:00 GMT", status=b"404 No"),
    b"\0\6" + b"HTTP/1.1 100 Continue\r\n\r\n" + _answer(b""),
    b"\2\3" + _CHUNKED + b"3\r\nabc\r\n0\r\n\r\n",
    b"\2\6" + _CHUNKED + b"3;x=y\r\nabc\r\n0\r\nTrailer: x\r\nContent-Length: 9\r\n\r\n",
    b"\0\6" + b"HTTP/1.1 204 No Content\r\n\r\n",
    b"\0\6" + b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    b"\2\6" + _answer(b"one") + _answer(b"two"),
    b"\0\6" + b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    b"\0\6" + b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n",
)  # fmt: skip
_DOCUMENTS = (
    _ERROR,
    b"<Error><Code>NoSuchKe\x7f</Code></Error>",
    b"<R><Contents><Key>a+b</Key><Size>1</Size></Contents><EncodingType>url</EncodingType></R>",
    b"<R><Contents><Size>" + b"9" * 5000 + b"</Size></Contents></R>",
    b"<R><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken></R>",
    b"<R><UploadId>x</UploadId></R>",
    b'<?xml version="1.0" encoding="foo"?><a/>',
    b'<?xml version="1.0" encoding="utf-7"?><a/>',
    b'<?xml version="1.0" encoding="idna"?><a/>',
    b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
    b"<a>" * 300 + b"<b/>" * 300 + b"</a>" * 300,
    b"",
)

TARGETS = (
    Target(
        "http1",
        exchange,
        _ANSWERS,
        (
            b"HTTP/1.1 ", b"200 OK", b"100 Continue", b"\r\n", b"\r\n\r\n", b"Content-Length: ", b"chunked",
            b"Transfer-Encoding: ", b"Connection: close", b"Connection: keep-alive", b"ETag: ", b"0\r\n\r\n",
            b"x-amz-checksum-sha256: ", b"x-amz-checksum-type: COMPOSITE", b"Retry-After: ", b"Date: ",
        ),
    ),
    Target(
        "s3-documents",
        read_documents,
        _DOCUMENTS,
        (
            b"<Error>", b"</Error>", b"<Code>", b"</Code>", b"<Message>", b"<Contents>", b"<Key>", b"<Size>", b"<?xml ",
            b'version="1.0"', b'encoding="', b"<!DOCTYPE", b"<!ENTITY", b"&#x0;", b"&amp;", b"<![CDATA[", b"]]>", b"<!--",
            b"Thu, 01 Jan 1970 00:00:00 GMT", b"+9999",
        ),
    ),
)  # fmt: skip
