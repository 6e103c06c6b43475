"""How many files of how many groups are at work at a time, and what becomes of the rest when one is refused."""

from __future__ import annotations

import gc
import weakref
from collections import Counter

import pytest
import trio
import trio.testing

from iterum_sidecar.file_turns import FileTurns

SECOND = 1.0


class Refused(Exception):
    pass


class Work:
    """A second of work on each file, `(group, number)`; keeps how many files of each group were at work at once, at most."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.done: list[tuple[str, int]] = []

    async def on(self, file: tuple[str, int]) -> None:
        group, _ = file
        for each in (group, "all"):
            self.now[each] += 1
            self.most[each] = max(self.most[each], self.now[each])
        try:
            await trio.sleep(SECOND)
            self.done.append(file)
        finally:
            self.now[group] -= 1
            self.now["all"] -= 1


def files_of(group: str, count: int) -> list[tuple[str, int]]:
    return [(group, number) for number in range(count)]


async def test_a_group_alone_has_several_at_a_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    work, turns = Work(), FileTurns(16, 8)
    began = trio.current_time()
    await turns.for_each(files_of("a", 32), work.on, refusal=Refused)
    assert sorted(work.done) == files_of("a", 32)
    assert work.most["a"] == 8
    assert trio.current_time() - began == pytest.approx(4 * SECOND)


async def test_many_groups_have_one_each(autojump_clock: trio.testing.MockClock) -> None:
    work, turns = Work(), FileTurns(4, 3)
    async with trio.open_nursery() as nursery:
        for name in "abcdef":
            nursery.start_soon(
                lambda each: turns.for_each(files_of(each, 3), work.on, refusal=Refused), name
            )
    assert len(work.done) == 18
    # The first to begin do not know of the others; with their second file they do.
    assert work.most["f"] == 1
    assert work.most["all"] <= 6 + 3


async def test_who_began_in_a_crowd_goes_on_with_several_when_it_is_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    work, turns = Work(), FileTurns(4, 4)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for name in "bcd":
            nursery.start_soon(
                lambda each: turns.for_each(files_of(each, 2), work.on, refusal=Refused), name
            )
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(lambda: turns.for_each(files_of("a", 40), work.on, refusal=Refused))
    assert len(work.done) == 46
    assert work.most["a"] == 4
    # One after the other they would take 40 s; four at a time, once the others have gone, about 12.
    assert trio.current_time() - began < 15 * SECOND


async def test_who_began_alone_gives_turns_away(autojump_clock: trio.testing.MockClock) -> None:
    work, turns = Work(), FileTurns(4, 4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: turns.for_each(files_of("a", 30), work.on, refusal=Refused))
        await trio.sleep(SECOND / 2)
        assert work.now["a"] == 4
        for name in "bcd":
            nursery.start_soon(
                lambda each: turns.for_each(files_of(each, 5), work.on, refusal=Refused), name
            )
        await trio.sleep(2 * SECOND)
        assert work.now["a"] == 1
        assert work.now["all"] == 4
    assert len(work.done) == 45


@pytest.mark.parametrize("of_one_group", [1, 4])
async def test_the_first_refusal_cancels_the_rest_and_is_raised_bare(
    of_one_group: int, autojump_clock: trio.testing.MockClock
) -> None:
    work, turns = Work(), FileTurns(4, of_one_group)

    async def refuse_the_third(file: tuple[str, int]) -> None:
        if file[1] == 2:
            await trio.sleep(SECOND / 2)
            raise Refused("the third")
        await work.on(file)

    with pytest.raises(Refused, match="the third"):
        await turns.for_each(files_of("a", 16), refuse_the_third, refusal=Refused)
    assert len(work.done) == (2 if of_one_group == 1 else 0)
    # A group that has failed counts no longer.
    await turns.for_each(files_of("b", 16), work.on, refusal=Refused)
    assert work.most["b"] == of_one_group


async def test_another_error_ends_the_group_too(autojump_clock: trio.testing.MockClock) -> None:
    turns = FileTurns(4, 4)

    async def break_down(file: tuple[str, int]) -> None:
        await trio.sleep(file[1])
        raise ValueError(file)

    with pytest.RaisesGroup(ValueError):
        await turns.for_each(files_of("a", 10), break_down, refusal=Refused)


async def test_no_files_are_no_work() -> None:
    await FileTurns(4, 4).for_each([], Work().on, refusal=Refused)


@pytest.mark.parametrize("refused", [False, True])
async def test_nothing_of_a_group_is_kept_after_it(
    autojump_clock: trio.testing.MockClock, refused: bool
) -> None:
    class Ours(Work):
        async def on(self, file: tuple[str, int]) -> None:
            await super().on(file)
            if refused:
                raise Refused

    async def do() -> weakref.ref[Ours]:
        work = Ours()
        try:
            await FileTurns(16, 8).for_each(files_of("a", 32), work.on, refusal=Refused)
        except Refused:
            assert refused
        else:
            assert not refused
        return weakref.ref(work)

    gc.disable()
    try:
        kept = await do()
        await trio.sleep(1)  # the tasks' own ends
        assert kept() is None
    finally:
        gc.enable()
