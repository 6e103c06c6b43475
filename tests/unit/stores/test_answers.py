from __future__ import annotations

import pytest

from iterum_sidecar.stores.answers import (
    XmlRefused,
    error_of,
    is_failure,
    leaves,
    read_page,
    read_upload_id,
)
from iterum_sidecar.stores.http1 import Answer
from iterum_sidecar.stores.port import (
    BucketMissing,
    ObjectMissing,
    StoredObject,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)

NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def make_answer(status: int, body: str = "", **headers: str) -> Answer:
    made = Answer(status, {k.replace("_", "-").encode(): v.encode() for k, v in headers.items()})
    made.body = body.encode()
    return made


def error_body(code: str) -> str:
    return f"<Error {NAMESPACE}><Code>{code}</Code><Message>Why\n  not.</Message></Error>"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NoSuchKey", ObjectMissing),
        (404, "NoSuchBucket", BucketMissing),
        (404, "NoSuchUpload", StoreUnavailable),
        (403, "AccessDenied", StoreRefused),
        (403, "InvalidAccessKeyId", StoreRefused),
        (403, "SignatureDoesNotMatch", StoreRefused),
        (403, "RequestTimeTooSkewed", StoreRefused),
        (400, "ExpiredToken", StoreRefused),
        (400, "KeyTooLongError", StoreRefused),
        (409, "BucketAlreadyExists", StoreRefused),
        (409, "OperationAborted", StoreUnavailable),
        (400, "RequestTimeout", StoreUnavailable),
        (400, "BadDigest", StoreUnavailable),
        (400, "XAmzContentSHA256Mismatch", StoreUnavailable),
        (503, "SlowDown", StoreUnavailable),
        (500, "InternalError", StoreUnavailable),
        (200, "InternalError", StoreUnavailable),
        (501, "NotImplemented", StoreRefused),
    ],
)
def test_errors_by_code(status: int, code: str, kind: type[StoreError]) -> None:
    error = error_of(make_answer(status, error_body(code)), "get", "a-bucket", "a/key")
    assert type(error) is kind
    assert (error.bucket, error.key, error.code) == ("a-bucket", "a/key", code)
    assert str(error) == f"get a-bucket/a/key: HTTP {status} {code}: Why not."
    assert error.retryable is (kind is StoreUnavailable)


@pytest.mark.parametrize(
    ("status", "key", "kind", "code"),
    [
        (404, "key", ObjectMissing, "NotFound"),
        (404, "", BucketMissing, "NotFound"),
        (403, "key", StoreRefused, "AccessDenied"),
        (400, "", StoreRefused, "BadRequest"),
        (408, "key", StoreUnavailable, "HTTP408"),
        (429, "key", StoreUnavailable, "TooManyRequests"),
        (502, "key", StoreUnavailable, "BadGateway"),
        (504, "key", StoreUnavailable, "GatewayTimeout"),
        (206, "key", StoreUnavailable, "HTTP206"),
    ],
)
@pytest.mark.parametrize(
    "body", ["", "<html>a proxy's page", "<Error><Message>m</Message></Error>"]
)
def test_errors_by_status(
    status: int, key: str, kind: type[StoreError], code: str, body: str
) -> None:
    error = error_of(make_answer(status, body), "look at", "bucket", key)
    assert type(error) is kind
    assert error.code == code


def test_a_redirect_names_the_region() -> None:
    answer = make_answer(301, error_body("PermanentRedirect"), x_amz_bucket_region="eu-west-3")
    error = error_of(answer, "get", "bucket", "key")
    assert type(error) is StoreRefused
    assert "region eu-west-3" in str(error)
    assert error_of(make_answer(307), "get", "bucket").code == "PermanentRedirect"


def test_the_pause_that_a_store_asks_for() -> None:
    error = error_of(make_answer(503, retry_after="7"), "get", "bucket", "key")
    assert isinstance(error, StoreUnavailable)
    assert error.retry_after == 7.0


def test_a_strangers_words_stay_on_one_line() -> None:
    body = "<Error><Code>Odd</Code><Message>one\ntwo\u202e\x85" + "x" * 1000 + "</Message></Error>"
    message = str(error_of(make_answer(400, body), "get", "bucket", "key"))
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"no XML",
        b"<open>",
        b"<a></b>",
        b"<!DOCTYPE a><a/>",
        b'<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;">]><a>&c;</a>',
        b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
        b"<a>&undefined;</a>",
        b"\xff\xfe",
        b"<a>" * 9 + b"</a>" * 9,
        b"<a><" + b"b" * 65 + b"/></a>",
        b"<a>" + b"<b/>" * 50_001 + b"</a>",
        b"<a>\xff</a>",
    ],
)
def test_documents_that_are_refused(document: bytes) -> None:
    with pytest.raises(XmlRefused):
        leaves(document)


def test_leaves() -> None:
    document = f"<r {NAMESPACE}><a>1 &lt; 2</a><s:b xmlns:s='x'><c/><c> t </c></s:b>tail</r>"
    assert leaves(document.encode()) == [("a", "1 < 2"), ("b/c", ""), ("b/c", " t ")]


@pytest.mark.parametrize("encoding", ["foo", "utf-7", "idna", "base64", "utf-16", "latin-1"])
def test_a_document_is_utf_8_whatever_it_says_of_itself(encoding: str) -> None:
    document = f'<?xml version="1.0" encoding="{encoding}"?><a><b>é</b></a>'
    assert leaves(document.encode()) == [("b", "é")]


def test_pages() -> None:
    page = read_page(
        f"""<ListBucketResult {NAMESPACE}><Name>bucket</Name><Prefix>p+</Prefix>
        <EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>
        <Contents><Key>a+b%2Bc%25</Key><Size>0</Size><Owner><ID>Key</ID></Owner></Contents>
        <Contents><Size>7</Size><Key>d/e</Key></Contents>
        <NextContinuationToken>next one</NextContinuationToken></ListBucketResult>""".encode()
    )
    assert page.objects == [StoredObject("a b+c%", 0), StoredObject("d/e", 7)]
    assert page.following == "next one"


def test_a_last_page_whose_names_are_as_they_are() -> None:
    page = read_page(
        b"<R><Contents><Key>a+b%41</Key><Size>1</Size></Contents>"
        b"<IsTruncated>false</IsTruncated><NextContinuationToken>x</NextContinuationToken></R>"
    )
    assert page == ([StoredObject("a+b%41", 1)], "")


@pytest.mark.parametrize("size", [b"-1", b"", "\u0663".encode(), b"9" * 5000])
def test_a_page_that_makes_no_sense(size: bytes) -> None:
    with pytest.raises(XmlRefused):
        read_page(b"<R><Contents><Key>a</Key><Size>%b</Size></Contents></R>" % size)


def test_upload_ids() -> None:
    assert read_upload_id(b"<R><Bucket>b</Bucket><UploadId>id</UploadId></R>") == "id"
    for document in (b"<R><UploadId></UploadId></R>", b"<R/>", b"nothing"):
        with pytest.raises(XmlRefused):
            read_upload_id(document)


def test_a_failure_that_comes_with_200() -> None:
    assert is_failure(make_answer(200, f"\n  <?xml version='1.0'?>{error_body('X')}"))
    assert not is_failure(make_answer(200, "<CompleteMultipartUploadResult/>"))
    assert not is_failure(make_answer(200))
