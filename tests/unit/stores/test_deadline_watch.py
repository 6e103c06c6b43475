"""Deadlines that one task watches over, with Trio's clock; and exchanges that are ended by it."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from iterum_sidecar.stores.deadline_watch import DeadlineWatch
from iterum_sidecar.stores.http1 import Request
from iterum_sidecar.stores.pool import Pool
from iterum_sidecar.stores.transport import Deadlines, NoAnswer
from tests.unit.stores.scripted import LOCAL, Act, answer, scripted

GET = Request(b"GET /bucket/key HTTP/1.1\r\nhost: here\r\n\r\n")


class Waiting:
    """Something that is waited for; `expired_at` is when it was given up."""

    def __init__(self) -> None:
        self.expired_at: float | None = None

    def expire(self) -> None:
        self.expired_at = trio.current_time()


async def test_each_expires_at_its_own_deadline(autojump_clock: trio.testing.MockClock) -> None:
    watch = DeadlineWatch()
    first, second, early, ended = Waiting(), Waiting(), Waiting(), Waiting()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.keep)
        await trio.testing.wait_all_tasks_blocked()
        assert watch.is_kept
        watch.begin(first, 10)
        watch.begin(ended, 5)
        await trio.sleep(1)
        watch.begin(second, 11)
        watch.begin(early, 4)  # earlier than any of those before it
        await trio.sleep(1)
        watch.end(ended)
        await trio.sleep(20)
        late = Waiting()  # after a time in which there was nothing to watch over
        watch.begin(late, 25)
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert (first.expired_at, second.expired_at, early.expired_at) == (10, 11, 4)
    assert ended.expired_at is None
    assert late.expired_at == 25
    assert not watch.is_kept


async def test_what_began_before_anybody_watched_expires_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    watch, waiting = DeadlineWatch(), Waiting()
    watch.begin(waiting, 3)
    with trio.move_on_after(10):
        await watch.keep()
    assert waiting.expired_at == 3


async def test_a_request_without_an_answer_is_given_up_and_others_are_not() -> None:
    async with scripted(answer(200, b"one"), [Act.SILENCE]) as server:
        pool = Pool(LOCAL, server.port, deadlines=Deadlines(answer=0.2))
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.watch.keep)
                await trio.testing.wait_all_tasks_blocked()
                assert (await pool.exchange(GET)).body == b"one"
                began = trio.current_time()
                with pytest.raises(NoAnswer, match=r"no answer within 0\.2 s"):
                    await pool.exchange(GET)
                assert trio.current_time() - began >= 0.2
                assert (pool.busy, pool.idle) == (0, 0)
                nursery.cancel_scope.cancel()
        pool.close()


async def test_a_pool_that_is_closed_is_no_missing_answer() -> None:
    async with scripted([Act.SILENCE]) as server:
        pool = Pool(LOCAL, server.port)

        async def ask() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await pool.exchange(GET)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.watch.keep)
                async with trio.open_nursery() as asking:
                    asking.start_soon(ask)
                    await trio.testing.wait_all_tasks_blocked(0.05)
                    pool.close()
                nursery.cancel_scope.cancel()
