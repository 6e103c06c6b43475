"""Where the budget of the volume is not the last word: a step that gathers more than it holds, and a disk that holds less."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from iterum_sidecar.volume_budget import MustGiveWay, NoRoom, Share, VolumeBudget
from tests.unit.budgets import admitted, budget_of, ready, wait_in

if TYPE_CHECKING:
    from collections.abc import Callable

# -- a step that gathers more than the budget holds


async def test_a_starved_step_gets_one_more_and_then_twice_as_many() -> None:
    budget = budget_of(100)
    ready(budget, 100)
    shares = [budget.open() for _ in range(7)]
    async with trio.open_nursery() as nursery:
        rooms = [await wait_in(nursery, share, 60) for share in shares]
        for let_in in (1, 3, 7):
            assert budget.allow_more()
            await trio.testing.wait_all_tasks_blocked()
            assert [room.size for room in rooms] == [60] * let_in + [0] * (7 - let_in)


def test_nobody_waits_so_that_more_room_helps_no_one() -> None:
    budget = budget_of(100)
    ready(budget, 100)
    assert not budget.allow_more()


async def test_what_is_let_in_has_all_its_files_let_in() -> None:
    budget = budget_of(100)
    ready(budget, 100)
    share = budget.open()
    async with trio.open_nursery() as nursery:
        await wait_in(nursery, share, 60)
        budget.allow_more()
    assert all(admitted(share, 60) for _ in range(300))


async def test_what_a_step_has_needed_is_its_limit_from_then_on() -> None:
    budget = budget_of(100)
    shares = [ready(budget, 100)]
    async with trio.open_nursery() as nursery:
        shares.append(budget.open())
        await wait_in(nursery, shares[-1], 60)
        budget.allow_more()
    shares[-1].downloaded()
    assert budget.limit == 160
    for share in shares:
        share.release()
    first, second, third = ready(budget, 100), ready(budget, 60), budget.open()
    assert budget.held == 160
    assert not admitted(third, 1)
    first.release()
    second.release()


async def test_leave_that_was_not_used_ends_with_the_starvation() -> None:
    budget = budget_of(100)
    ready(budget, 60)
    past = ready(budget, 40)
    shares = [budget.open() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for share in shares[:2]:
            await wait_in(nursery, share, 60)
            budget.allow_more()
        # Two were let in the second time, and one came.
        past.release()
        room = await wait_in(nursery, shares[2], 500)
        assert room.size == 0
        budget.allow_more()
    assert room.size == 500


async def test_more_is_let_in_than_waits_at_the_moment() -> None:
    """Only so many are downloaded at a time; those that come next are let in by the same leave."""
    budget = budget_of(100)
    ready(budget, 100)
    shares = [budget.open() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for share in shares[:2]:
            await wait_in(nursery, share, 60)
            budget.allow_more()
        room = await wait_in(nursery, shares[2], 60)
    assert room.size == 60


# -- a disk that is fuller than was thought


async def test_who_gives_way_leaves_no_more_to_come_than_is_there() -> None:
    """The disk was full with both: it holds what the elder has, and no more is let in beside that."""
    budget = VolumeBudget(0, lambda: 0)
    elder, younger = budget.open(), budget.open()
    assert admitted(elder, 50)
    assert admitted(younger, 50)
    younger.give_way()
    assert budget.held == budget.limit == 50
    assert not admitted(younger, 1)
    assert admitted(elder, 1)


async def test_the_limit_grows_again_with_what_is_free_and_never_beyond_what_was_set() -> None:
    free = 0
    budget = VolumeBudget(100, lambda: free)
    elder, younger = budget.open(), budget.open()
    assert admitted(elder, 20)
    assert admitted(younger, 50)
    younger.give_way()
    assert budget.limit == 20
    elder.downloaded()
    free = 1000
    async with trio.open_nursery() as nursery:
        await wait_in(nursery, budget.open(), 30)
    assert budget.limit == 100


async def test_bytes_that_are_not_written_yet_do_not_count_as_free_twice() -> None:
    """Half of what is free, measured while everything is reserved and nothing written, is still half of what was free."""
    budget = VolumeBudget(None, lambda: 1000)
    shares = [budget.open() for _ in range(6)]
    assert all(admitted(share, 100) for share in shares[:5])
    async with trio.open_nursery() as nursery:
        await wait_in(nursery, shares[5], 100)
        assert budget.limit == 500
        nursery.cancel_scope.cancel()


async def test_nobody_takes_what_comes_free_before_the_one_that_waits_for_the_disk() -> None:
    budget = budget_of(100)
    eldest, younger = budget.open(), budget.open()
    eldest.block()
    assert budget.blocked_by is eldest
    assert not admitted(younger, 1)
    assert admitted(eldest, 10)
    async with trio.open_nursery() as nursery:
        room = await wait_in(nursery, younger, 10)
        assert room.size == 0
        eldest.downloaded()
    assert room.size == 10
    assert budget.blocked_by is None


@pytest.mark.parametrize("end", [Share.downloaded, Share.release])
def test_who_is_gone_blocks_nobody(end: Callable[[Share], None]) -> None:
    budget = budget_of(100)
    eldest = budget.open()
    assert admitted(eldest, 10)
    eldest.block()
    end(eldest)
    assert budget.blocked_by is None


async def test_who_holds_what_is_wanted_and_waits_for_more_must_give_way() -> None:
    """It would wait for the eldest, and the eldest for what it has on the disk."""
    budget = budget_of(100)
    eldest, younger, late = budget.open(), budget.open(), budget.open()
    assert admitted(eldest, 50)
    assert admitted(younger, 25)
    assert admitted(late, 25)
    told: list[Share] = []

    async def wait(share: Share) -> None:
        room = share.room()
        with pytest.raises(NoRoom):
            room.admit(50)
        with pytest.raises(MustGiveWay):
            await room.wait()
        told.append(share)
        share.give_way()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, younger)
        await trio.testing.wait_all_tasks_blocked()
        eldest.block()
        await trio.testing.wait_all_tasks_blocked()
        assert told == [younger]
        nursery.start_soon(wait, late)
    assert told == [younger, late]
    assert budget.held == 50
    assert admitted(eldest, 50)


async def test_who_holds_nothing_is_not_in_the_way() -> None:
    budget = budget_of(100)
    eldest, younger = budget.open(), budget.open()
    assert admitted(eldest, 50)
    async with trio.open_nursery() as nursery:
        room = await wait_in(nursery, younger, 60)
        eldest.block()
        await trio.testing.wait_all_tasks_blocked()
        assert room.size == 0
        eldest.release()
    assert room.size == 60


async def test_a_step_that_starves_is_let_have_no_more_while_the_disk_is_full() -> None:
    budget = budget_of(100)
    past = ready(budget, 100)
    eldest, younger = budget.open(), budget.open()
    eldest.block()
    shrinks = [budget.will_shrink]
    async with trio.open_nursery() as nursery:
        room = await wait_in(nursery, younger, 10)
        assert budget.allow_more()
        await trio.testing.wait_all_tasks_blocked()
        assert room.size == 0
        shrinks.append(budget.will_shrink)
        eldest.downloaded()
        await trio.testing.wait_all_tasks_blocked()
        assert room.size == 0
        past.release()
    assert shrinks == [True, False]
