"""What an answer says about the bytes of its object, and whether the bytes agree; without I/O."""

from __future__ import annotations

import binascii
import hashlib
import string
import zlib
from typing import TYPE_CHECKING, Final, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Check", "choose_check", "md5_of_etag"]

_HEX: Final = frozenset(string.hexdigits.lower())


class _Digest(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...
    def digest(self) -> bytes: ...


@final
class _Crc32:
    """zlib's CRC-32 in the shape of a hash, big-endian as S3 writes it."""

    __slots__ = ("_value",)

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes | memoryview, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


def _md5() -> _Digest:
    # Against accidents only; without the flag a FIPS build refuses it.
    return hashlib.md5(usedforsecurity=False)


# The full-object checksums of S3 that the standard library can compute. CRC-32 comes first because
# it costs a tenth of the others. CRC-32C, CRC-64/NVME and XXHash are left to the ETag.
_CHECKSUMS: Final[tuple[tuple[bytes, Callable[[], _Digest]], ...]] = (
    (b"x-amz-checksum-crc32", _Crc32),
    (b"x-amz-checksum-sha256", hashlib.sha256),
    (b"x-amz-checksum-sha1", lambda: hashlib.sha1(usedforsecurity=False)),
)


@final
class Check:
    """One way to check an object's bytes: feed them to `update`, then ask `holds`.

    `from_etag` marks the weaker kind: an ETag that looks like an MD5 and may be something else.
    """

    __slots__ = ("_digest", "_expected", "from_etag", "name", "update")

    def __init__(self, name: str, digest: _Digest, expected: bytes, *, from_etag: bool) -> None:
        self.name = name
        self.from_etag = from_etag
        self._digest = digest
        self._expected = expected
        self.update = digest.update

    def holds(self) -> bool:
        """Tell whether the bytes so far are those that were promised."""
        return self._digest.digest() == self._expected

    def digest(self) -> bytes:
        """Return the digest of the bytes so far."""
        return self._digest.digest()


def choose_check(headers: Mapping[bytes, bytes], *, trust_etag: bool = True) -> Check | None:
    """Choose the check that an answer allows, or None when it allows none.

    A checksum of the whole object is preferred. One of a multipart upload's parts (`COMPOSITE`, or
    a value with a `-`) says nothing about the bytes in their order.
    """
    if headers.get(b"x-amz-checksum-type", b"").upper() != b"COMPOSITE":
        for name, make in _CHECKSUMS:
            value = headers.get(name)
            if value is not None and b"-" not in value:
                try:
                    expected = binascii.a2b_base64(value, strict_mode=True)
                except binascii.Error:
                    continue
                return Check(name.decode(), make(), expected, from_etag=False)
    if trust_etag:
        expected_md5 = md5_of_etag(headers)
        if expected_md5 is not None:
            return Check("ETag", _md5(), expected_md5, from_etag=True)
    return None


def md5_of_etag(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Return the MD5 that an ETag gives, or None when it gives none.

    "Object" in the S3 API reference, on ETags: the MD5 of the object, except where it was made by a
    multipart upload (then there is a `-`) or encrypted with a key of KMS or of the customer.
    """
    etag = headers.get(b"etag", b"").decode("latin-1").strip('"').lower()
    if len(etag) != 32 or not _HEX.issuperset(etag):
        return None
    if headers.get(b"x-amz-server-side-encryption", b"").startswith(b"aws:kms"):
        return None
    if b"x-amz-server-side-encryption-customer-algorithm" in headers:
        return None
    return bytes.fromhex(etag)
