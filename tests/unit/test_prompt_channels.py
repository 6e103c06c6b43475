"""Channels without a turn of the scheduler: nothing is lost or overtaken, and the others have their turn all the same."""

from __future__ import annotations

import itertools

import pytest
import trio
import trio.testing

from iterum_sidecar.prompt_channels import IN_ONE_GO, promptly, send_promptly


async def test_the_others_have_a_turn_after_so_many() -> None:
    sender, receiver = trio.open_memory_channel[int](1000)
    for number in range(5 * IN_ONE_GO):
        sender.send_nowait(number)
    sender.close()
    taken: list[int] = []
    seen: list[int] = []

    async def watch() -> None:
        while True:
            seen.append(len(taken))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        async for number in promptly(receiver):
            taken += [number]
        nursery.cancel_scope.cancel()
    assert taken == list(range(5 * IN_ONE_GO))
    steps = [later - sooner for sooner, later in itertools.pairwise(seen)]
    # Two of its rounds may be side by side: Trio shuffles those that are to run.
    assert IN_ONE_GO < max(steps) <= 2 * (IN_ONE_GO + 1)


async def test_what_is_there_is_taken_without_a_turn() -> None:
    sender, receiver = trio.open_memory_channel[int](1000)
    for number in range(IN_ONE_GO):
        sender.send_nowait(number)
    prompt = promptly(receiver)
    with trio.testing.assert_no_checkpoints():
        assert [await anext(prompt) for _ in range(IN_ONE_GO)] == list(range(IN_ONE_GO))


async def test_it_waits_for_more_and_ends_with_the_channel(
    autojump_clock: trio.testing.MockClock,
) -> None:
    sender, receiver = trio.open_memory_channel[int](1)

    async def send() -> None:
        async with sender:
            for number in range(3):
                await trio.sleep(1)
                await send_promptly(sender, number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert [number async for number in promptly(receiver)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await anext(promptly(receiver))


async def test_sending_waits_only_where_there_is_no_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    sender, receiver = trio.open_memory_channel[int](1)
    with trio.testing.assert_no_checkpoints():
        await send_promptly(sender, 0)
    with trio.move_on_after(1) as scope:
        await send_promptly(sender, 1)
    assert scope.cancelled_caught
    assert receiver.receive_nowait() == 0
    with pytest.raises(trio.WouldBlock):
        receiver.receive_nowait()
