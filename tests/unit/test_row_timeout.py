"""A transformation that hangs, with `SIDECAR_FRAGMENT_TIMEOUT`: who is given up, who is blamed, and what comes of those that wake."""

from __future__ import annotations

import json
import select
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from iterum_sidecar.exit_codes import TransformationLost
from iterum_sidecar.identity import OutputIdentity
from tests.unit.row import (
    DEAD,
    INPUT,
    FinishedOnRequest,
    Row,
    StepConnection,
    copy_step,
    fragment_id,
    temporary_row,
)
from tests.unit.row_with_faults import finished, id_of, run_while

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Clock = trio.testing.MockClock
TIMEOUT = 5.0


async def until_given_up(connection: StepConnection) -> None:
    """Return when the sidecar has closed the input connection, without reading from it as somebody would who waits for input."""
    poll = select.poll()
    poll.register(connection.inputs.socket, 0)
    while not poll.poll(0):  # noqa: ASYNC110 - what is waited for is seen from outside only
        await trio.sleep(0.1)


def hangs_on(*numbers: int, work: float = 0.1) -> Callable[[StepConnection], Awaitable[None]]:
    """A step that hangs on these fragments for as long as it lives: until its input is closed, as a supervisor would see."""

    async def step(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            own = id_of(fragment)
            if int(own) in numbers:
                await until_given_up(connection)
                return
            await trio.sleep(work)
            await connection.result([own], own, b"x")
            await connection.done(own)
        await connection.kill()

    return step


def done_in(row: Row) -> list[int]:
    return sorted(int(output["metadata"]["predecessors"][0]) for output in row.outputs())


def dead_in(row: Row) -> list[int]:
    letters = row.broker.messages(DEAD)
    return sorted(int(json.loads(each.body)["metadata"]["fragment_id"]) for each in letters)


# -- who is given up, and blamed


async def test_a_fragment_that_is_never_finished_is_a_dead_letter_after_its_attempts(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with temporary_row(SIDECAR_FRAGMENT_TIMEOUT=f"{TIMEOUT:g}") as row:
        await row.put(8)
        with trio.fail_after(120):
            await run_while(row.make_sidecar(finished()), row, hangs_on(3))
        assert done_in(row) == [0, 1, 2, 4, 5, 6, 7]
        (letter,) = row.broker.messages(DEAD)
        assert letter.headers["x-iterum-kind"] == "timed_out"
        assert letter.headers["x-iterum-reason"] == (
            "the transformation did not finish it within 5 s (SIDECAR_FRAGMENT_TIMEOUT) (3 attempts)"
        )
        assert letter.headers["x-iterum-attempts"] == 3
        told = [each for each in caplog.records if "connection is closed" in each.message]
        assert len(told) == 3
        row.check_acknowledgements(lambda own: own != fragment_id(3))


async def test_by_default_a_fragment_may_take_as_long_as_it_likes(autojump_clock: Clock) -> None:
    async def slow(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            await trio.sleep(6_000)
            await connection.done(id_of(fragment))
        await connection.kill()

    async with temporary_row(SIDECAR_KILL_TIMEOUT="20000") as row:
        await row.put(2)
        await row.run(slow)
        assert row.tally.fragments == 2


async def test_one_worker_that_hangs_keeps_the_others_from_nothing(autojump_clock: Clock) -> None:
    """It hangs for good, and holds its output connection open: the step is done without it."""

    async def worker(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            own = id_of(fragment)
            if int(own) == 5 and not hung:
                hung.append(own)
                await trio.sleep_forever()
            await trio.sleep(0.5)
            await connection.result([own], own, b"x")
            await connection.done(own)
        await connection.kill()

    hung: list[str] = []
    async with temporary_row(SIDECAR_FRAGMENT_TIMEOUT="5") as row:
        await row.put(40)
        with trio.fail_after(60):
            await row.run(worker, worker, worker, worker)
        assert done_in(row) == list(range(40))
        assert dead_in(row) == []
        assert row.tally.struck == 1


@pytest.mark.parametrize("end_it", [True, False])
async def test_the_neighbours_of_what_hangs_a_whole_process_are_no_dead_letters(
    end_it: bool, autojump_clock: Clock
) -> None:
    """As an endless loop does that holds the interpreter's lock: all connections of the process stand still with it."""
    poisonous = {3, 11}
    async with temporary_row(SIDECAR_FRAGMENT_TIMEOUT="5") as row:
        ended, stands_still = trio.Event(), trio.Event()

        async def process() -> None:
            with trio.CancelScope() as life:
                async with trio.open_nursery() as nursery:

                    async def end() -> None:
                        await ended.wait()
                        life.cancel()

                    async def worker(connection: StepConnection) -> None:
                        async for fragment in connection.fragments():
                            own = id_of(fragment)
                            await trio.sleep(1.5)
                            if int(own) in poisonous:
                                stands_still.set()
                            if stands_still.is_set():
                                await trio.sleep_forever()
                            await connection.result([own], own, b"x")
                            await connection.done(own)
                        await connection.kill()

                    nursery.start_soon(end)
                    for _ in range(4):
                        nursery.start_soon(row.run_step, worker)

        async def keep_starting() -> None:
            nonlocal ended, stands_still
            while True:
                ended, stands_still = trio.Event(), trio.Event()
                await process()
                await trio.sleep(0.25)

        async def end_transformation(has_read: bool) -> None:
            assert has_read
            ended.set()
            await trio.sleep(0.1)

        async def liveness_probe() -> None:
            """What ends the process where the sidecar cannot, some time after that has given it up."""
            while True:
                await trio.sleep(1)
                if stands_still.is_set():
                    await trio.sleep(12)
                    ended.set()

        await row.put(30)
        sidecar = row.make_sidecar(
            finished(), end_transformation=end_transformation if end_it else None
        )
        with trio.fail_after(600):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_starting)
                if not end_it:
                    nursery.start_soon(liveness_probe)
                await sidecar.run()
                nursery.cancel_scope.cancel()
        assert dead_in(row) == sorted(poisonous)
        assert done_in(row) == [number for number in range(30) if number not in poisonous]


async def test_a_step_that_gathers_and_waits_for_more_does_not_hang(autojump_clock: Clock) -> None:
    """Not even when it waits far longer than a fragment may take, beside a connection that is busy."""

    async def gathering(connection: StepConnection) -> None:
        batch: list[str] = []
        async for fragment in connection.fragments():
            batch.append(id_of(fragment))
            if len(batch) == 3:
                await connection.result(batch, batch[0], b"x")
                for own in batch:
                    await connection.done(own)
                batch.clear()
        await connection.result(batch, batch[0], b"x")
        for own in batch:
            await connection.done(own)
        await connection.kill()

    async with temporary_row(SIDECAR_FRAGMENT_TIMEOUT="2") as row:
        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, gathering)
            nursery.start_soon(sidecar.run)
            for number in range(4):
                await row.put(1, start=number)
                await trio.sleep(30)
            upstream.finished.set()
        assert row.tally.struck == 0
        assert [len(each["metadata"]["predecessors"]) for each in row.outputs()] == [3, 1]


async def test_a_step_that_gathers_and_hangs_on_its_batch_loses_the_batch_in_the_end(
    autojump_clock: Clock,
) -> None:
    async def gathering(connection: StepConnection) -> None:
        await connection.send({"gathers": {"fragments": 3}})
        batch: list[str] = []
        async for fragment in connection.fragments():
            batch.append(id_of(fragment))
            if len(batch) == 3:
                await until_given_up(connection)
                return
        await connection.kill()

    async with temporary_row(SIDECAR_FRAGMENT_TIMEOUT="2") as row:
        await row.put(3)
        with trio.fail_after(120):
            await run_while(row.make_sidecar(finished()), row, gathering)
        assert dead_in(row) == [0, 1, 2]


async def test_a_process_that_reads_nothing_costs_no_fragment_an_attempt(
    autojump_clock: Clock,
) -> None:
    async def deaf(connection: StepConnection) -> None:
        await trio.sleep_forever()

    async with temporary_row(SIDECAR_FRAGMENT_TIMEOUT="2") as row:
        await row.put(6)
        with trio.fail_after(60):
            await row.run(deaf, hangs_on())
        assert done_in(row) == list(range(6))
        assert row.tally.struck == 0


async def test_what_the_sidecar_cannot_end_is_left_to_the_next_pod_with_its_count(
    autojump_clock: Clock,
) -> None:
    async def stuck(connection: StepConnection) -> None:
        await connection.__anext__()
        await trio.sleep_forever()

    async with temporary_row(
        SIDECAR_FRAGMENT_TIMEOUT="5", SIDECAR_TRANSFORMATION_RETURN_TIMEOUT="60"
    ) as row:
        await row.put(1)
        with trio.fail_after(100), pytest.RaisesGroup(TransformationLost, flatten_subgroups=True):
            await row.run(stuck)
        (message,) = row.broker.messages(INPUT)
        assert message.headers["x-iterum-attempts"] == 1


async def test_a_drain_blames_nobody_for_what_hangs(autojump_clock: Clock) -> None:
    async def stuck(connection: StepConnection) -> None:
        await connection.__anext__()
        held.set()
        await trio.sleep_forever()

    held = trio.Event()
    async with temporary_row(SIDECAR_FRAGMENT_TIMEOUT="5") as row:
        await row.put(1)
        sidecar = row.make_sidecar(FinishedOnRequest())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, stuck)

            async def drain() -> None:
                await held.wait()
                sidecar.drain()

            nursery.start_soon(drain)
            with trio.fail_after(20):
                await sidecar.run()
            nursery.cancel_scope.cancel()
        (message,) = row.broker.messages(INPUT)
        assert "x-iterum-attempts" not in message.headers


# -- what wakes

#: The moments of a second hand-out at which a process that was given up may wake, in their order.
MOMENTS = ["given up", "out", "first result", "second result", "done", "settled"]
#: What comes of a fragment here: two results that nothing but their order tells apart, and one more.
NAMES = ["x", "x", "y"]


class Awakening:
    """A fragment that one process hangs on, and another is handed: what each of them sends, message by message, at the moments that are told."""

    def __init__(self, row: Row, *, before: int, wakes_at: str, at_once: bool) -> None:
        """The first process sends so many messages `before` it hangs, and the others when it wakes, or one at each moment from then on."""
        self.row = row
        self.before = before
        self.wakes_at = MOMENTS.index(wakes_at)
        self.at_once = at_once
        self.reached = {moment: trio.Event() for moment in MOMENTS}

    def _messages(
        self, connection: StepConnection, own: str
    ) -> list[Callable[[], Awaitable[None]]]:
        def result(number: int, name: str) -> Callable[[], Awaitable[None]]:
            async def send() -> None:
                path = self.row.volume / f"{id(connection)}-{number}"
                path.write_text(f"{number}")
                await connection.send_result([own], [(name, str(path))])

            return send

        async def done() -> None:
            await connection.done(own)

        return [*(result(number, name) for number, name in enumerate(NAMES)), done]

    async def first(self, connection: StepConnection) -> None:
        own = id_of(await connection.__anext__())
        messages = self._messages(connection, own)
        for send in messages[: self.before]:
            await send()
        left = messages[self.before :]
        await until_given_up(connection)
        await trio.sleep(1)
        self.reached["given up"].set()
        for moment in MOMENTS[self.wakes_at :]:
            await self.reached[moment].wait()
            for send in left if self.at_once else left[:1]:
                await send()
            left = [] if self.at_once else left[1:]
            await trio.sleep(0.1)
        for send in left:
            await send()
        await trio.sleep_forever()

    async def second(self) -> None:
        await self.reached["given up"].wait()
        await trio.sleep(0.5)
        connection = await self.row.connect()
        async for fragment in connection.fragments():
            await self._reach("out")
            steps = [*MOMENTS[2:], "another"]
            for send, moment in zip(
                self._messages(connection, id_of(fragment)), steps, strict=False
            ):
                await send()
                if moment != "done":
                    await self._reach(moment)
            await self._reach("done")
            await trio.sleep(2)
            await self._reach("settled")
        await connection.kill()
        connection.inputs.socket.close()
        connection.outputs.socket.close()

    async def _reach(self, moment: str) -> None:
        await trio.sleep(0.5)
        if moment in self.reached:
            self.reached[moment].set()
        await trio.sleep(0.5)


@pytest.mark.parametrize("at_once", [True, False], ids=["all at once", "bit by bit"])
@pytest.mark.parametrize("before", range(len(NAMES) + 1))
@pytest.mark.parametrize("wakes_at", MOMENTS)
async def test_whenever_a_process_wakes_each_output_comes_out_once_and_none_is_lost(
    wakes_at: str, before: int, at_once: bool, autojump_clock: Clock
) -> None:
    async with temporary_row(SIDECAR_FRAGMENT_TIMEOUT="5") as row:
        await row.put(1)
        awakening = Awakening(row, before=before, wakes_at=wakes_at, at_once=at_once)
        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)

        async def watch() -> None:
            await awakening.reached["settled"].wait()
            await trio.sleep(5)
            assert row.tally.fragments == 1, "it is settled, whatever came of the first process"
            await trio.sleep(5)
            upstream.finished.set()

        with trio.fail_after(300):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(row.run_step, awakening.first)
                nursery.start_soon(awakening.second)
                nursery.start_soon(watch)
                await sidecar.run()
                nursery.cancel_scope.cancel()
        identity = OutputIdentity("hash", "hash-step")
        expected = {
            identity.derive([fragment_id(0)], None, [name], NAMES[:at].count(name)): str(at)
            for at, name in enumerate(NAMES)
        }
        found = {
            output["metadata"]["fragment_id"]: row.object(file["bucket"], file["path"]).decode()
            for output in row.outputs()
            for file in output["files"]
        }
        assert found == expected
        assert len(row.outputs()) == len(expected), "none twice, not even under the same ID"
        assert dead_in(row) == []
        row.check_acknowledgements(lambda _: len(expected))


async def test_a_result_that_is_dropped_is_counted_and_its_file_goes_with_the_fragment(
    autojump_clock: Clock,
) -> None:
    async with temporary_row(SIDECAR_FRAGMENT_TIMEOUT="5") as row:
        await row.put(1)

        async def wakes(connection: StepConnection) -> None:
            own = id_of(await connection.__anext__())
            await until_given_up(connection)
            await trio.sleep(1)  # the fragment waits for somebody who is there
            await connection.result([own], "dropped", b"x")
            await connection.done(own)
            await trio.sleep(1)
            awake.set()

        async def second() -> None:
            await awake.wait()
            await row.run_step(copy_step)

        awake = trio.Event()
        sidecar = row.make_sidecar(finished())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, wakes)
            nursery.start_soon(second)
            await sidecar.run()
            nursery.cancel_scope.cancel()
        assert row.tally.stray_results == 1
        assert row.tally.summary(1.0)["stray_results"] == 1
        assert [output["files"][0]["name"] for output in row.outputs()] == ["out-0.txt"]
        assert not [each for each in row.left_on_volume() if each.startswith("output/")]
