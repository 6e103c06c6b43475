"""A small S3 client on Trio: what a sidecar asks of an object store, and no more.

The layers, from the wire up; each knows only the one below:

    transport      a socket that waits only when it must, a deadline for each wait
    http1          one request and one answer on one connection       (parsing: no I/O; deadline_watch: one task for all)
    pool           connections kept, replaced and bounded
    client         addresses, signatures, errors, retries     (signature, answers, retries: no I/O)
    s3, multipart  what the requests mean                     (verification: no I/O)

`docs/decisions/s3-client.md` says why this exists, what it leaves out, and which library to go to
when it is no longer enough.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final, final

import trio

from . import multipart
from .answers import Page, XmlRefused, read_page
from .client import Addressing, Client
from .pool import DEFAULT_SIZE
from .port import (
    BucketMissing,
    ObjectMissing,
    StoredObject,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from .signature import Credentials, canonical_query
from .verification import Check, choose_check

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from .http1 import Answer
    from .port import Admit
    from .retries import RetryPolicy
    from .transport import Deadlines

__all__ = ["S3Store"]

_log = logging.getLogger("iterum_sidecar.stores")

# Asks AWS, and those who follow it, for the checksum that the object was stored with. It is signed,
# as rclone's server demands of every `x-amz-` header.
_WITH_CHECKSUM: Final = (("x-amz-checksum-mode", "ENABLED"),)


@final
class S3Store:
    """Objects in an S3 server, over a bounded pool of kept connections.

    Used as `async with S3Store(...) as store`; leaving the block closes all connections at once.
    Any number of tasks may use it; `connections` of them at a time are served, in order.

    `ssl_context` None means plain HTTP; otherwise it holds the CA bundle and any client certificate,
    and the server's must be for `server_name`, or for `host` where that is empty.
    `renew` gives the credentials as they are now, without waiting. It is called when a request is
    refused; if they are others by then, they are used from there on, and the request is sent again.
    `addressing` is `path` (`host/bucket/key`) or `virtual` (`bucket.host/key`). Objects larger than
    `multipart_threshold` bytes go up in parts of `part_size` bytes, of which S3 takes no fewer than
    5 MiB. `warn` is told, once, when something about the store weakens what we promise, and when our
    clock is found to be wrong; by default it is logged to `iterum_sidecar.stores`.

    Errors carry S3's own code, the HTTP status, the bucket and the key; never a secret. What may
    succeed later has been retried as `retries` says before it is raised: status 408, 429, 500 and
    502 to 504, codes such as SlowDown, lost connections, missed deadlines, damaged or short bodies.
    RequestTimeTooSkewed is retried once, with our clock corrected by the server's.
    """

    def __init__(
        self,
        host: str,
        port: int,
        access_key: str,
        secret_key: str,
        *,
        session_token: str | None = None,
        region: str = "us-east-1",
        addressing: Addressing = "path",
        ssl_context: ssl.SSLContext | None = None,
        server_name: str = "",
        renew: Callable[[], Credentials] | None = None,
        connections: int = DEFAULT_SIZE,
        deadlines: Deadlines | None = None,
        retries: RetryPolicy | None = None,
        multipart_threshold: int = multipart.THRESHOLD,
        part_size: int = multipart.PART_SIZE,
        warn: Callable[[str], object] = _log.warning,
    ) -> None:
        if part_size < multipart.LEAST_PART:
            raise ValueError(f"S3 takes no parts of less than {multipart.LEAST_PART} bytes")
        self._client = Client(
            host,
            port,
            Credentials(access_key, secret_key, session_token),
            region=region,
            addressing=addressing,
            ssl_context=ssl_context,
            server_name=server_name,
            renew=renew,
            connections=connections,
            deadlines=deadlines,
            retries=retries,
            warn=warn,
        )
        self._multipart_threshold = multipart_threshold
        self._part_size = part_size
        self._warn = warn
        self._trust_etag = True
        self._etags_agree = False

    def __repr__(self) -> str:
        return f"<S3Store: {self._client!r}>"

    @property
    def retried(self) -> int:
        """How many requests have been sent again after a pause."""
        return self._client.retried

    async def __aenter__(self) -> S3Store:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections; requests under way fail with `trio.ClosedResourceError`."""
        self._client.pool.close()
        await trio.lowlevel.checkpoint()

    async def watch_deadlines(self) -> None:
        """Watch over the deadlines of all requests until cancelled; where nobody does, each sees to its own, which costs more."""
        await self._client.pool.watch.keep()

    def use_credentials(
        self, access_key: str, secret_key: str, session_token: str | None = None
    ) -> None:
        """Sign all further requests with these; `renew` does so by itself when others are refused."""
        self._client.use(Credentials(access_key, secret_key, session_token))

    async def fetch(self, bucket: str, key: str, file: int, *, admit: Admit | None = None) -> int:
        """Write the object's bytes to `file`, verified, and return how many; as `Store.fetch`.

        The length is that of the answer's head, and `admit` hears of it there; of a body in chunks it does not. The bytes are checked against the object's checksum
        where the store gives one for the whole object, else against an ETag that looks like an MD5.
        """
        _check_key(bucket, key)
        sink = _FileSink(file, admit)

        async def attempt() -> int:
            await self._get(bucket, key, sink)
            if sink.is_right():
                self._etags_agree |= sink.fingerprint() is not None
                return sink.size
            first = sink.fingerprint()
            # Once an ETag has agreed, they are MD5s, and an object that does not agree is damaged.
            if first is not None and not self._etags_agree:
                # Damaged on its way, or an ETag that is no MD5? Damage does not come twice alike.
                await self._get(bucket, key, sink)
                if sink.is_right():
                    return sink.size
                if sink.fingerprint() == first:
                    self._stop_trusting_etags(bucket, key)
                    return sink.size
            raise StoreUnavailable(
                f"get {bucket}/{key}: the bytes do not agree with the store's own {sink.checked_by}",
                bucket=bucket,
                key=key,
                code="ChecksumMismatch",
            )

        return await self._client.attempts("get", bucket, key, attempt)

    async def put(self, bucket: str, key: str, file: int, size: int) -> None:
        """Store the first `size` bytes of `file` as the object; as `Store.put`.

        Each request is signed over the SHA-256 of its body, so what the server accepts is what was
        in the file. Above `multipart_threshold` the object is made of parts, and appears at once.
        """
        _check_key(bucket, key)
        if size > self._multipart_threshold:
            await multipart.upload(self._client, bucket, key, file, size, self._part_size)
            return

        async def attempt() -> None:
            answer = await self._client.send_region("put", bucket, key, "", file, 0, size)
            _check_etag("put", bucket, key, answer)

        await self._client.attempts("put", bucket, key, attempt)

    async def check_bucket(self, bucket: str) -> None:
        """Return when the bucket exists and our credentials may use it; as `Store.check_bucket`."""
        await self._ask("check bucket", "HEAD", bucket)

    async def ensure_bucket(self, bucket: str) -> None:
        """Make the bucket unless it is there already; as `Store.ensure_bucket`."""
        try:
            await self.check_bucket(bucket)
        except BucketMissing:
            pass
        else:
            return
        try:
            await self._ask("create bucket", "PUT", bucket, data=_location(self._client.region))
        except StoreRefused as error:
            # Another instance of this step was quicker, or an answer of our own was lost.
            if error.code == "BucketAlreadyOwnedByYou":
                return
            if error.code != "BucketAlreadyExists":
                raise
            taken = error
        else:
            return
        try:
            await self.check_bucket(bucket)
        except StoreRefused:
            raise taken from None

    async def head_object(self, bucket: str, key: str) -> int:
        """Return the object's size in bytes.

        Raises:
            ObjectMissing: also when the bucket is missing, since an answer to HEAD cannot tell.
            StoreRefused, StoreUnavailable.
        """
        _check_key(bucket, key)
        answer = await self._ask("look at", "HEAD", bucket, key)
        length = answer.header(b"content-length")
        if not length:
            raise _unreadable("look at", bucket, key, "no length")
        return int(length)

    async def delete_object(self, bucket: str, key: str) -> None:
        """Delete the object; that it was not there is no error, as S3 has it.

        Raises:
            BucketMissing, StoreRefused, StoreUnavailable.
        """
        _check_key(bucket, key)
        try:
            await self._ask("delete", "DELETE", bucket, key)
        except ObjectMissing:
            return

    async def list_objects(
        self, bucket: str, prefix: str = "", *, page_size: int = 1000
    ) -> list[StoredObject]:
        """Return all objects whose keys begin with `prefix`, in the order of the store.

        S3's is the order of the keys' UTF-8 bytes. Pages of at most `page_size` (1 to 1,000) are
        asked for one after the other.

        Raises:
            BucketMissing, StoreRefused, StoreUnavailable.
        """
        found: list[StoredObject] = []
        following = ""
        while True:
            page = await self._list_page(bucket, prefix, page_size, following)
            found += page.objects
            if not page.following:
                return found
            if page.following == following:
                raise _unreadable("list", bucket, "", "the listing does not advance")
            following = page.following

    async def _list_page(self, bucket: str, prefix: str, size: int, following: str) -> Page:
        parameters = {
            # Keys may hold characters that XML 1.0 cannot.
            "encoding-type": "url",
            "list-type": "2",
            "max-keys": str(size),
        }
        if prefix:
            parameters["prefix"] = prefix
        if following:
            parameters["continuation-token"] = following
        answer = await self._ask("list", "GET", bucket, query=canonical_query(parameters))
        try:
            return read_page(answer.body)
        except XmlRefused as error:
            raise _unreadable("list", bucket, "", str(error)) from error

    async def _get(self, bucket: str, key: str, sink: _FileSink) -> None:
        sink.trust_etag = self._trust_etag
        answer = await self._client.send("get", "GET", bucket, key, extra=_WITH_CHECKSUM, sink=sink)
        if answer.status != 200:
            raise _unreadable("get", bucket, key, f"HTTP {answer.status}")
        _check_etag("get", bucket, key, answer)

    async def _ask(
        self, what: str, method: str, bucket: str, key: str = "", query: str = "", data: bytes = b""
    ) -> Answer:
        async def attempt() -> Answer:
            return await self._client.send(what, method, bucket, key, query, data)

        return await self._client.attempts(what, bucket, key, attempt)

    def _stop_trusting_etags(self, bucket: str, key: str) -> None:
        if self._trust_etag:
            self._trust_etag = False
            self._warn(
                f"the ETag of {bucket}/{key} looks like an MD5 and is none: two downloads agreed with "
                f"each other and not with it; this store's ETags are no longer compared"
            )


@final
class _FileSink:
    """Writes an object to a file that it may have to begin again, and checks it on the way."""

    __slots__ = ("_admit", "_check", "_file", "_written", "size", "trust_etag")

    def __init__(self, file: int, admit: Admit | None = None) -> None:
        self._file = file
        self._admit = admit
        self._check: Check | None = None
        self._written = False
        self.size = 0
        self.trust_etag = True

    def begin(self, answer: Answer) -> None:
        length = answer.headers.get(b"content-length")
        if length is not None and self._admit is not None:
            self._admit(int(length))
        if self._written:
            os.lseek(self._file, 0, os.SEEK_SET)
            os.ftruncate(self._file, 0)
            self._written = False
        self.size = 0
        self._check = choose_check(answer.headers, trust_etag=self.trust_etag)

    def write(self, data: bytes | memoryview) -> None:
        self._written = True
        if self._check is not None:
            self._check.update(data)
        self.size += len(data)
        count = os.write(self._file, data)
        while count < len(data):
            data = memoryview(data)[count:]
            count = os.write(self._file, data)

    def is_right(self) -> bool:
        """Tell whether the bytes agree with what the answer said of them, if it said anything."""
        return self._check is None or self._check.holds()

    def fingerprint(self) -> tuple[int, bytes] | None:
        """Return length and MD5, or None when they were checked by something better."""
        if self._check is None or not self._check.from_etag:
            return None
        return self.size, self._check.digest()

    @property
    def checked_by(self) -> str:
        """The name of what the bytes were checked against."""
        return "" if self._check is None else self._check.name


def _check_key(bucket: str, key: str) -> None:
    # A request without a key is one about the bucket: a GET would list it, a DELETE remove it.
    if not key:
        raise StoreRefused("an object's key is empty", bucket=bucket, code="InvalidKey")


def _check_etag(what: str, bucket: str, key: str, answer: Answer) -> None:
    # All stores give one. What says 200 without may be anybody: a proxy's page about maintenance, for one.
    if not answer.header(b"etag"):
        raise _unreadable(
            what, bucket, key, "HTTP 200 without an ETag, so it is not of an S3 store"
        )


def _location(region: str) -> bytes:
    # CreateBucket takes every region but the first by name ("LocationConstraint").
    if region == "us-east-1":
        return b""
    return (
        '<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
    ).encode()


def _unreadable(what: str, bucket: str, key: str, why: str) -> StoreError:
    where = f"{bucket}/{key}" if key else bucket
    return StoreUnavailable(
        f"{what} {where}: the answer cannot be read: {why}",
        bucket=bucket,
        key=key,
        code="BadAnswer",
    )
