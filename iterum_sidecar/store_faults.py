"""Whose fault it is when the store does not give or take an object: the fragment's, or the store's own.

A HEAD of our own output bucket tells (design, "Cases that decide the ledger"): if that is refused too, the store or our
credentials are at fault, and everything waits with one log line; if it succeeds, a missing object or bucket is the
fragment's fault. A refusal of access waits, unless another object of that bucket has been read since: a queue is
never poured into the dead letters because a key expired or a bucket is barred.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iterum_sidecar.stores.port import BucketMissing, StoreError, StoreRefused

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


class StoreFaults:
    """Decides, for all stages together, and waits where waiting is the answer."""

    def __init__(self, store: Store, output_bucket: str, patience: Patience) -> None:
        self._store = store
        self._output_bucket = output_bucket
        self._patience = patience
        self._reads: dict[str, int] = {}
        self._made_in_vain = False

    def succeeded(self, bucket: str = "") -> None:
        """A request went well; `bucket` is named for a read of one of its objects."""
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
        if not error.retryable:
            try:
                await self._check_own_bucket()
            except StoreError as own:
                await self._patience.wait(f"{error}; and for our own bucket: {own}")
                return False
            barred = isinstance(error, StoreRefused) and error.code in _ACCESS_CODES
            read_since = reads_before is not None and self.reads(error.bucket) > reads_before
            if not barred or read_since:
                return True
        await self._patience.wait(str(error))
        return False

    async def wait(self, reason: str) -> None:
        """Wait until it is time to try again.

        Raises:
            ServiceLost: the store has been away for SIDECAR_SERVICE_TIMEOUT.
        """
        await self._patience.wait(reason)

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
