from __future__ import annotations

import trio

from iterum_sidecar.local.waiting import tell_of_waiting


async def test_what_is_in_work_is_told_and_more_and_more_seldom(
    autojump_clock: trio.abc.Clock,
) -> None:
    told: list[tuple[float, str]] = []
    began = trio.current_time()

    def say(text: str) -> None:
        told.append((trio.current_time() - began, text))

    with trio.move_on_after(40):
        await tell_of_waiting(lambda: {"a-1": 2, "b-3": 1}, say)
    what = "waiting for a-1 (2 fragments in work), b-3 (1 fragment in work)"
    assert told == [
        (5, f"{what}, 5 s now; Ctrl-C again ends at once"),
        (15, f"{what}, 15 s now; Ctrl-C again ends at once"),
        (35, f"{what}, 35 s now; Ctrl-C again ends at once"),
    ]


async def test_steps_that_have_nothing_in_work_are_waited_for_too(
    autojump_clock: trio.abc.Clock,
) -> None:
    told: list[str] = []
    with trio.move_on_after(6):
        await tell_of_waiting(dict, told.append)
    assert told == ["waiting for the steps to end, 5 s now; Ctrl-C again ends at once"]
