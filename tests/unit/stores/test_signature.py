"""Vectors: "Signature Calculations for the Authorization Header", S3 API reference."""

from __future__ import annotations

import calendar
import datetime as dt
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import unquote

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iterum_sidecar.stores.signature import (
    EMPTY_SHA256,
    Credentials,
    Signer,
    canonical_query,
    quote,
    quote_key,
)
from tests.unit.stores.scripted import header

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
HOST = "examplebucket.s3.amazonaws.com"
EPOCH = float(calendar.timegm((2013, 5, 24, 0, 0, 0)))
PUBLISHED = Credentials("AKIAIOSFODNN7EXAMPLE", SECRET)

text = st.text(st.characters(exclude_categories=["Cs"]))


def signer(credentials: Credentials = PUBLISHED, region: str = "us-east-1") -> Signer:
    return Signer(credentials, region, clock=lambda: EPOCH)


def authorization(head: bytes) -> str:
    value = header(head, "authorization")
    assert value is not None
    return value


def signature(head: bytes) -> str:
    return authorization(head).rpartition("Signature=")[2]


def test_get_object() -> None:
    head = signer().head("GET", HOST, "/test.txt", extra=(("range", "bytes=0-9"),))
    assert authorization(head) == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, "
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )
    assert head.startswith(b"GET /test.txt HTTP/1.1\r\n")
    assert head.endswith(b"\r\n\r\n")
    assert header(head, "range") == "bytes=0-9"


def test_put_object() -> None:
    payload_hash = sha256(b"Welcome to Amazon S3.").hexdigest()
    extra = (
        ("date", "Fri, 24 May 2013 00:00:00 GMT"),
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
    )
    path = quote_key("/test$file.text")
    head = signer().head("PUT", HOST, path, "", payload_hash, extra, "content-length: 21\r\n")
    assert signature(head) == "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
    assert head.endswith(b"\r\ncontent-length: 21\r\n\r\n")


def test_get_bucket_lifecycle() -> None:
    head = signer().head("GET", HOST, "/", canonical_query({"lifecycle": ""}))
    assert signature(head) == "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"


def test_list_objects() -> None:
    head = signer().head("GET", HOST, "/", canonical_query({"prefix": "J", "max-keys": "2"}))
    assert signature(head) == "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    assert head.startswith(b"GET /?max-keys=2&prefix=J HTTP/1.1\r\n")


@pytest.fixture(scope="module", autouse=True)
def frozen_botocore() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        now = dt.datetime.fromtimestamp(EPOCH, dt.UTC)
        patch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: now)
        yield


@given(
    key=text,
    parameters=st.dictionaries(text.filter(bool), text, max_size=4),
    token=st.none() | st.sampled_from(["token", "a/b+c==%s"]),
    body=st.binary(max_size=20),
    region=st.sampled_from(["us-east-1", "eu-west-3"]),
)
def test_agrees_with_botocore(
    key: str, parameters: dict[str, str], token: str | None, body: bytes, region: str
) -> None:
    """The reference for what AWS publishes no example of: session tokens, Unicode, odd keys."""
    path = f"/bucket/{quote_key(key)}"
    query = canonical_query(parameters)
    ours = signer(Credentials("access", "secret", token), region).head(
        "PUT",
        "localhost:9000",
        path,
        query,
        sha256(body).hexdigest(),
        (("x-amz-checksum-mode", "ENABLED"),),
    )
    request = botocore.awsrequest.AWSRequest(
        method="PUT",
        url=f"http://localhost:9000{path}" + (f"?{query}" if query else ""),
        data=body,
        headers={"x-amz-checksum-mode": "ENABLED"},
    )
    botocore.auth.S3SigV4Auth(
        botocore.credentials.Credentials("access", "secret", token), "s3", region
    ).add_auth(request)
    assert authorization(ours) == request.headers["Authorization"]
    assert header(ours, "x-amz-security-token") == token


@given(text)
def test_quoting_can_be_undone(key: str) -> None:
    assert unquote(quote_key(key), errors="strict") == key
    assert unquote(quote(key), errors="strict") == key
    assert quote_key(key).count("/") == key.count("/")
    assert "/" not in quote(key)
    assert set(quote_key(key)) <= set("/%-._~") | set(map(chr, range(48, 58))) | set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    )


def test_a_query_is_sorted_by_its_names() -> None:
    # Joined with their values they would sort otherwise, for `=` comes after the digits.
    assert canonical_query({"a": "2", "a0": "1", "A": "", "b c": "/"}) == "A=&a=2&a0=1&b%20c=%2F"


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a b", "a%20b"),
        ("100%", "100%25"),
        ("a+b", "a%2Bb"),
        ("猫/é", "%E7%8C%AB/%C3%A9"),
        ("a//b", "a//b"),
        ("/leading", "/leading"),
        ("a/../b/./c", "a/../b/./c"),
        ("~-_.", "~-_."),
        ("\0\r\n", "%00%0D%0A"),
    ],
)
def test_keys(key: str, path: str) -> None:
    assert quote_key(key) == path


def test_a_lone_surrogate_has_no_form() -> None:
    with pytest.raises(UnicodeEncodeError):
        quote_key("\ud800")


def test_the_key_is_derived_again_each_day() -> None:
    times = [EPOCH, EPOCH + 0.9, EPOCH + 1, EPOCH + 86_400]
    remaining = iter(times)
    kept = Signer(PUBLISHED, clock=lambda: next(remaining))
    heads = []
    for now in times:
        fresh = Signer(PUBLISHED, clock=partial(float, now))
        heads.append(kept.head("GET", HOST, "/x"))
        assert heads[-1] == fresh.head("GET", HOST, "/x")
    assert len(set(heads)) == 3
    assert "/20130525/" in authorization(heads[-1])


def test_the_offset_corrects_the_clock() -> None:
    wrong = Signer(PUBLISHED, clock=lambda: EPOCH - 3600)
    wrong.offset = 3600.0
    assert wrong.head("GET", HOST, "/x") == signer().head("GET", HOST, "/x")


def test_hosts_of_many_buckets_do_not_fill_the_memory() -> None:
    one = signer()
    for number in range(2000):
        one.head("GET", f"{number}.{HOST}", "/x")
    assert len(one._templates) <= 512


def test_secrets_are_not_shown() -> None:
    credentials = Credentials("access", "the secret", "the token")
    for thing in (credentials, Signer(credentials)):
        assert "the secret" not in repr(thing)
        assert "the token" not in repr(thing)
        assert "access" in repr(thing)


@pytest.mark.parametrize(
    ("access_key", "token"), [("key\n", None), ("key", "token\r\nx: y"), ("é", None)]
)
def test_what_no_header_may_hold(access_key: str, token: str | None) -> None:
    with pytest.raises(ValueError, match="no header may hold") as caught:
        Credentials(access_key, "secret", token)
    assert access_key not in str(caught.value)


def test_the_hash_of_nothing() -> None:
    assert sha256().hexdigest() == EMPTY_SHA256
