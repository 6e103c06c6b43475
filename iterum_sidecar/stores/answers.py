"""What S3 says in its answers: errors, and the few XML documents that we read; without I/O.

The codes are those of "Error responses" in the S3 API reference, and MinIO's and rclone's where
they differ.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from .port import (
    BucketMissing,
    ObjectMissing,
    StoredObject,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from .retries import retry_after_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from .http1 import Answer

__all__ = ["Page", "XmlRefused", "error_of", "is_failure", "leaves", "read_page", "read_upload_id"]

# What may succeed when it is sent again just so, by status and by code; a server's own failures all may
# (507 is MinIO's full disk, 520 to 530 are those of proxies), but for what it cannot do. A digest that does not
# agree is among them: either the bytes were damaged on their way, or the file changed under us, and
# each attempt hashes anew.
_RETRIED_STATUS: Final = frozenset({408, 425, 429, *range(500, 600)} - {501, 505})
_RETRIED_CODES: Final = frozenset(
    {
        "BadDigest",
        "IncompleteBody",
        "InternalError",
        "NoSuchUpload",
        "OperationAborted",
        "RequestTimeout",
        "ServerBusy",
        "ServiceUnavailable",
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "XAmzContentSHA256Mismatch",
    }
)
_REDIRECTS: Final = frozenset({301, 302, 307, 308})

# A path is kept for each leaf: those of a document that is as deep as it is long would take the
# square of its size. S3's are four deep, its names have 24 characters at most, and a full page of a
# listing has 11,000 leaves.
_DEEPEST: Final = 8
_LONGEST_NAME: Final = 64
_MOST_LEAVES: Final = 50_000
# S3's largest object, 5 TiB, has 13.
_MOST_DIGITS: Final = 20


class XmlRefused(ValueError):
    """A document that is not well-formed, or that has a document type and so might define entities."""


class Page(NamedTuple):
    """A page of a listing; `following` asks for the next one and is empty at the end."""

    objects: list[StoredObject]
    following: str


def leaves(document: bytes) -> list[tuple[str, str]]:
    """Return the elements of an XML document that hold no others, as (path, text), in their order.

    Paths leave out the root and any namespace: `Contents/Key`. A document type declaration is
    refused, and with it every entity bomb and every external entity. The text is UTF-8, as S3's
    always is, whatever the document says of itself.

    Raises:
        XmlRefused.
    """
    # Only listings, multipart uploads and failures come here; the common request pays nothing.
    from xml.parsers import expat

    found: list[tuple[str, str]] = []
    path: list[str] = []
    text: list[str] = []
    is_leaf = False

    def on_start(name: str, _attributes: dict[str, str]) -> None:
        nonlocal is_leaf
        if len(path) == _DEEPEST or len(name) > _LONGEST_NAME:
            raise XmlRefused("elements nested too deep, or of too long a name")
        path.append(name.rpartition(":")[2])
        text.clear()
        is_leaf = True

    def on_end(_name: str) -> None:
        nonlocal is_leaf
        if is_leaf:
            if len(found) == _MOST_LEAVES:
                raise XmlRefused(f"more than {_MOST_LEAVES} elements")
            found.append(("/".join(path[1:]), "".join(text)))
        path.pop()
        is_leaf = False

    def on_doctype(*_declaration: object) -> None:
        raise XmlRefused("a document type declaration")

    # Any other encoding would be looked up among Python's codecs, and fail in as many ways as those do.
    parser = expat.ParserCreate("UTF-8")
    parser.buffer_text = True
    parser.StartElementHandler = on_start
    parser.EndElementHandler = on_end
    parser.CharacterDataHandler = text.append
    parser.StartDoctypeDeclHandler = on_doctype
    try:
        parser.Parse(document, True)
    except expat.ExpatError as error:
        raise XmlRefused(str(error)) from error
    return found


def read_page(document: bytes) -> Page:
    """Read an answer to ListObjectsV2.

    Raises:
        XmlRefused: it is not such an answer.
    """
    objects: list[StoredObject] = []
    decode: Callable[[str], str] = str
    truncated = False
    token = ""
    key: str | None = None
    size: int | None = None
    entries = leaves(document)
    if ("EncodingType", "url") in entries:
        # Form encoding, in which AWS and MinIO write a blank as `+`.
        from urllib.parse import unquote_plus

        decode = unquote_plus
    for path, text in entries:
        if path == "Contents/Key":
            key = decode(text)
        elif path == "Contents/Size":
            if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
                raise XmlRefused(f"an object's size is {text[:80]!r}")
            size = int(text)
        elif path == "IsTruncated":
            truncated = text.strip().lower() == "true"
        elif path == "NextContinuationToken":
            token = text
        if key is not None and size is not None:
            objects.append(StoredObject(key, size))
            key = size = None
    return Page(objects, token if truncated else "")


def read_upload_id(document: bytes) -> str:
    """Read an answer to CreateMultipartUpload.

    Raises:
        XmlRefused: it is not such an answer.
    """
    for path, text in leaves(document):
        if path == "UploadId" and text:
            return text
    raise XmlRefused("no UploadId")


def error_of(answer: Answer, what: str, bucket: str, key: str = "") -> StoreError:
    """Turn an answer that is no success into the error that it stands for.

    `what` names the request in words. HEAD answers have no body, so there the status decides alone;
    404 then means the object where one was asked for, else the bucket.
    """
    code, message = _code_and_message(answer.body)
    status = answer.status
    where = f"{what} {bucket}/{key}" if key else f"{what} {bucket}"
    if status in _REDIRECTS:
        region = _one_line(answer.header(b"x-amz-bucket-region"))
        hint = f"; the bucket is in region {region}" if region else ""
        return StoreRefused(
            f"{where}: HTTP {status} {code or 'redirect'}, which is not followed{hint}",
            bucket=bucket,
            key=key,
            code=code or "PermanentRedirect",
        )
    kind: type[StoreError]
    if code in _RETRIED_CODES or status in _RETRIED_STATUS:
        kind = StoreUnavailable
    elif code == "NoSuchBucket" or (status == 404 and not code and not key):
        kind = BucketMissing
    elif code == "NoSuchKey" or (status == 404 and key):
        kind = ObjectMissing
    elif status >= 400:
        kind = StoreRefused
    else:
        kind = StoreUnavailable
    code = code or _CODES.get(status, f"HTTP{status}")
    details = f": {message}" if message else ""
    error = kind(f"{where}: HTTP {status} {code}{details}", bucket=bucket, key=key, code=code)
    if isinstance(error, StoreUnavailable):
        value = answer.header(b"retry-after")
        error.retry_after = retry_after_seconds(value, time.time()) if value else None
    return error


# What S3 would have said, for answers without a body.
_CODES: Final = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "AccessDenied",
    404: "NotFound",
    405: "MethodNotAllowed",
    429: "TooManyRequests",
    500: "InternalError",
    502: "BadGateway",
    503: "ServiceUnavailable",
    504: "GatewayTimeout",
}


def is_failure(answer: Answer) -> bool:
    """Tell whether a 200 carries an error all the same, as CompleteMultipartUpload's may.

    It has sent its head, and blanks to keep the connection open, long before it knows.
    """
    return answer.body.lstrip()[:512].find(b"<Error") >= 0


def _code_and_message(body: bytes) -> tuple[str, str]:
    if not body:
        return "", ""
    try:
        entries = dict(reversed(leaves(body)))
    except XmlRefused:
        return "", ""
    return _one_line(entries.get("Code", ""))[:100], _one_line(entries.get("Message", ""))


def _one_line(text: str) -> str:
    """Keep a stranger's words from filling our log, or from writing lines of their own."""
    text = " ".join(text.split())
    return "".join(char for char in text if char.isprintable())[:300]
