"""The budget of the volume: who is let onto it, who waits, and that somebody always goes on."""

from __future__ import annotations

import logging
import math

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from iterum_sidecar.volume_budget import NoRoom, Share
from tests.unit.budgets import PLENTY, admitted, budget_of, ready, wait_in

# -- the limit


@pytest.mark.parametrize(
    ("limit", "available", "told"),
    [
        (100, PLENTY, 100),
        (0, PLENTY, math.inf),
        (None, 1000, 500),
        (None, None, math.inf),
        (100, None, 100),
    ],
    ids=["set", "none", "half of what is free", "nobody knows what is free", "set all the same"],
)
def test_the_limit(limit: int | None, available: int | None, told: float) -> None:
    assert budget_of(limit, available).limit == told


def test_what_fits_is_let_in_and_counted() -> None:
    budget = budget_of(100)
    first, second = budget.open(), budget.open()
    assert admitted(first, 60)
    assert admitted(second, 40)
    assert budget.held == 100
    assert not admitted(second, 1)
    first.downloaded()
    first.release()
    assert budget.held == 40
    assert admitted(second, 60)


def test_an_empty_file_needs_no_room() -> None:
    budget = budget_of(100)
    ready(budget, 100)
    assert admitted(budget.open(), 0)


def test_released_twice_is_released_once() -> None:
    budget = budget_of(100)
    share = ready(budget, 70)
    share.release()
    share.release()
    assert budget.held == 0


def test_a_file_that_is_begun_again_is_counted_once_and_by_its_last_size() -> None:
    budget = budget_of(100)
    budget.open()
    room = budget.open().room()
    room.admit(60)
    room.admit(60)
    assert budget.held == 60
    room.admit(80)
    assert budget.held == 80
    room.admit(10)
    assert budget.held == 10


def test_a_size_that_was_not_told_before_counts_when_it_is_known() -> None:
    budget = budget_of(100)
    share = budget.open()
    share.room().is_written(150)
    assert budget.held == 150
    share.downloaded()
    assert not admitted(budget.open(), 1)


# -- somebody always goes on


def test_the_eldest_is_let_in_alone_however_large_it_is() -> None:
    budget = budget_of(100)
    eldest, younger = budget.open(), budget.open()
    assert not admitted(younger, 101)
    assert admitted(eldest, 1000)
    assert not admitted(younger, 1)


def test_the_eldest_waits_for_what_is_past_its_download() -> None:
    budget = budget_of(100)
    past = ready(budget, 1)
    eldest = budget.open()
    assert not admitted(eldest, 100)
    past.release()
    assert admitted(eldest, 101)


def test_half_downloaded_fragments_do_not_wait_for_each_other() -> None:
    """Each has one of its two files; together they fill the budget, and neither would ever be whole."""
    budget = budget_of(100)
    first, second = budget.open(), budget.open()
    assert admitted(first, 50)
    assert admitted(second, 50)
    assert not admitted(second, 50)
    assert admitted(first, 50)


async def test_who_waits_is_let_in_when_there_is_room_and_it_is_kept_for_it() -> None:
    budget = budget_of(100)
    past = ready(budget, 80)
    async with trio.open_nursery() as nursery:
        room = await wait_in(nursery, budget.open(), 30)
        past.release()
        assert budget.held == 30
    room.admit(30)
    assert budget.held == 30


async def test_a_large_one_is_not_overtaken_for_ever_by_small_ones() -> None:
    budget = budget_of(100)
    past = [ready(budget, 20) for _ in range(4)]
    large, small = budget.open(), budget.open()
    async with trio.open_nursery() as nursery:
        await wait_in(nursery, large, 90)
        for each in past:
            assert not admitted(small, 1)
            each.release()
        assert budget.held == 90
        assert admitted(small, 1)


async def test_the_elder_goes_first_whoever_waited_first() -> None:
    budget = budget_of(100)
    past = ready(budget, 100)
    elder, younger = budget.open(), budget.open()
    async with trio.open_nursery() as nursery:
        second = await wait_in(nursery, younger, 50)
        first = await wait_in(nursery, elder, 60)
        past.release()
        assert budget.held == 60
        await trio.testing.wait_all_tasks_blocked()
        assert (first.size, second.size) == (60, 0)
        elder.release()
    assert second.size == 50


async def test_who_waits_goes_on_when_its_elder_is_done_downloading_and_settled() -> None:
    budget = budget_of(100)
    eldest, younger = budget.open(), budget.open()
    assert admitted(eldest, 100)
    async with trio.open_nursery() as nursery:
        room = await wait_in(nursery, younger, 500)
        eldest.downloaded()
        await trio.testing.wait_all_tasks_blocked()
        assert room.size == 0
        eldest.release()
    assert room.size == 500


async def test_a_wait_that_is_cancelled_leaves_nothing_behind() -> None:
    budget = budget_of(100)
    past = ready(budget, 100)
    share = budget.open()
    async with trio.open_nursery() as nursery:
        await wait_in(nursery, share, 50)
        nursery.cancel_scope.cancel("told to stop")
    assert not budget.is_holding_up
    share.release()
    past.release()
    assert budget.held == 0


async def test_room_that_came_together_with_the_cancellation_is_given_up_with_the_fragment() -> (
    None
):
    budget = budget_of(100)
    past = ready(budget, 100)
    share = budget.open()
    async with trio.open_nursery() as nursery:
        await wait_in(nursery, share, 50)
        nursery.cancel_scope.cancel("told to stop")
        past.release()
    share.release()
    assert budget.held == 0


async def test_that_fragments_are_held_up_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    budget = budget_of(100)
    past = ready(budget, 100)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            await wait_in(nursery, budget.open(), 30)
        past.release()
    (line,) = caplog.records
    assert "SIDECAR_VOLUME_BUDGET" in line.getMessage()
    assert line.fields["budget_bytes"] == 100  # type: ignore[attr-defined]


# -- whatever the sizes are, all of them come through


@given(
    limit=st.integers(1, 200),
    fragments=st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=6), max_size=12),
    at_a_time=st.integers(1, 6),
)
def test_every_fragment_comes_through_and_nothing_stays_counted(
    limit: int, fragments: list[list[int]], at_a_time: int
) -> None:
    budget = budget_of(limit)
    came: list[int] = []
    largest = max((sum(files) for files in fragments), default=0)

    async def fetch(share: Share, size: int) -> None:
        room = share.room()
        while True:
            try:
                room.admit(size)
                break
            except NoRoom:
                await room.wait()
        # All but one, which was let in alone, are within the limit.
        assert budget.held <= limit + largest
        await trio.lowlevel.checkpoint()

    async def work(left: list[tuple[int, list[int]]]) -> None:
        while left:
            number, files = left.pop(0)
            share = budget.open()
            async with trio.open_nursery() as nursery:
                for size in files:
                    nursery.start_soon(fetch, share, size)
            share.downloaded()
            await trio.sleep(1)
            came.append(number)
            share.release()

    async def run() -> None:
        left = list(enumerate(fragments))
        with trio.fail_after(10_000):
            async with trio.open_nursery() as nursery:
                for _ in range(at_a_time):
                    nursery.start_soon(work, left)

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
    assert sorted(came) == list(range(len(fragments)))
    assert budget.held == 0
    assert not budget.is_holding_up
