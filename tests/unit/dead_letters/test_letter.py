from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iterum_sidecar import editions
from iterum_sidecar.amqp import Properties
from iterum_sidecar.dead_letters.letter import (
    FOREIGN,
    OWN_HEADERS,
    RETRIES_HEADER,
    fresh_headers,
    fresh_properties,
    in_full,
    read_letter,
)
from tests.unit.row import DEAD, INPUT, copy_step, temporary_row

from .letters import ID, STEP, body_of, delivery, foreign, letter

if TYPE_CHECKING:
    import trio.testing


def test_a_letter_of_a_sidecar_says_everything() -> None:
    told = letter()
    assert told.fields() == {
        "id": ID,
        "digest": f"body:{hashlib.sha256(body_of(ID)).hexdigest()}",
        "time": "2026-11-25T00:34:23.050+00:00",
        "kind": "input_missing",
        "step": STEP,
        "attempts": 2,
        "retries": 0,
        "reason": "get b/a: HTTP 404 NoSuchKey",
        "queue": "to-edges",
        "host": "a-pod",
        "bytes": len(body_of(ID)),
    }
    assert told.moment == datetime(2026, 11, 25, 0, 34, 23, 50_000, tzinfo=UTC)
    assert told.short_name == "abcdefghabcd"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not JSON",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"metadata": null}',
        body_of("short"),
        body_of(7),
        body_of(ID + "a"),
    ],
)
def test_a_body_that_names_no_fragment_is_addressed_by_its_digest(body: bytes) -> None:
    told = letter(body)
    assert told.fragment_id == ""
    assert told.name == f"body:{hashlib.sha256(body).hexdigest()}"
    assert told.short_name == told.name[:12]


def test_an_id_that_can_be_read_is_one_whatever_else_is_wrong() -> None:
    assert letter(b'{"metadata": {"fragment_id": "%s"}}' % ID.encode()).fragment_id == ID


def test_a_message_of_another_program_is_told_as_such() -> None:
    told = read_letter(foreign(other="header"))
    assert (told.kind, told.queue, told.moment) == (FOREIGN, "", None)
    assert "another program" in told.reason


def test_what_the_broker_has_dead_lettered_says_where_it_came_from() -> None:
    time = datetime(2026, 11, 25, tzinfo=UTC)
    last = {"reason": "expired", "queue": "elsewhere", "time": time}
    first = {"reason": "rejected", "queue": "to-edges", "time": time}
    headers: dict[str, Any] = {"x-death": [last, first]}
    told = read_letter(foreign(**headers))
    assert (told.kind, told.queue, told.moment) == (FOREIGN, "to-edges", time)
    assert "rejected" in told.reason


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(sorted({*OWN_HEADERS, RETRIES_HEADER, "x-death", "x-delivery-count"}))


@given(st.binary(max_size=200), st.dictionaries(names, anything))
def test_no_header_of_any_type_stops_anybody(body: bytes, headers: dict[str, Any]) -> None:
    strange = foreign(body, **headers)
    told = read_letter(strange)
    json.dumps(told.fields() | in_full(strange))
    retries = fresh_headers(headers)[RETRIES_HEADER]
    assert 0 < retries == told.retries + 1 < 2**31


@pytest.mark.parametrize("time", ["", "yesterday", "0001-01-01T00:00:00+14:00", "2026-13-01"])
def test_a_time_that_is_none_is_none(time: str) -> None:
    assert letter(x_iterum_time=time).moment is None


def test_a_letter_goes_back_with_what_it_came_with_alone() -> None:
    headers = delivery(traceparent="00-1", x_delivery_count=3, x_iterum_error="x").headers
    assert fresh_headers(headers) == {"traceparent": "00-1", RETRIES_HEADER: 1}
    assert fresh_headers({RETRIES_HEADER: 4})[RETRIES_HEADER] == 5
    assert fresh_headers({RETRIES_HEADER: "many"})[RETRIES_HEADER] == 1


def test_what_could_lose_it_on_its_way_is_left_behind() -> None:
    given = Properties("text/plain", None, {}, 1, 3, "a", "b", "1000", "c", None, "d", "guest", "e")
    fresh = fresh_properties(given)
    assert fresh == given._replace(
        headers={RETRIES_HEADER: 1}, delivery_mode=2, expiration=None, user_id=None
    )


def test_everything_of_a_message_can_be_told_in_json() -> None:
    strange = foreign(
        b"\xff", a=Decimal("1.50"), b=[b"\xff", b"text"], c={"d": datetime(2026, 1, 1, tzinfo=UTC)}
    )
    assert in_full(strange) == {
        "headers": {
            "a": "1.50",
            "b": [{"base64": "/w=="}, "text"],
            "c": {"d": "2026-01-01T00:00:00+00:00"},
        },
        "properties": {},
        "body_base64": "/w==",
    }


async def test_what_the_sidecar_writes_into_a_dead_letter_is_known_here(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert editions.RETRIES_HEADER == RETRIES_HEADER
    assert editions.ATTEMPTS_HEADER in OWN_HEADERS
    async with temporary_row() as row:
        row.broker.put(INPUT, b"not JSON", {"traceparent": "00-1"})
        await row.run(copy_step)
        (message,) = row.broker.messages(DEAD)
    assert message.headers.keys() == {*OWN_HEADERS - {"x-iterum-error"}, "traceparent"}
    told = read_letter(foreign(message.body, **message.headers))
    assert (told.kind, told.queue, told.attempts) == ("unreadable", INPUT, 0)
    assert told.moment is not None
