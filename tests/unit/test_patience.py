from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.exit_codes import ServiceLost
from iterum_sidecar.patience import FIRST_DELAY, LONGEST_DELAY, SAY_EVERY, Patience

if TYPE_CHECKING:
    from trio.testing import MockClock


def patience(timeout: float = 0.0, draw: float = 1.0) -> Patience:
    return Patience("the store", timeout, lambda: draw)


async def try_for_ever(waiting: Patience, reason: str) -> None:
    while True:
        await waiting.wait(reason)


async def delays(waiting: Patience, count: int) -> list[float]:
    seen = []
    for _ in range(count):
        before = trio.current_time()
        await waiting.wait("it is away")
        seen.append(round(trio.current_time() - before, 6))
    return seen


def waits(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [
        record.__dict__["fields"]
        for record in caplog.records
        if record.getMessage() == "waiting for the store"
    ]


@pytest.mark.parametrize(
    ("draw", "expected"),
    [(1.0, [0.5, 1, 2, 4, 5, 5]), (0.0, [0.25, 0.5, 1, 2, 2.5, 2.5])],
)
async def test_each_wait_is_twice_as_long_up_to_the_longest(
    autojump_clock: MockClock, draw: float, expected: list[float]
) -> None:
    assert (FIRST_DELAY, LONGEST_DELAY) == (0.5, 5.0)
    assert await delays(patience(draw=draw), 6) == expected


async def test_half_of_a_delay_is_drawn_anew_each_time(autojump_clock: MockClock) -> None:
    draws = iter([0.0, 0.5, 1.0])
    assert await delays(Patience("the store", 0, lambda: next(draws)), 3) == [0.25, 0.75, 2.0]


async def test_a_wait_is_told_at_once_and_then_once_a_minute(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = patience()
    start = trio.current_time()
    while trio.current_time() - start < 4 * SAY_EVERY:
        await waiting.wait("connection refused")
    told = [fields["waited_seconds"] for fields in waits(caplog)]
    assert told[0] == 0
    assert len(told) == 4
    assert all(isinstance(each, int) and each % 60 <= LONGEST_DELAY for each in told)
    assert {fields["reason"] for fields in waits(caplog)} == {"connection refused"}


async def test_without_a_timeout_it_waits_for_ever(autojump_clock: MockClock) -> None:
    waiting = patience()
    start = trio.current_time()
    while trio.current_time() - start < 100_000:
        await waiting.wait("it is away")
    assert (await delays(waiting, 1)) == [LONGEST_DELAY]


async def test_the_timeout_counts_from_the_first_failure_and_is_kept_to_the_moment(
    autojump_clock: MockClock,
) -> None:
    waiting = patience(timeout=10.0)
    await trio.sleep(1000)
    start = trio.current_time()
    with pytest.raises(ServiceLost) as lost:
        await try_for_ever(waiting, "NoRoute: it is away")
    assert trio.current_time() - start == pytest.approx(10)
    assert str(lost.value) == (
        "gave up on the store after 10 s (SIDECAR_SERVICE_TIMEOUT): NoRoute: it is away"
    )


async def test_the_service_is_tried_once_more_when_the_timeout_has_come(
    autojump_clock: MockClock,
) -> None:
    waiting = patience(timeout=2.0)
    assert await delays(waiting, 3) == [0.5, 1.0, 0.5]
    with pytest.raises(ServiceLost):
        await waiting.wait("it is away")


async def test_when_it_is_over_the_next_failure_begins_a_wait_of_its_own(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    waiting = patience(timeout=10.0)
    await delays(waiting, 4)
    waiting.over()
    back = caplog.records[-1]
    assert back.getMessage() == "the store is back"
    assert back.__dict__["fields"] == {"waited_seconds": 7.5}
    await trio.sleep(9)
    assert await delays(waiting, 4) == [0.5, 1, 2, 4]
    assert [fields["waited_seconds"] for fields in waits(caplog)] == [0, 0]


async def test_over_says_nothing_when_nothing_was_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    patience().over()
    assert caplog.records == []


async def test_all_who_wait_for_one_service_share_the_wait(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = patience(timeout=10.0)
    start = trio.current_time()
    ends = []

    async def try_until_lost() -> None:
        with pytest.raises(ServiceLost):
            await try_for_ever(waiting, "it is away")
        ends.append(trio.current_time() - start)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(try_until_lost)
    assert ends == pytest.approx([10] * 20)
    assert len(waits(caplog)) == 1
