"""The store: the way there, the clock, the login, the output bucket with an object in it, and the config files.

An output bucket that is missing is made, as `run` does: nothing else would tell whether it may be. It is all that stays.
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.check.reaching import Address, reach
from iterum_sidecar.config_files import CONFIG_PREFIX
from iterum_sidecar.stores.http1 import Request
from iterum_sidecar.stores.pool import Pool
from iterum_sidecar.stores.port import BucketMissing, ObjectMissing, StoreError, StoreRefused
from iterum_sidecar.stores.retries import RetryPolicy, http_date_seconds
from iterum_sidecar.stores.s3 import S3Store
from iterum_sidecar.stores.transport import TransportError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iterum_sidecar.check.findings import Findings
    from iterum_sidecar.check.variables import Readable

__all__ = ["look_at_store"]

#: Seconds; S3 refuses a signature that is 15 minutes off, and a clock that is 5 off will be 15 some day.
MOST_SKEW = 300.0

#: Where the probe object is put; a name of its own, so that nobody's object is ever written or deleted.
_PROBE_PREFIX = "iterum_sidecar_check/"

_USES = (
    "MINIO_URL",
    "MINIO_ACCESS_KEY",
    "MINIO_SECRET_KEY",
    "MINIO_USE_SSL",
    "SIDECAR_S3_REGION",
    "SIDECAR_S3_SESSION_TOKEN",
    "SIDECAR_S3_ADDRESSING",
    "SIDECAR_STORE_SERVER_NAME",
)
_USES_FOR_TLS = (
    "SIDECAR_CA_FILE",
    "SIDECAR_CLIENT_CERTIFICATE",
    "SIDECAR_CLIENT_KEY",
    "SIDECAR_TLS_VERIFY",
)

#: Error codes of S3 and what mends each ("Error responses" in the S3 API reference).
_REMEDIES = {
    "InvalidAccessKeyId": "mend MINIO_ACCESS_KEY: the store does not know it",
    "SignatureDoesNotMatch": "mend MINIO_SECRET_KEY: it does not belong to MINIO_ACCESS_KEY",
    "InvalidToken": "set SIDECAR_S3_SESSION_TOKEN to the token that belongs to the keys",
    "ExpiredToken": "get new keys and their session token",
    "RequestTimeTooSkewed": "set the clocks",
    "AuthorizationHeaderMalformed": "mend SIDECAR_S3_REGION",
    "PermanentRedirect": "mend SIDECAR_S3_REGION, or MINIO_URL",
    "InvalidBucketName": "mend MINIO_OUTPUT_BUCKET: 3 to 63 characters, lower-case letters, digits, - and .",
    "BucketAlreadyExists": "choose another MINIO_OUTPUT_BUCKET: this name is another account's",
    "NotFound": "see whether MINIO_URL leads to a store that speaks S3",
    "MethodNotAllowed": "see whether MINIO_URL leads to a store that speaks S3",
    "AccessDenied": "let these keys make buckets, and get, put and delete objects in them",
}
#: Those that speak of who asks, whatever is asked for.
_LOGIN_CODES = frozenset(
    {
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "InvalidToken",
        "ExpiredToken",
        "AuthorizationHeaderMalformed",
    }
)


async def look_at_store(readable: Readable, *, seconds: float, findings: Findings) -> None:
    """Add what there is to say of the store; each look may take `seconds`."""
    settings = readable.settings
    if reason := readable.lacks(*_USES, *(_USES_FOR_TLS if settings.store_tls else ())):
        findings.unknown("store", reason)
        return
    address = Address(
        settings.store_host,
        settings.store_port,
        "MINIO_URL",
        readable.context if settings.store_tls else None,
        settings.store_server_name,
        "SIDECAR_STORE_SERVER_NAME",
    )
    stream = await reach(address, seconds=seconds, findings=findings)
    if stream is not None:
        await trio.aclose_forcefully(stream)
        if await _look_at_clock(address, seconds, findings):
            await _look_inside(readable, address, seconds, findings)
            return
    findings.unknown("bucket", "not looked at: the store does not answer")


async def _look_at_clock(address: Address, seconds: float, findings: Findings) -> bool:
    """Ask for nothing, unsigned, and compare the clocks; return whether HTTP is spoken there."""
    head = f"HEAD / HTTP/1.1\r\nhost: {address}\r\n\r\n".encode()
    pool = Pool(
        address.host, address.port, address.context, server_name=address.server_name, size=1
    )
    reason = f"no answer within {seconds:g} s"
    answer = None
    try:
        with trio.move_on_after(seconds):
            answer = await pool.exchange(Request(head, is_head=True))
    except TransportError as error:
        reason = str(error)
    finally:
        pool.close()
    if answer is None:
        findings.failed(
            "HTTP",
            f"{address}: {reason}",
            "see whether a store listens there; where it speaks TLS, write https:// in MINIO_URL or set MINIO_USE_SSL=true",
        )
        return False
    server = http_date_seconds(answer.header(b"date"))
    if server is None:
        findings.unknown("clock", "the store does not say what time it is")
        return True
    skew = time.time() - server
    # The store tells whole seconds, and the answer has taken its time.
    detail = f"ours is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the store's"
    if abs(skew) > MOST_SKEW:
        findings.failed(
            "clock",
            f"{detail}; S3 refuses requests from 900 s on",
            "set the clocks: NTP on both machines",
        )
    else:
        findings.ok("clock", detail if abs(skew) >= 2 else "the same as the store's")
    return True


async def _look_inside(
    readable: Readable, address: Address, seconds: float, findings: Findings
) -> None:
    settings = readable.settings
    async with S3Store(
        address.host,
        address.port,
        settings.store_access_key,
        settings.store_secret_key,
        session_token=settings.s3_session_token or None,
        region=settings.s3_region,
        addressing="virtual" if settings.s3_addressing == "virtual" else "path",
        ssl_context=address.context,
        server_name=address.server_name,
        retries=RetryPolicy(attempts=1),
    ) as store:
        looks = _Looks(store, seconds, findings)
        if reason := readable.lacks("MINIO_OUTPUT_BUCKET"):
            findings.unknown("bucket", reason)
        elif not await looks.at_bucket(settings.output_bucket):
            findings.unknown("config files", "not looked at, as the look before did not succeed")
            return
        if reason := readable.lacks("ITERUM_CONFIG", "PIPELINE_HASH"):
            findings.unknown("config files", reason)
        else:
            await looks.at_config_files(settings.config_bucket, settings.config_files)


class _Looks:
    """The looks at what is in a store. `_subject` is what is being looked at."""

    def __init__(self, store: S3Store, seconds: float, findings: Findings) -> None:
        self._store = store
        self._seconds = seconds
        self._findings = findings
        self._subject = ""
        self._scope = trio.CancelScope()

    async def at_bucket(self, bucket: str) -> bool:
        """Look whether a bucket can be worked with; return whether the store answers and knows us."""
        self._begin("login")
        with self._scope:
            try:
                await self._use_bucket(bucket)
            except StoreError as error:
                self._add(error)
                return self._subject != "login"
        return self._has_answered()

    async def at_config_files(self, bucket: str, files: dict[str, str]) -> None:
        """Look whether each config file is there."""
        if not files:
            self._findings.ok("config files", "none is named in ITERUM_CONFIG")
        for file in dict.fromkeys(files.values()):
            self._begin("config file")
            with self._scope:
                try:
                    size = await self._store.head_object(bucket, CONFIG_PREFIX + file)
                except ObjectMissing:
                    self._findings.warning(
                        "config file",
                        f"{file} is not in {bucket}; `run` goes on asking, and a step that needs it waits",
                        f"put it there as {CONFIG_PREFIX}{file}, or take it out of config_files",
                    )
                except StoreError as error:
                    self._add(error)
                else:
                    self._findings.ok("config file", f"{file}: {size} bytes in {bucket}")
            if not self._has_answered():
                return

    def _begin(self, subject: str) -> None:
        self._subject = subject
        self._scope = trio.CancelScope(deadline=trio.current_time() + self._seconds)

    def _has_answered(self) -> bool:
        if self._scope.cancelled_caught:
            self._findings.failed(
                self._subject,
                f"no answer within {self._seconds:g} s",
                "see to the store's log and its load",
            )
        return not self._scope.cancelled_caught

    def _add(self, error: StoreError) -> None:
        # Whoever is refused by name and key is not logged in, whatever was being done.
        subject = "login" if error.code in _LOGIN_CODES else self._subject
        self._findings.failed(
            subject, str(error), _REMEDIES.get(error.code, "see to the store's log")
        )

    async def _use_bucket(self, bucket: str) -> None:
        key = f"{_PROBE_PREFIX}{secrets.token_hex(16)}"
        missing = await self._ask_for(bucket, key)
        self._findings.ok("login", "the store knows the keys")
        self._subject = "bucket"
        await self._store.ensure_bucket(bucket)
        self._findings.ok(
            "bucket",
            f"{bucket} was not there, and has been made, as `run` does"
            if missing
            else f"{bucket} is there",
        )
        self._subject = "object"
        await self._move_object(bucket, key)
        self._findings.ok("object", f"{key} was written, read and deleted")

    async def _ask_for(self, bucket: str, key: str) -> bool:
        """Ask for an object that nobody has: an answer to GET says why it refuses. Return whether the bucket is missing."""
        with _memory() as file:
            try:
                await self._store.fetch(bucket, key, file)
            except BucketMissing:
                return True
            except (ObjectMissing, StoreRefused) as error:
                # Who may not list a bucket is not told that an object is missing (S3, GetObject, "Permissions").
                if error.code not in {"NoSuchKey", "AccessDenied"}:
                    raise
        return False

    async def _move_object(self, bucket: str, key: str) -> None:
        content = secrets.token_bytes(64)
        with _memory() as file, _memory() as back:
            os.write(file, content)
            try:
                await self._store.put(bucket, key, file, len(content))
                await self._store.fetch(bucket, key, back)
            except BaseException:
                # A probe that may be there is removed, also when the time is over; the first failure is what is told.
                with suppress(StoreError), trio.move_on_after(self._seconds, shield=True):
                    await self._store.delete_object(bucket, key)
                raise
            await self._store.delete_object(bucket, key)
            if os.pread(back, len(content) + 1, 0) != content:
                raise StoreError(
                    f"{bucket}/{key}: other bytes came back than were sent", code="OtherBytes"
                )


@contextmanager
def _memory() -> Iterator[int]:
    """Give the descriptor of a file that is in memory alone."""
    file = os.memfd_create("probe")
    try:
        yield file
    finally:
        os.close(file)
