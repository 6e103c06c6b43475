from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.exit_codes import ServiceLost
from iterum_sidecar.patience import (
    FIRST_BOUND,
    LONGEST_DELAY,
    LONGEST_RETRY_AFTER,
    SAY_EVERY,
    SHORTEST_DELAY,
    STEADY_AFTER,
    Backoff,
    Patience,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.testing import MockClock


def patience(timeout: float = 0.0, draw: float = 1.0) -> Patience:
    return Patience("the store", timeout, lambda: draw)


async def try_for_ever(waiting: Patience, reason: str) -> None:
    while True:
        await waiting.wait(reason)


async def passed(wait: Callable[[], Awaitable[object]]) -> float:
    before = trio.current_time()
    await wait()
    return round(trio.current_time() - before, 6)


async def delays(waiting: Patience, count: int) -> list[float]:
    return [await passed(lambda: waiting.wait("it is away")) for _ in range(count)]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def waits(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [
        record.__dict__["fields"]
        for record in caplog.records
        if record.getMessage() == "waiting for the store"
    ]


class Service:
    """A service that is away until a moment, and those who ask it."""

    def __init__(self, waiting: Patience, *, back_at: float, seconds: float = 0.01) -> None:
        self._waiting = waiting
        self._back_at = back_at
        self._seconds = seconds
        self.attempts: list[float] = []
        self.answered: list[float] = []

    async def ask(self) -> None:
        """Ask until it answers; an attempt that fails takes as long as it does."""
        while True:
            self.attempts.append(trio.current_time())
            if trio.current_time() >= self._back_at:
                await trio.sleep(0.01)
                self._waiting.over()
                self.answered.append(trio.current_time())
                return
            await trio.sleep(self._seconds)
            await self._waiting.wait("connection refused")


@pytest.mark.parametrize(
    ("draw", "expected"),
    [(1.0, [0.5, 1, 2, 4, 4]), (0.5, [0.25, 0.5, 1, 2, 2]), (0.0, [SHORTEST_DELAY] * 5)],
)
async def test_each_delay_is_drawn_between_the_shortest_and_a_bound_that_doubles(
    autojump_clock: MockClock, draw: float, expected: list[float]
) -> None:
    assert (SHORTEST_DELAY, FIRST_BOUND, LONGEST_DELAY) == (0.05, 0.5, 4.0)
    assert await delays(patience(draw=draw), 5) == expected


async def test_a_delay_is_drawn_anew_each_time(autojump_clock: MockClock) -> None:
    draws = iter([0.0, 0.5, 1.0])
    assert await delays(Patience("the store", 0, lambda: next(draws)), 3) == [0.05, 0.5, 2.0]


def test_a_backoff_begins_anew_when_it_is_told_to() -> None:
    backoff = Backoff(lambda: 1.0)
    assert [backoff.next() for _ in range(3)] == [0.5, 1, 2]
    backoff.reset()
    assert backoff.next() == 0.5


@pytest.mark.parametrize(
    ("retry_after", "expected"), [(7.0, 7.0), (0.1, 0.5), (3600.0, LONGEST_RETRY_AFTER)]
)
async def test_a_pause_that_the_service_asks_for_is_kept_up_to_a_bound(
    autojump_clock: MockClock, retry_after: float, expected: float
) -> None:
    waiting = patience()
    assert await passed(lambda: waiting.wait("503", retry_after=retry_after)) == expected


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("seconds", [0.0, 0.9, 20.0])
async def test_a_hundred_that_wait_ask_like_one_and_all_go_on_when_it_is_back(
    autojump_clock: MockClock, seed: int, seconds: float
) -> None:
    """`seconds` is what an attempt in vain takes: refused at once, retried in itself, or silence until a deadline."""
    waiting = Patience("the store", 0, random.Random(seed).random)
    start = trio.current_time()
    service = Service(waiting, back_at=start + 60, seconds=seconds)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(service.ask)
    in_vain = [time for time in service.attempts if time < start + 60]
    assert 10 <= len(in_vain) - 100 <= 50
    # Those that were at it at the moment of the return, some ten at most, find out only at the end of their attempt.
    assert sum(time - start - 60 <= 5 for time in service.answered) >= (85 if seconds > 1 else 100)
    assert len(service.answered) == 100
    assert len(service.attempts) - len(in_vain) == 100
    assert not waiting.is_waiting


async def test_a_wait_tells_a_turn_to_try_from_the_success_of_another(
    autojump_clock: MockClock,
) -> None:
    waiting = patience()
    turns: list[bool] = []

    async def wait_once() -> None:
        turns.append(await waiting.wait("connection refused"))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait_once)
        await trio.sleep(0.7)
        waiting.over()
    assert turns == [True, False, False]


async def test_whoever_is_given_a_turn_and_does_not_come_back_holds_nobody_up(
    autojump_clock: MockClock,
) -> None:
    waiting = patience()
    turns = []

    async def take_a_turn_and_leave() -> None:
        await waiting.wait("connection refused")
        turns.append(trio.current_time())

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(take_a_turn_and_leave)
    assert [time - start for time in turns] == pytest.approx([0.5, 1.5, 3.5, 7.5, 11.5])


async def test_one_that_is_cancelled_while_it_waits_holds_nobody_up(
    autojump_clock: MockClock,
) -> None:
    waiting = patience()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(try_for_ever, waiting, "connection refused")
        await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    with trio.fail_after(LONGEST_DELAY):
        await waiting.wait("connection refused")
    waiting.over()


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


async def test_a_line_says_what_failed_what_is_being_done_and_what_to_do(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    await patience().wait("connection refused")
    await patience(timeout=90).wait("denied", if_it_lasts="see to the keys")
    assert waits(caplog) == [
        {
            "reason": "connection refused",
            "waited_seconds": 0,
            "meanwhile": "asking again every few seconds; nothing is lost",
            "if_it_lasts": "see that it runs and can be reached from here",
        },
        {
            "reason": "denied",
            "waited_seconds": 0,
            "meanwhile": "asking again every few seconds, for 90 s (SIDECAR_SERVICE_TIMEOUT); nothing is lost",
            "if_it_lasts": "see to the keys",
        },
    ]


async def test_what_to_do_can_be_said_of_a_service_as_a_whole(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    await Patience("the store", 0, if_it_lasts="see to the queue").wait("406")
    assert [fields["if_it_lasts"] for fields in waits(caplog)] == ["see to the queue"]


async def test_without_a_timeout_it_waits_for_ever(autojump_clock: MockClock) -> None:
    waiting = patience()
    start = trio.current_time()
    while trio.current_time() - start < 10_000:
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
        "gave up on the store after 10 s (SIDECAR_SERVICE_TIMEOUT); what is in flight goes back to the queue:"
        " NoRoute: it is away"
    )


async def test_the_service_is_tried_once_more_when_the_timeout_has_come(
    autojump_clock: MockClock,
) -> None:
    waiting = patience(timeout=2.0)
    assert await delays(waiting, 3) == [0.5, 1.0, 0.5]
    with pytest.raises(ServiceLost):
        await waiting.wait("it is away")


async def test_all_who_wait_for_one_service_give_up_together(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = patience(timeout=10.0)
    start = trio.current_time()
    ends = []
    told = set()

    async def try_until_lost(number: int) -> None:
        with pytest.raises(ServiceLost) as lost:
            await try_for_ever(waiting, f"it is away from {number}")
        ends.append(trio.current_time() - start)
        told.add(str(lost.value))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(try_until_lost, number)
    assert ends == pytest.approx([10] * 20)
    assert len(told) == 1
    assert len(waits(caplog)) == 1


async def test_after_a_steady_time_the_next_failure_begins_a_wait_of_its_own(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    waiting = patience(timeout=10.0)
    await delays(waiting, 4)
    waiting.over()
    back = caplog.records[-1]
    assert back.getMessage() == "the store is back"
    assert back.__dict__["fields"] == {"waited_seconds": 7.5}
    await trio.sleep(STEADY_AFTER + 1)
    assert await delays(waiting, 4) == [0.5, 1, 2, 4]
    assert [fields["waited_seconds"] for fields in waits(caplog)] == [0, 0]


async def test_a_service_that_flaps_keeps_its_delay_and_its_timeout_begins_anew(
    autojump_clock: MockClock,
) -> None:
    waiting = patience(timeout=10.0)
    assert await delays(waiting, 3) == [0.5, 1, 2]
    for _ in range(20):
        waiting.over()
        await trio.sleep(STEADY_AFTER - 1)
        assert await delays(waiting, 1) == [4]


async def test_a_service_that_flaps_is_told_of_twice_a_minute_at_most_and_the_lines_go_in_pairs(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    waiting = patience()
    start = trio.current_time()
    while trio.current_time() - start < 600:
        await waiting.wait("503")
        waiting.over()
        await trio.sleep(1)
    told = lines(caplog)
    assert told[::2] == ["waiting for the store"] * (len(told) // 2)
    assert told[1::2] == ["the store is back"] * (len(told) // 2)
    assert 10 <= len(told) // 2 <= 20


async def test_a_wait_is_told_of_again_when_something_else_is_to_be_done_about_it(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = patience()
    start = trio.current_time()
    while trio.current_time() - start < 50:
        await waiting.wait("connection refused")
        await waiting.wait("denied", if_it_lasts="see to the keys")
    assert [fields["reason"] for fields in waits(caplog)] == ["connection refused", "denied"]
    assert LONGEST_DELAY <= waits(caplog)[1]["waited_seconds"] <= 3 * LONGEST_DELAY  # type: ignore[operator]


async def test_over_says_nothing_when_nothing_was_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    patience().over()
    assert caplog.records == []


async def test_a_part_waits_by_itself_and_is_told_of_and_counted_with_the_whole(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    whole = patience()
    part, other = whole.part(), whole.part()
    assert await delays(part, 2) == [0.5, 1]
    waiting = [whole.is_waiting]
    assert (whole.failures, whole.waits) == (2, 1)
    whole.over()
    waiting.append(part.is_waiting)
    for each in (whole, other):
        assert await delays(each, 1) == [0.5]
    for each in (whole, part, other):
        each.over()
        waiting.append(whole.is_waiting)
    assert waiting == [True, True, True, True, False]
    assert lines(caplog) == ["waiting for the store", "the store is back"]
    assert caplog.records[-1].__dict__["fields"] == {"waited_seconds": 2.5}
    assert (whole.failures, whole.waits) == (4, 1)


async def test_a_part_is_not_told_of_at_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    part = patience().part()
    assert await delays(part, 1) == [0.5]
    part.over()
    assert lines(caplog) == []
    assert await delays(part, 2) == [1, 2]
    assert lines(caplog) == []
    assert await delays(part, 1) == [4]
    part.over()
    assert lines(caplog) == ["waiting for the store", "the store is back"]
    assert [fields["waited_seconds"] for fields in waits(caplog)] == [3]
