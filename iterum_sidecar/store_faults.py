"""Whose fault it is when the store does not give or take an object: the fragment's, or the store's own.

A HEAD of our own output bucket tells (design, "Cases that decide the ledger"): if that is refused too, the store or our
credentials are at fault, and everything waits with one log line; if it succeeds, a missing object or bucket is the
fragment's fault. A refusal of access waits, unless another object of that bucket has been read since: a queue is
never poured into the dead letters because a key expired or a bucket is barred.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iterum_sidecar.stores.port import BucketMissing, StoreError, StoreRefused
from iterum_sidecar.tls import tls_advice

if TYPE_CHECKING:
    from iterum_sidecar.patience import Patience
    from iterum_sidecar.stores.port import Store

__all__ = ["StoreFaults"]

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

#: The code of what keeps a request from being asked at all, though only someone else can mend it; no fragment is to blame for that.
_NOT_ASKED = "CertificateRefused"


class StoreFaults:
    """Decides, for all stages together, and waits where waiting is the answer."""

    def __init__(self, store: Store, output_bucket: str, patience: Patience) -> None:
        self._store = store
        self._output_bucket = output_bucket
        self._patience = patience
        self._reads: dict[str, int] = {}
        self._made_in_vain = False
        self._answered = False

    @property
    def available(self) -> bool:
        """Whether the store has answered as it should, and nobody has had to wait for it since."""
        return self._answered and not self._patience.is_waiting

    def succeeded(self, bucket: str = "") -> None:
        """A request went well; `bucket` is named for a read of one of its objects."""
        self._answered = True
        self._patience.over()
        self._made_in_vain = False
        if bucket:
            self._reads[bucket] = self._reads.get(bucket, 0) + 1

    def reads(self, bucket: str) -> int:
        """How many objects of a bucket have been read: compare two of these to know whether one was read since."""
        return self._reads.get(bucket, 0)

    async def is_its_own(self, error: StoreError, *, reads_before: int | None) -> bool:
        """Tell whether the request failed by the fault of what was asked for; if not, return False after a wait, to try again.

        `reads_before` is what `reads` said before the request, or None for one that was no read: reads then prove nothing.

        Raises:
            ServiceLost: the store has been away for SIDECAR_SERVICE_TIMEOUT.
        """
        if isinstance(error, BucketMissing) and error.bucket == self._output_bucket:
            await self._make_own_bucket(error)
            return False
        if not error.retryable and error.code != _NOT_ASKED:
            try:
                await self._check_own_bucket()
            except StoreError as own:
                advice = tls_advice(own, "SIDECAR_STORE_SERVER_NAME")
                await self._patience.wait(f"{error}; and for our own bucket: {own}{advice}")
                return False
            if isinstance(error, StoreRefused) and error.is_outdated():
                # Other keys came meanwhile. What was read with them proves nothing of a refusal of the old ones.
                return False
            barred = isinstance(error, StoreRefused) and error.code in _ACCESS_CODES
            read_since = reads_before is not None and self.reads(error.bucket) > reads_before
            if not barred or read_since:
                return True
        await self.wait(error)
        return False

    async def wait(self, error: StoreError) -> None:
        """Wait until it is time to try again what failed with this error.

        Raises:
            ServiceLost: the store has been away for SIDECAR_SERVICE_TIMEOUT.
        """
        await self._patience.wait(f"{error}{tls_advice(error, 'SIDECAR_STORE_SERVER_NAME')}")

    async def _make_own_bucket(self, error: StoreError) -> None:
        refusal: StoreError | None = None
        try:
            await self._store.ensure_bucket(self._output_bucket)
        except StoreError as why:
            refusal = why
        if refusal is not None:
            await self._patience.wait(f"{error}; and it cannot be made: {refusal}")
        elif self._made_in_vain:
            await self._patience.wait(f"{error}; although it was made")
        self._made_in_vain = True

    async def _check_own_bucket(self) -> None:
        try:
            await self._store.check_bucket(self._output_bucket)
        except BucketMissing:
            await self._store.ensure_bucket(self._output_bucket)
