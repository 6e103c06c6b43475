"""Whose fault it is when the store does not give or take an object: the object's, or the store's own.

A HEAD of our own output bucket tells of a refusal (design, "Cases that decide the ledger"): if that is refused too, the store or our
credentials are at fault, and everything waits with one log line; if it succeeds, a missing object or bucket is the
fragment's fault. What else is refused, or fails, condemns an object only when it has been tried several times while others of the same
bucket went well: a queue is never poured into the dead letters because a key expired, a bucket is barred, or a disk is full.

Who waits for what depends on what has gone well since the request was sent. Nothing: the store is away, and all wait together
(`patience.py`) until it answers a HEAD of our own bucket. Something, but nothing of the same kind: those who read from one bucket wait
together, and those who write do. Something of the same kind: the object waits by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import trio

from iterum_sidecar.exit_codes import ServiceLost
from iterum_sidecar.patience import Backoff
from iterum_sidecar.stores.port import BucketMissing, StoreError, StoreRefused, StoreUnavailable
from iterum_sidecar.telemetry.logs import get_log
from iterum_sidecar.tls import tls_advice

if TYPE_CHECKING:
    from iterum_sidecar.patience import Patience
    from iterum_sidecar.stores.port import Store

__all__ = ["StoreFaults", "Trial"]

_log = get_log(__name__)

#: Codes that speak of who asks or how, not of what is asked for ("Error responses" in the S3 API reference).
_ACCESS_CODES = frozenset(
    {
        "AccessDenied",
        "AccountProblem",
        "AllAccessDisabled",
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "Forbidden",
        "InvalidAccessKeyId",
        "InvalidSecurity",
        "InvalidToken",
        "NotSignedUp",
        "PermanentRedirect",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TemporaryRedirect",
        "TokenRefreshRequired",
        "Unauthorized",
    }
)

#: Codes that speak of the object alone, and say the same however often one asks. A 404 without one of them may be a proxy's.
_LASTING_CODES = frozenset(
    {
        "EntityTooLarge",
        "FileShrank",
        "InputChanged",
        "InvalidBucketName",
        "InvalidKey",
        "InvalidObjectName",
        "KeyTooLongError",
        "NoSuchBucket",
        "NoSuchKey",
    }
)

#: The code of what keeps a request from being asked at all, though only someone else can mend it; no fragment is to blame for that.
_NOT_ASKED = "CertificateRefused"

#: So many refusals condemn an object, if another of its bucket was read (or written) between each two. They take some 4 s: a key
#: that is on its way through a large store is refused here and there.
REFUSALS_BELIEVED = 5
#: The same for what the store fails at. Each is four requests, and 50 take three minutes at least: an overloaded store fails at most of what it is asked.
FAILURES_BELIEVED = 50
#: Seconds of failures after which one object is told of.
TELL_AFTER = 60.0

Way = Literal["read", "write"]


class StoreFaults:
    """Decides, for all stages together, and waits where waiting is the answer."""

    def __init__(self, store: Store, output_bucket: str, patience: Patience) -> None:
        self.store = store
        self.output_bucket = output_bucket
        self._patience = patience
        self._parts: dict[tuple[Way, str], Patience] = {}
        self._well: dict[tuple[Way, str], float] = {}
        """When something of each kind went well last."""
        self._answered_at: float | None = None
        self._heard_last: tuple[StoreError, str]
        """What was wrong with the store the last time that somebody asked, whoever it was."""

    @property
    def available(self) -> bool:
        """Whether the store has answered as it should, and nobody has had to wait for it since."""
        return self._answered_at is not None and not self._patience.is_waiting

    def reading(self, bucket: str) -> Trial:
        """Begin to ask for an object of a bucket."""
        return Trial(self, "read", bucket)

    def writing(self) -> Trial:
        """Begin to put an object into our own bucket."""
        return Trial(self, "write", self.output_bucket)

    def succeeded(self) -> None:
        """The store has answered a request as it should."""
        self._answered_at = trio.current_time()
        self._patience.over()

    def went_well(self, way: Way, bucket: str) -> None:
        """An object was read or written."""
        self._answered_at = self._well[way, bucket] = trio.current_time()
        self._patience.over()
        if self._parts and (part := self._parts.get((way, bucket))) is not None:
            part.over()

    def has_gone_well(self, way: Way, bucket: str, since: float) -> bool:
        """Tell whether another object has been read, or written, after a moment."""
        return self._well.get((way, bucket), since) > since

    async def wait(self, error: StoreError) -> None:
        """Wait until it is time to try again what failed with this error, with all that wait for the store.

        Raises:
            ServiceLost: the store has been away for SIDECAR_SERVICE_TIMEOUT.
        """
        await self._wait(self._patience, error, _reason(error))

    async def wait_for_kind(self, error: StoreError, way: Way, bucket: str, since: float) -> None:
        """Wait for the store; if it has answered others after the moment `since`, wait with those of this kind alone.

        Raises:
            ServiceLost.
        """
        if self._answered_at is None or self._answered_at <= since:
            await self._wait_for_store(error, _reason(error))
        else:
            await self.wait_with_kind(error, way, bucket)

    async def wait_with_kind(self, error: StoreError, way: Way, bucket: str) -> None:
        """Wait with those who read from one bucket, or write to it, of a store that is there.

        Raises:
            ServiceLost.
        """
        part = self._parts.get((way, bucket))
        if part is None:
            part = self._parts[way, bucket] = self._patience.part()
        await self._wait(part, error, _reason(error))

    async def is_refused_too(self, error: StoreError) -> bool:
        """Tell whether our own bucket is refused as well, having waited then.

        Raises:
            ServiceLost.
        """
        try:
            await self._look_at_own_bucket()
        except StoreError as own:
            refusal = own
        else:
            self.succeeded()
            return False
        await self._wait_for_store(refusal, f"{error}; and for our own bucket: {_reason(refusal)}")
        return True

    async def make_own_bucket(self, error: StoreError, *, again: bool) -> None:
        """Make our own bucket, which has vanished; wait if that cannot be done, or if it was done already.

        Raises:
            ServiceLost.
        """
        try:
            await self.store.ensure_bucket(self.output_bucket)
        except StoreError as why:
            refusal = why
        else:
            if again:
                await self._wait(self._patience, error, f"{error}; although it was made")
            return
        await self._wait(
            self._patience, refusal, f"{error}; and it cannot be made: {_reason(refusal)}"
        )

    async def _wait_for_store(self, error: StoreError, reason: str) -> None:
        """Wait until the store lets us have our own bucket: a HEAD of it costs little, and is not waited for before the next is sent."""
        lost: ServiceLost | None = None
        self._heard_last = (error, reason)
        async with trio.open_nursery() as probes:
            try:
                while await self._wait(self._patience, *self._heard_last):
                    probes.start_soon(self._probe)
            except ServiceLost as end:
                lost = end
            probes.cancel_scope.cancel("the store is back, or given up")
        if lost is not None:
            raise lost

    async def _probe(self) -> None:
        try:
            await self._look_at_own_bucket()
        except StoreError as error:
            self._heard_last = (error, _reason(error))
        else:
            self.succeeded()

    async def _look_at_own_bucket(self) -> None:
        try:
            await self.store.check_bucket(self.output_bucket)
        except BucketMissing:
            await self.store.ensure_bucket(self.output_bucket)

    async def _wait(self, patience: Patience, error: StoreError, reason: str) -> bool:
        retry_after = error.retry_after if isinstance(error, StoreUnavailable) else None
        return await patience.wait(reason, retry_after=retry_after, if_it_lasts=_advice(error))


class Trial:
    """One object that is read or written, as often as it takes, or until it is condemned."""

    def __init__(self, faults: StoreFaults, way: Way, bucket: str) -> None:
        self._faults = faults
        self._way: Way = way
        self._bucket = bucket
        self._began = trio.current_time()
        self._asked_before: float | None = None
        """When it was asked for in vain the last time."""
        self._backoff: Backoff | None = None
        self._made_own_bucket = False
        self._refusals = self._failures = 0
        self._failing_since = self._began
        self._told = False

    def succeeded(self) -> None:
        """The object was read or written."""
        self._faults.went_well(self._way, self._bucket)

    async def is_at_fault(self, error: StoreError) -> bool:
        """Tell whether the object itself is why the request failed; if not, return False when it is time to try again.

        Raises:
            ServiceLost: the store has been away for SIDECAR_SERVICE_TIMEOUT.
        """
        asked_at = self._began if error.asked_at is None else error.asked_at
        # What went well after it was asked for in vain the last time counts; after the first time, what did during the request.
        since = asked_at if self._asked_before is None else self._asked_before
        self._asked_before = asked_at
        if isinstance(error, BucketMissing) and error.bucket == self._faults.output_bucket:
            again, self._made_own_bucket = self._made_own_bucket, True
            await self._faults.make_own_bucket(error, again=again)
            at_fault = False
        elif error.retryable or error.code == _NOT_ASKED:
            at_fault = await self._is_condemned_by_failure(error, since)
        else:
            at_fault = await self._is_condemned_by_refusal(error, since)
        self._began = trio.current_time()
        return at_fault

    async def _is_condemned_by_refusal(self, error: StoreError, since: float) -> bool:
        if await self._faults.is_refused_too(error):
            self._refusals = 0
            return False
        if isinstance(error, StoreRefused) and error.is_outdated():
            # Other keys came meanwhile. What was read with them proves nothing of a refusal of the old ones.
            return False
        if error.code in _LASTING_CODES:
            return True
        others = self._faults.has_gone_well(self._way, self._bucket, since)
        if others or (self._way == "read" and error.code not in _ACCESS_CODES):
            self._refusals += 1
            if self._refusals >= REFUSALS_BELIEVED:
                return True
            await self._pause()
        else:
            await self._faults.wait_with_kind(error, self._way, self._bucket)
        return False

    async def _is_condemned_by_failure(self, error: StoreError, since: float) -> bool:
        if not self._faults.has_gone_well(self._way, self._bucket, since):
            await self._faults.wait_for_kind(error, self._way, self._bucket, since)
            return False
        now = trio.current_time()
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        if self._failures >= FAILURES_BELIEVED:
            return True
        if now - self._failing_since >= TELL_AFTER and not self._told:
            self._told = True
            _log.warning(
                "the store fails at one object and not at others; asking on",
                reason=str(error),
                failing_seconds=round(now - self._failing_since),
            )
        retry_after = error.retry_after if isinstance(error, StoreUnavailable) else None
        await self._pause(retry_after)
        return False

    async def _pause(self, retry_after: float | None = None) -> None:
        if self._backoff is None:  # nearly no object ever fails
            self._backoff = Backoff()
        await trio.sleep(self._backoff.next(retry_after))


def _reason(error: StoreError) -> str:
    return f"{error}{tls_advice(error, 'SIDECAR_STORE_SERVER_NAME')}"


def _advice(error: StoreError) -> str:
    if error.code == _NOT_ASKED:
        return "see to the certificate"
    if error.code in _ACCESS_CODES:
        return "see to the keys and what they allow; `iterum-sidecar check` tells more"
    if error.code in _UNREACHED_CODES:
        return "see that the store runs and can be reached from here; `iterum-sidecar check` tells more"
    return "see to the store's own log, and to whatever is between us and the store"


#: Codes of the transport: the store said nothing.
_UNREACHED_CODES = frozenset({"ConnectFailed", "ConnectionLost", "Timeout"})
