"""Single requests to an S3 server: addressed, signed, sent, retried, and their failures told.

What the requests are for is the business of `s3` and `multipart`.
"""

from __future__ import annotations

import os
import string
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Literal, TypeVar, final

import trio

from .answers import error_of
from .http1 import Answer, FileEnded, Request
from .pool import DEFAULT_SIZE, Pool
from .port import StoreError, StoreRefused, StoreUnavailable
from .retries import RetryPolicy, http_date_seconds
from .signature import EMPTY_SHA256, Signer, quote_key
from .transport import CertificateRefused, Deadlines, NoAnswer, StepTimeout, TransportError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from .http1 import Sink
    from .signature import Credentials

__all__ = ["Addressing", "Client"]

Addressing = Literal["path", "virtual"]

# Up to this size a body is read into memory and leaves together with its head in one `send`: one
# system call and one packet instead of two of each. Above it, the copy costs more than it saves.
SINGLE_SEND: Final = 256 * 1024

# Up to this size a file is hashed in place, at about 1 ms for a megabyte where the processor has
# SHA instructions; a hop to a thread and back costs 0.1 ms, and the other tasks may wait 1 ms.
HASH_INLINE: Final = 1024 * 1024

# How many files are hashed at a time: it is work for the processor alone, and the pod has few.
HASH_THREADS: Final = 2

# S3's rules since 2018 are stricter (lower case, no `_`, 3 to 63 characters), but older buckets
# live on and other stores never cared. These characters are those that need no quoting.
_BUCKET_CHARACTERS: Final = frozenset(string.ascii_letters + string.digits + "._-")
_BUCKETS_MAX: Final = 512

# How often one request may meet credentials that are refused and find others at once: a pair that was
# read while it changed, and the whole one after it. A source that changes for ever is not believed.
_RENEWALS: Final = 3

# Seconds by which a request's time may be off: "Common request headers" in the S3 API reference. Others allow the same.
MOST_SKEW: Final = 900
# Seconds within which two looks at the server's clock say the same: it tells whole ones, and an answer takes its time.
_SAME_CLOCK: Final = 60

# How much longer than the first time the answer to one request is waited for at most. It doubles each
# time that none came, so that a store which is slow for this object is not asked in vain for ever.
_MOST_PATIENCE: Final = 8

# Bytes of a request's body that a server may take a second longer for, before it answers: it may
# write them to a slow disk, or pass them on to another store first.
_SLOWEST: Final = 1024 * 1024

# Requests that went unanswered are remembered until they are answered; so many at most.
_UNANSWERED_MAX: Final = 10_000

T = TypeVar("T")


@final
class Client:
    """Sends signed requests to one endpoint.

    Every method that sends does so once, raises a `StoreError` for every answer that is no success,
    and lets `TransportError` through; `attempts` around it retries and turns those into
    `StoreUnavailable`.

    `renew` gives the credentials as they are now. It is called whenever a request is refused with
    those in use; if they are others by then, the request is sent again with them, at once. It does
    not wait, so of many requests that are refused together the first renews and the rest follow.
    """

    def __init__(
        self,
        host: str,
        port: int,
        credentials: Credentials,
        *,
        region: str = "us-east-1",
        addressing: Addressing = "path",
        ssl_context: ssl.SSLContext | None = None,
        server_name: str = "",
        renew: Callable[[], Credentials] | None = None,
        connections: int = DEFAULT_SIZE,
        deadlines: Deadlines | None = None,
        retries: RetryPolicy | None = None,
        warn: Callable[[str], object],
    ) -> None:
        if addressing not in ("path", "virtual"):
            raise ValueError(f"addressing is 'path' or 'virtual', not {addressing!r}")
        self.region = region
        self._deadlines = deadlines or Deadlines()
        self.pool = Pool(
            host,
            port,
            ssl_context,
            server_name=server_name,
            size=connections,
            deadlines=self._deadlines,
        )
        self._addressing = addressing
        name = f"[{host}]" if ":" in host else host
        default_port = 80 if ssl_context is None else 443
        self._authority = name if port == default_port else f"{name}:{port}"
        self._signer = Signer(credentials, region)
        self._renew = renew
        self._warn = warn
        self._retries = retries or RetryPolicy()
        self.retried = 0
        """How many requests were sent again after a pause."""
        self._unanswered: dict[tuple[str, str, str], int] = {}
        """How many times the deadline each of these requests has."""
        self._hashing = trio.CapacityLimiter(HASH_THREADS)
        self._buckets: dict[str, tuple[str, str]] = {}

    def __repr__(self) -> str:
        return f"<Client of {self._authority}, {self._signer!r}>"

    def use(self, credentials: Credentials) -> None:
        """Sign all further requests with these credentials."""
        if credentials == self._signer.credentials:
            return
        offset = self._signer.offset
        self._signer = Signer(credentials, self.region)
        self._signer.offset = offset

    async def attempts(
        self, what: str, bucket: str, key: str, attempt: Callable[[], Awaitable[T]]
    ) -> T:
        """Call `attempt` until it succeeds, fails for good, or has been tried often enough.

        Raises:
            StoreError: one of its kinds, with `what` and the names in its message.
        """
        failures = renewals = 0
        clock_set = False
        while True:
            failure: StoreError
            cause: Exception | None = None
            asked_at = trio.current_time()
            try:
                return await attempt()
            except TransportError as error:
                failure = self._failure_of(error, what, bucket, key)
                cause = error
            except StoreUnavailable as error:
                failure = error
            except StoreRefused as error:
                error.asked_at = asked_at
                if error.is_outdated() and renewals < _RENEWALS:
                    renewals += 1
                    continue
                # `_refuse` has set our clock by the server's. Once is enough to know if it helped.
                if error.code != "RequestTimeTooSkewed" or clock_set:
                    raise
                clock_set = True
                continue
            failure.asked_at = asked_at
            failures += 1
            pause = None
            # An upload that is gone does not come back; all of it must be sent again. And whoever
            # heard nothing for so long leaves it to the wait for the whole store to ask again.
            again = failure.code != "NoSuchUpload" and not isinstance(cause, StepTimeout)
            if isinstance(failure, StoreUnavailable) and again:
                pause = self._retries.pause(failures, failure.retry_after)
            if pause is None:
                raise failure from cause
            self.retried += 1
            await trio.sleep(pause)

    async def send(
        self,
        what: str,
        method: str,
        bucket: str,
        key: str = "",
        query: str = "",
        data: bytes = b"",
        *,
        extra: tuple[tuple[str, str], ...] = (),
        sink: Sink | None = None,
        answer_seconds: float | None = None,
    ) -> Answer:
        """Send a request whose body is in memory, and return its answer, a success (2xx).

        Raises:
            StoreError, TransportError.
            OSError: the sink could not write.
        """
        host, path = self._address(bucket, key)
        # RFC 9110, section 8.6: a length belongs to a method that anticipates a body, 0 included.
        unsigned = f"content-length: {len(data)}\r\n" if data or method in ("PUT", "POST") else ""
        payload_hash = sha256(data).hexdigest() if data else EMPTY_SHA256
        signer = self._signer
        head = signer.head(method, host, path, query, payload_hash, extra, unsigned)
        request = Request(
            head + data, sink=sink, is_head=method == "HEAD", answer_seconds=answer_seconds
        )
        answer = await self._exchange(request, (method, bucket, key), len(data))
        if not 200 <= answer.status < 300:
            self._refuse(answer, signer, what, bucket, key)
        return answer

    async def send_region(
        self,
        what: str,
        bucket: str,
        key: str,
        query: str,
        file: int,
        offset: int,
        size: int,
    ) -> Answer:
        """PUT `size` bytes of a file from `offset`, and return the answer, a success (2xx).

        Raises:
            StoreError, TransportError; StoreError with the code `FileShrank`.
            OSError: the file could not be read.
        """
        try:
            if size <= SINGLE_SEND:
                data = _read(file, offset, size)
                return await self.send(what, "PUT", bucket, key, query, data)
            if size <= HASH_INLINE:
                payload_hash = sha256(_read(file, offset, size)).hexdigest()
            else:
                payload_hash = await trio.to_thread.run_sync(
                    _hash_region, file, offset, size, limiter=self._hashing
                )
            host, path = self._address(bucket, key)
            signer = self._signer
            head = signer.head(
                "PUT", host, path, query, payload_hash, (), f"content-length: {size}\r\n"
            )
            request = Request(head, file=file, offset=offset, size=size)
            answer = await self._exchange(request, ("PUT", bucket, key), size)
        except FileEnded as error:
            raise StoreError(
                f"{what} {bucket}/{key}: the file is shorter than announced, {error}",
                bucket=bucket,
                key=key,
                code="FileShrank",
            ) from None
        if not 200 <= answer.status < 300:
            self._refuse(answer, signer, what, bucket, key)
        return answer

    async def _exchange(self, request: Request, which: tuple[str, str, str], size: int) -> Answer:
        """Send a request and return its answer; the next one to the same object gets twice as long if none came."""
        patience = self._unanswered.get(which, 1)
        if request.answer_seconds is None:
            request.answer_seconds = self._deadlines.answer * patience + size / _SLOWEST
        try:
            answer = await self.pool.exchange(request)
        except NoAnswer:
            if len(self._unanswered) >= _UNANSWERED_MAX:
                self._unanswered.clear()
            self._unanswered[which] = min(patience * 2, _MOST_PATIENCE)
            raise
        if patience > 1:
            self._unanswered.pop(which, None)
        return answer

    def _refuse(self, answer: Answer, signer: Signer, what: str, bucket: str, key: str) -> None:
        """Raise the error that `answer` stands for.

        Before that the clock is set if the server finds it wrong, and credentials that are refused
        are renewed, unless another request has done so: `signer` is the one that was used.
        """
        error = error_of(answer, what, bucket, key)
        if isinstance(error, StoreRefused):
            if self._renew is not None and signer is self._signer:
                self.use(self._renew())
            error.is_outdated = lambda: signer is not self._signer
        server = http_date_seconds(answer.header(b"date"))
        if server is not None:
            offset = server - time.time()
            if answer.status == 403 and not answer.body and abs(offset - signer.offset) > MOST_SKEW:
                # An answer to HEAD has no body to say so, but it tells what time it is there.
                error.code = "RequestTimeTooSkewed"
            if error.code == "RequestTimeTooSkewed":
                self._set_clock(offset)
        raise error

    def _set_clock(self, offset: float) -> None:
        """Sign by the server's clock; one line tells by how much ours is off, for many requests that are refused together."""
        before, self._signer.offset = self._signer.offset, offset
        if abs(offset - before) <= _SAME_CLOCK:
            return
        if abs(offset) > MOST_SKEW:
            way = "behind" if offset > 0 else "ahead of"
            self._warn(
                f"the clock of this machine is {abs(offset):.0f} s {way} the store's: requests are signed by the store's clock;"
                " set the clocks (NTP)"
            )
        else:
            self._warn("the clock of this machine agrees with the store's again")

    def _failure_of(self, error: TransportError, what: str, bucket: str, key: str) -> StoreError:
        where = f"{bucket}/{key}" if key else bucket
        kind = StoreRefused if isinstance(error, CertificateRefused) else StoreUnavailable
        return kind(
            f"{what} {where}: {self._authority}: {error}",
            bucket=bucket,
            key=key,
            code=error.code,
        )

    def _address(self, bucket: str, key: str) -> tuple[str, str]:
        """Return the Host header and the encoded path."""
        host, prefix = self._buckets.get(bucket) or self._address_bucket(bucket)
        if not key:
            return host, prefix or "/"
        try:
            return host, f"{prefix}/{quote_key(key)}"
        except UnicodeEncodeError:
            raise StoreRefused(
                f"the key {key!r} has no UTF-8 form", bucket=bucket, key=key, code="InvalidKey"
            ) from None

    def _address_bucket(self, bucket: str) -> tuple[str, str]:
        # What is checked here keeps a name out of a message from changing the request: its host,
        # its path, or (the empty name) whether it is about a bucket at all.
        if not bucket.strip(".") or not _BUCKET_CHARACTERS.issuperset(bucket):
            raise StoreRefused(
                f"{bucket!r} is no bucket's name", bucket=bucket, code="InvalidBucketName"
            )
        if self._addressing == "path":
            address = self._authority, f"/{bucket}"
        else:
            # Connections still lead to the endpoint, so that all buckets share them; stores tell
            # their virtual hosts apart by this header alone.
            address = f"{bucket}.{self._authority}", ""
        if len(self._buckets) >= _BUCKETS_MAX:
            self._buckets.clear()
        self._buckets[bucket] = address
        return address


def _read(file: int, offset: int, size: int) -> bytes:
    data = os.pread(file, size, offset)
    while len(data) < size:
        more = os.pread(file, size - len(data), offset + len(data))
        if not more:
            raise FileEnded(f"{len(data)} of {size} bytes")
        data += more
    return data


def _hash_region(file: int, offset: int, size: int) -> str:
    digest = sha256()
    buffer = memoryview(bytearray(HASH_INLINE))
    done = 0
    while done < size:
        count = os.preadv(file, [buffer[: size - done]], offset + done)
        if count == 0:
            raise FileEnded(f"{done} of {size} bytes")
        digest.update(buffer[:count])
        done += count
        trio.from_thread.check_cancelled()
    return digest.hexdigest()
