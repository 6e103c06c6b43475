"""Rare answers of a store; the wire tests have real ones."""

from __future__ import annotations

from email.utils import formatdate
from time import time
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.check.findings import Findings, Outcome
from iterum_sidecar.check.store import look_at_store
from tests.unit.stores.scripted import Act, Answer, Scripted, answer, error, scripted

from .environment import by_subject, failed, readable

if TYPE_CHECKING:
    from collections.abc import Mapping

HELLO = answer(403, b"")
OK = answer(200)
NO_KEY = error(404, "NoSuchKey")


async def look(
    *script: Answer, seconds: float = 5, variables: Mapping[str, str] | None = None
) -> tuple[Findings, Scripted]:
    findings = Findings("store")
    # The first connection only shows that there is one.
    async with scripted(*script) as server:
        url = {"MINIO_URL": f"127.0.0.1:{server.port}"}
        await look_at_store(
            readable(**(url | dict(variables or {}))), seconds=seconds, findings=findings
        )
    return findings, server


def dated(offset: float) -> bytes:
    return answer(403, b"", f"Date: {formatdate(time() + offset, usegmt=True)}")


@pytest.mark.parametrize(
    ("offset", "outcome", "text"),
    [
        (0, Outcome.OK, "the same"),
        (-60, Outcome.OK, " s ahead of the store's"),
        (400, Outcome.FAILED, "behind the store's"),
        (-400, Outcome.FAILED, "ahead of the store's"),
    ],
)
async def test_clocks_are_compared(offset: float, outcome: Outcome, text: str) -> None:
    findings, _ = await look(dated(offset), error(403, "InvalidAccessKeyId"))
    found = by_subject(findings)["clock"]
    assert found.outcome is outcome
    assert text in found.detail


async def test_a_store_that_does_not_say_what_time_it_is_fails_nothing_by_that() -> None:
    findings, _ = await look(HELLO, error(403, "InvalidAccessKeyId"))
    assert "clock" in by_subject(findings, Outcome.UNKNOWN)


@pytest.mark.parametrize(
    ("code", "variable"),
    [
        ("InvalidAccessKeyId", "MINIO_ACCESS_KEY"),
        ("SignatureDoesNotMatch", "MINIO_SECRET_KEY"),
        ("AuthorizationHeaderMalformed", "SIDECAR_S3_REGION"),
        ("InvalidToken", "SIDECAR_S3_SESSION_TOKEN"),
    ],
)
async def test_a_login_that_is_refused_is_told_once_with_what_to_mend(
    code: str, variable: str
) -> None:
    findings, server = await look(HELLO, error(403, code))
    assert failed(findings).keys() == {"login"}
    assert variable in failed(findings)["login"].remedy
    assert len(server.requests) == 2


async def test_what_speaks_http_and_no_s3_is_told_as_such() -> None:
    findings, server = await look(HELLO, answer(404, b"<html>"))
    assert "speaks S3" in failed(findings)["login"].remedy
    assert len(server.requests) == 2


async def test_a_bucket_that_may_not_be_made_fails() -> None:
    findings, _ = await look(
        HELLO, error(404, "NoSuchBucket"), answer(404), error(403, "AccessDenied")
    )
    assert failed(findings).keys() == {"bucket"}
    assert "let these keys make buckets" in failed(findings)["bucket"].remedy
    assert "config files" in by_subject(findings, Outcome.OK)


async def test_a_bucket_that_is_not_there_is_made_and_the_probe_is_deleted() -> None:
    findings, server = await look(
        HELLO, error(404, "NoSuchBucket"), answer(404), OK, OK, NO_KEY, OK
    )
    # The script's object never comes back; what is put is deleted all the same.
    assert failed(findings).keys() == {"object"}
    assert "has been made, as `run` does" in by_subject(findings)["bucket"].detail
    methods = [line.split(" ")[0] for line in server.request_lines()]
    assert methods == ["HEAD", "GET", "HEAD", "PUT", "PUT", "GET", "DELETE"]
    assert server.request_lines()[-1].startswith("DELETE /hash-edges-output/iterum_sidecar_check/")


async def test_an_object_that_comes_back_as_another_fails() -> None:
    findings, _ = await look(HELLO, NO_KEY, OK, OK, answer(200, b"other"), answer(204))
    assert "other bytes" in failed(findings)["object"].detail


async def test_a_bucket_that_may_not_be_listed_tells_nothing_of_a_missing_object() -> None:
    findings, _ = await look(HELLO, error(403, "AccessDenied"), OK, error(403, "AccessDenied"))
    assert "login" in by_subject(findings, Outcome.OK)
    assert failed(findings).keys() == {"object"}


async def test_a_store_that_goes_silent_is_not_waited_for() -> None:
    findings, _ = await look(HELLO, [Act.SILENCE], seconds=0.2)
    assert failed(findings)["login"].detail == "no answer within 0.2 s"


async def test_what_speaks_no_http_fails_with_a_remedy() -> None:
    findings, _ = await look([b"AMQP\0\0\x09\1", Act.CLOSE])
    assert failed(findings).keys() == {"HTTP"}
    assert "https://" in failed(findings)["HTTP"].remedy


async def test_keys_that_are_missing_are_a_reason_not_to_look() -> None:
    findings, server = await look(HELLO, variables={"MINIO_SECRET_KEY": ""})
    assert by_subject(findings, Outcome.UNKNOWN).keys() == {"store"}
    assert server.connections == 0
