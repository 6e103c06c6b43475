"""One request to an S3 server, signed by hand (AWS Signature Version 4), so that seeding needs no library."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import ssl
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testbed.object_stores import ObjectStore

__all__ = ["put"]

SCOPE = ("us-east-1", "s3", "aws4_request")
HEADERS = "host;x-amz-content-sha256;x-amz-date"
SECONDS = 60


def put(store: ObjectStore, bucket: str, key: str = "", data: bytes = b"") -> None:
    """Store an object or, without a key, make a bucket; an exception says what the server answered instead."""
    now = dt.datetime.now(dt.UTC)
    time, day = f"{now:%Y%m%dT%H%M%SZ}", f"{now:%Y%m%d}"
    path = urllib.parse.quote(f"/{bucket}/{key}" if key else f"/{bucket}", safe="/-_.~")
    digest = hashlib.sha256(data).hexdigest()
    canonical = (
        f"PUT\n{path}\n\nhost:{store.endpoint}\nx-amz-content-sha256:{digest}\nx-amz-date:{time}\n\n"
        f"{HEADERS}\n{digest}"
    )
    scope = "/".join((day, *SCOPE))
    to_sign = f"AWS4-HMAC-SHA256\n{time}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    secret = f"AWS4{store.secret_key}".encode()
    for part in (day, *SCOPE):
        secret = hmac.digest(secret, part.encode(), "sha256")
    signature = hmac.digest(secret, to_sign.encode(), "sha256").hex()
    request = urllib.request.Request(
        f"{store.url}{path}",
        data=data,
        method="PUT",
        headers={
            "x-amz-date": time,
            "x-amz-content-sha256": digest,
            "Content-Type": "application/octet-stream",
            "Authorization": (
                f"AWS4-HMAC-SHA256 Credential={store.access_key}/{scope}, SignedHeaders={HEADERS}, "
                f"Signature={signature}"
            ),
        },
    )
    context = None
    if store.tls is not None:
        context = ssl.create_default_context(cafile=str(store.tls.authority))
    with urllib.request.urlopen(request, timeout=SECONDS, context=context) as answer:
        answer.read()
