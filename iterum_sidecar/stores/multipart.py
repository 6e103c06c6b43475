"""Uploads in parts, for objects that are too large for one request."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from .answers import XmlRefused, error_of, is_failure, read_upload_id
from .port import StoreError, StoreUnavailable
from .signature import canonical_query
from .transport import TransportError

if TYPE_CHECKING:
    from .client import Client
    from .http1 import Answer

__all__ = ["LEAST_PART", "MOST_PARTS", "PART_SIZE", "THRESHOLD", "part_size_for", "upload"]

# A single PUT may carry 5 GiB, but a connection that breaks at its end costs all of it again. With
# 64 MiB the worst repetition takes half a second at 1 Gbit/s, and three requests more (begin, one
# part more, complete) are far below one percent of an object that large. MinIO's clients cut at
# 64 MiB too.
THRESHOLD: Final = 64 * 1024 * 1024
PART_SIZE: Final = 64 * 1024 * 1024

# "Amazon S3 multipart upload limits" in the S3 user guide.
LEAST_PART: Final = 5 * 1024 * 1024
MOST_PARTS: Final = 10_000

# A server puts the parts together before it answers; AWS documents several minutes.
COMPLETE_SECONDS: Final = 300.0

# Parts of an upload that was given up cost their owner money until someone lists them, so a
# cancelled one takes this much longer to end.
ABORT_SECONDS: Final = 3.0

_log = logging.getLogger("iterum_sidecar.stores")


def part_size_for(size: int, preferred: int = PART_SIZE) -> int:
    """Return the size of a part, in bytes, so that no more than `MOST_PARTS` are needed."""
    return max(preferred, -(-size // MOST_PARTS))


async def upload(
    client: Client, bucket: str, key: str, file: int, size: int, part_size: int = PART_SIZE
) -> None:
    """Store the first `size` bytes of `file`, part after part; the object appears at the end, whole.

    The parts go one at a time: fragments in flight are what this program does in parallel, and more
    requests for one object would only starve those of the others. Each part is retried alone. On
    failure and on cancellation the upload is aborted, which removes its parts.

    Raises:
        StoreError: one of its kinds, as `Store.put`. `NoSuchUpload` is told as StoreUnavailable:
            someone has aborted the upload, or an answer was lost and it is complete already; both
            are mended by another `put`.
        OSError: the file could not be read.
    """
    upload_id = await client.attempts(
        "begin the upload of", bucket, key, lambda: _begin(client, bucket, key)
    )
    try:
        etags = []
        step = part_size_for(size, part_size)
        for number, offset in enumerate(range(0, size, step), start=1):
            query = canonical_query({"partNumber": str(number), "uploadId": upload_id})
            region = offset, min(step, size - offset)
            etags.append(await _send_part(client, bucket, key, query, file, *region))
        await client.attempts(
            "complete the upload of",
            bucket,
            key,
            lambda: _complete(client, bucket, key, upload_id, etags),
        )
    except BaseException:
        with trio.move_on_after(ABORT_SECONDS, shield=True):
            await _abort(client, bucket, key, upload_id)
        raise


async def _begin(client: Client, bucket: str, key: str) -> str:
    what = "begin the upload of"
    answer = await client.send(what, "POST", bucket, key, "uploads=")
    try:
        return read_upload_id(answer.body)
    except XmlRefused as error:
        raise StoreUnavailable(
            f"{what} {bucket}/{key}: the answer cannot be read: {error}",
            bucket=bucket,
            key=key,
            code="BadAnswer",
        ) from error


async def _send_part(
    client: Client, bucket: str, key: str, query: str, file: int, offset: int, size: int
) -> str:
    what = "put a part of"

    async def attempt() -> Answer:
        return await client.send_region(what, bucket, key, query, file, offset, size)

    answer = await client.attempts(what, bucket, key, attempt)
    return answer.header(b"etag")


async def _complete(
    client: Client, bucket: str, key: str, upload_id: str, etags: list[str]
) -> None:
    what = "complete the upload of"
    parts = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{_escape(etag)}</ETag></Part>"
        for number, etag in enumerate(etags, start=1)
    )
    answer = await client.send(
        what,
        "POST",
        bucket,
        key,
        canonical_query({"uploadId": upload_id}),
        f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode(),
        answer_seconds=COMPLETE_SECONDS,
    )
    if is_failure(answer):
        raise error_of(answer, what, bucket, key)


async def _abort(client: Client, bucket: str, key: str, upload_id: str) -> None:
    """Abort the upload, as far as that is possible; the failure that led here is the one to tell."""
    query = canonical_query({"uploadId": upload_id})
    try:
        await client.send("abort the upload of", "DELETE", bucket, key, query)
    except (StoreError, TransportError) as error:
        _log.debug("the parts of %s/%s may be left in the store: %s", bucket, key, error)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
