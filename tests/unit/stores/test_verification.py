from __future__ import annotations

import base64
import hashlib
import zlib

import pytest

from iterum_sidecar.stores.verification import choose_check, md5_of_etag

BODY = b"the object's bytes"
MD5 = hashlib.md5(BODY).hexdigest().encode()
CHECKSUMS = {
    b"x-amz-checksum-crc32": base64.b64encode(zlib.crc32(BODY).to_bytes(4, "big")),
    b"x-amz-checksum-sha1": base64.b64encode(hashlib.sha1(BODY).digest()),
    b"x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(BODY).digest()),
}


@pytest.mark.parametrize("name", CHECKSUMS)
def test_checksums(name: bytes) -> None:
    for body, holds in ((BODY, True), (BODY + b"x", False), (BODY[:-1], False)):
        check = choose_check({name: CHECKSUMS[name], b"etag": b'"' + b"0" * 32 + b'"'})
        assert check is not None
        assert not check.from_etag
        assert check.name == name.decode()
        check.update(body[:5])
        check.update(memoryview(body)[5:])
        assert check.holds() is holds


@pytest.mark.parametrize("etag", [b'"%s"' % MD5, MD5, b'"%s"' % MD5.upper()])
def test_an_etag_that_looks_like_an_md5(etag: bytes) -> None:
    check = choose_check({b"etag": etag})
    assert check is not None
    assert check.from_etag
    check.update(BODY)
    assert check.holds()
    assert check.digest().hex().encode() == MD5
    assert choose_check({b"etag": etag}, trust_etag=False) is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"etag": b'"%s-3"' % MD5},
        {b"etag": b'W/"%s"' % MD5},
        {b"etag": b'"' + b"g" * 32 + b'"'},
        {b"etag": b'"' + b"0" * 31 + b'"'},
        {b"etag": MD5, b"x-amz-server-side-encryption": b"aws:kms"},
        {b"etag": MD5, b"x-amz-server-side-encryption": b"aws:kms:dsse"},
        {b"etag": MD5, b"x-amz-server-side-encryption-customer-algorithm": b"AES256"},
    ],
)
def test_etags_that_say_nothing(headers: dict[bytes, bytes]) -> None:
    assert md5_of_etag(headers) is None
    assert choose_check(headers) is None


def test_encryption_with_the_stores_own_key_leaves_the_md5() -> None:
    assert md5_of_etag({b"etag": MD5, b"x-amz-server-side-encryption": b"AES256"}) is not None


@pytest.mark.parametrize(
    "headers",
    [
        {b"x-amz-checksum-type": b"COMPOSITE"},
        {b"x-amz-checksum-sha256": CHECKSUMS[b"x-amz-checksum-sha256"] + b"-2"},
        {b"x-amz-checksum-sha256": b"not base64!"},
    ],
)
def test_checksums_that_say_nothing_fall_back_to_the_etag(headers: dict[bytes, bytes]) -> None:
    check = choose_check(
        {b"x-amz-checksum-sha256": CHECKSUMS[b"x-amz-checksum-sha256"], b"etag": MD5, **headers}
    )
    assert check is not None
    assert check.name == "ETag"
