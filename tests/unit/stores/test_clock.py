"""A clock that is wrong, or jumps: requests are signed by the store's, and one line says so."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.stores.port import StoreRefused
from iterum_sidecar.stores.retries import RetryPolicy
from iterum_sidecar.stores.s3 import S3Store
from tests.unit.stores.contract import fetch
from tests.unit.stores.scripted import LOCAL, Act, answer, error, header, scripted

if TYPE_CHECKING:
    from tests.unit.stores.scripted import Answer, Scripted

BODY = b"the object's bytes"
HOURS = 7200


def open_store(server: Scripted, told: list[str]) -> S3Store:
    return S3Store(
        LOCAL,
        server.port,
        "access",
        "secret",
        retries=RetryPolicy(attempts=2, first=0.0, cap=0.0),
        warn=told.append,
    )


def date(offset: float) -> str:
    return f"Date: {formatdate(time.time() + offset, usegmt=True)}"


def skewed(offset: float) -> bytes:
    return error(403, "RequestTimeTooSkewed", date(offset))


def barred(offset: float) -> bytes:
    """An answer to HEAD: it has no body that could say why."""
    return answer(403, b"", date(offset))


def signed_at(request: bytes) -> float:
    told = header(request, "x-amz-date")
    assert told is not None
    return time.mktime(time.strptime(told, "%Y%m%dT%H%M%SZ")) - time.timezone


@pytest.mark.parametrize("offset", [HOURS, -HOURS, 86_400 * 400])
async def test_the_store_s_clock_is_taken_and_told_of(offset: float) -> None:
    told: list[str] = []
    async with (
        scripted(skewed(offset), answer(200, BODY)) as server,
        open_store(server, told) as store,
    ):
        for _ in range(3):
            assert await fetch(store, "bucket", "key") == BODY
        assert len(server.requests) == 4
        for request in server.requests[1:]:
            assert abs(signed_at(request) - (time.time() + offset)) < 60
    (line,) = told
    assert f"{'behind' if offset > 0 else 'ahead of'} the store's" in line
    assert "NTP" in line


async def test_many_that_are_refused_together_are_told_of_once() -> None:
    told: list[str] = []
    script: list[Answer] = [[Act.GATE, skewed(HOURS + each % 2)] for each in range(5)]
    async with (
        scripted(*script, answer(200, BODY)) as server,
        open_store(server, told) as store,
        trio.open_nursery() as nursery,
    ):
        for _ in range(5):
            nursery.start_soon(fetch, store, "bucket", "key")
        while len(server.requests) < 5:  # noqa: ASYNC110 - the server knows no event for it
            await trio.sleep(0.001)
        server.gate.set()
    assert len(told) == 1


async def test_a_clock_that_is_set_right_again_is_followed() -> None:
    told: list[str] = []
    script = [skewed(HOURS), answer(200, BODY), skewed(0), answer(200, BODY)]
    async with scripted(*script) as server, open_store(server, told) as store:
        for _ in range(2):
            await fetch(store, "bucket", "key")
        assert abs(signed_at(server.requests[-1]) - time.time()) < 60
    assert len(told) == 2
    assert "agrees" in told[1]


async def test_a_refusal_without_a_reason_tells_by_its_date() -> None:
    """The first request of a sidecar is a HEAD of its bucket; it must not wait for somebody else to find out."""
    told: list[str] = []
    async with scripted(barred(HOURS), answer(200)) as server, open_store(server, told) as store:
        await store.check_bucket("bucket")
        assert abs(signed_at(server.requests[1]) - (time.time() + HOURS)) < 60
    assert len(told) == 1


@pytest.mark.parametrize("offset", [0, 600, -600])
async def test_a_refusal_for_another_reason_is_one(offset: float) -> None:
    told: list[str] = []
    async with scripted(barred(offset)) as server, open_store(server, told) as store:
        with pytest.raises(StoreRefused) as caught:
            await store.check_bucket("bucket")
        assert caught.value.code == "AccessDenied"
        assert len(server.requests) == 1
    assert told == []


async def test_a_refusal_for_another_reason_beside_a_wrong_clock_is_tried_once_more() -> None:
    told: list[str] = []
    async with scripted(barred(HOURS)) as server, open_store(server, told) as store:
        with pytest.raises(StoreRefused) as caught:
            await store.check_bucket("bucket")
        assert caught.value.code == "AccessDenied"
        assert len(server.requests) == 2
