"""Nothing waits for ever: gathering steps, slow ones, stuck ones, side by side."""

from __future__ import annotations

import json

import pytest
import trio
import trio.testing

from iterum_sidecar.exit_codes import (
    TransformationLost,
)
from iterum_sidecar.framing import encode_frame
from tests.unit.row import (
    INPUT,
    FinishedOnRequest,
    Row,
    StepConnection,
    fragment_id,
    temporary_row,
)
from tests.unit.row_with_faults import FaultyStore, finished, id_of, run_while, sidecar_with

Clock = trio.testing.MockClock


class SlowStore(FaultyStore):
    async def put(self, bucket: str, key: str, file: int, size: int) -> None:
        await trio.sleep(1)
        await super().put(bucket, key, file, size)


async def test_a_done_that_was_read_before_its_fragment_was_handed_out_again_frees_no_other_seat(
    autojump_clock: Clock,
) -> None:
    """Five dones come in one piece; what is void and waits for nothing is handed out again before its own is looked at."""
    rounds: list[list[str]] = []
    broken = trio.Event()

    async def one_by_one(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            await trio.sleep(2)
            await connection.result([id_of(fragment)], id_of(fragment), b"x")
            await connection.done(id_of(fragment))
        await connection.kill()

    async def breaking(connection: StepConnection) -> None:
        batch: list[str] = []
        async for fragment in connection.fragments():
            batch.append(id_of(fragment))
            if not rounds and len(batch) < 5:
                continue
            if not rounds:
                for own in batch[:4]:
                    await connection.result([own], own, b"x")
                await connection.send(["not a message"])
                await connection.outputs.aclose()
                connection.outputs = await trio.open_unix_socket(connection.volume / "out.sock")
            else:
                for own in batch:
                    await connection.result([own], own, b"x")
            rounds.append(batch)
            broken.set()
            await trio.sleep(0.2)
            frames = [encode_frame(json.dumps({"fragment_id": own}).encode()) for own in batch]
            await connection.outputs.send_all(b"".join(frames))
            batch = []
        await connection.kill()

    async with temporary_row(SIDECAR_HANDOUT_DEPTH="5") as row:

        async def patient() -> None:
            await broken.wait()
            await row.run_step(one_by_one)

        await row.put(5)
        sidecar = sidecar_with(row, finished(), store=SlowStore(row.store_root))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, breaking)
            nursery.start_soon(patient)
            with trio.fail_after(300):
                await sidecar.run()
            nursery.cancel_scope.cancel()
        assert len(row.outputs()) == 5


async def test_a_dead_connection_is_not_held_against_a_hand_out_that_came_after_it(
    autojump_clock: Clock,
) -> None:
    """A void fragment: its input connection closes, then its done comes, and it is with another connection already."""
    async with temporary_row() as row:
        others: list[str] = []

        async def other(connection: StepConnection) -> None:
            async for fragment in connection.fragments():
                own = id_of(fragment)
                others.append(own)
                await trio.sleep(3)
                await connection.result([own], own, b"x")
                await connection.done(own)
            await connection.kill()

        await row.put(1)
        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)
        with trio.fail_after(300):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sidecar.run)
                first = await row.connect()
                fragment = await first.__anext__()
                second_output = await trio.open_unix_socket(row.volume / "out.sock")
                await second_output.send_all(encode_frame(b"nonsense"))
                await trio.sleep(0.1)
                await second_output.aclose()
                nursery.start_soon(row.run_step, other)
                await trio.sleep(0.1)
                await first.inputs.aclose()
                await trio.sleep(0.1)
                await first.done(id_of(fragment))
                await trio.sleep(5)
                await first.outputs.aclose()
                await row.put(2, start=1)
                upstream.finished.set()
        assert sorted(others) == [fragment_id(number) for number in range(3)]
        assert row.tally.struck == 0


async def second(row: Row) -> bytes:
    """The description of another fragment, which is on no queue."""
    await row.put_object("iterum_data/1.txt", b"content 1")
    file = {"name": "1.txt", "path": "iterum_data/1.txt", "bucket": "source"}
    return json.dumps({"files": [file], "metadata": {"fragment_id": fragment_id(1)}}).encode()


@pytest.mark.parametrize("depth", ["1", "2"])
async def test_a_step_that_gathers_is_given_suspects_too_when_it_waits_for_more(
    depth: str, autojump_clock: Clock
) -> None:
    """After a lost connection a quorum queue's counter makes suspects of what is delivered again."""

    async def pairs(connection: StepConnection) -> None:
        batch: list[str] = []
        async for fragment in connection.fragments():
            batch.append(id_of(fragment))
            if len(batch) == 2:
                await connection.result(batch, batch[0], b"x")
                for own in batch:
                    await connection.done(own)
                batch.clear()
        await connection.kill()

    async with temporary_row(SIDECAR_HANDOUT_DEPTH=depth) as row:
        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)
        await row.put(1)
        with trio.fail_after(300):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(row.run_step, pairs)
                nursery.start_soon(sidecar.run)
                await trio.sleep(0.2)
                row.broker.put(INPUT, await second(row), {"x-acquired-count": 2})
                upstream.finished.set()
        assert len(row.outputs()) == 1


async def test_a_step_that_gathers_at_a_depth_of_its_own_is_given_suspects_and_others(
    autojump_clock: Clock,
) -> None:
    """It holds one and has room, and a suspect waits to be handed out alone, with another fragment behind it."""

    async def threes(connection: StepConnection) -> None:
        batch: list[str] = []
        async for fragment in connection.fragments():
            batch.append(id_of(fragment))
            if len(batch) == 3:
                await connection.result(batch, batch[0], b"x")
                for own in batch:
                    await connection.done(own)
                batch.clear()
        await connection.kill()

    async with temporary_row(SIDECAR_HANDOUT_DEPTH="5") as row:
        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)
        await row.put(1)
        with trio.fail_after(300):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(row.run_step, threes)
                nursery.start_soon(sidecar.run)
                await trio.sleep(0.2)
                row.broker.put(INPUT, await second(row), {"x-acquired-count": 2})
                await row.put(1, start=2)
                upstream.finished.set()
        assert len(row.outputs()) == 1


async def test_a_connection_that_is_stuck_keeps_no_fragment_from_one_that_has_room(
    autojump_clock: Clock,
) -> None:
    """The length of a frame that it was told of binds no fragment to it, and the program comes to its end."""
    worked: list[str] = []

    async def stuck(connection: StepConnection) -> None:
        await connection.__anext__()
        await trio.sleep_forever()

    async def sound(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            await trio.sleep(2)
            worked.append(id_of(fragment))
            await connection.done(id_of(fragment))
        await connection.kill()

    async with temporary_row() as row:
        await row.put(12)
        with trio.fail_after(3600), pytest.RaisesGroup(TransformationLost, flatten_subgroups=True):
            await row.run(stuck, sound)
        assert len(worked) == 11


async def test_a_connection_that_gathers_is_not_held_up_by_a_slow_one_beside_it(
    autojump_clock: Clock,
) -> None:
    gathered_at: list[float] = []

    async def gathering(connection: StepConnection) -> None:
        batch: list[str] = []
        async for fragment in connection.fragments():
            batch.append(id_of(fragment))
            if len(batch) == 8:
                gathered_at.append(trio.current_time())
                for own in batch:
                    await connection.done(own)
                batch.clear()
        for own in batch:
            await connection.done(own)
        await connection.kill()

    async def slow(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            await trio.sleep(600)
            await connection.done(id_of(fragment))
        await connection.kill()

    async with temporary_row(SIDECAR_KILL_TIMEOUT="2000") as row:
        await row.put(17)
        began = trio.current_time()
        await row.run(slow, gathering)
        assert gathered_at[0] - began < 60


async def test_a_step_that_reads_nothing_is_told_of(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Waiting for ever is a stall; what is waited for, and for how long, is in the log."""

    async def deaf(connection: StepConnection) -> None:
        await trio.sleep_forever()

    async with temporary_row() as row:
        await row.put(1)
        with trio.move_on_after(900):
            await row.run(deaf)
        assert caplog.records


@pytest.mark.parametrize("size", [1_000, 100_000])
async def test_a_fragment_that_is_longer_than_was_announced_goes_to_a_connection_of_its_own(
    size: int, autojump_clock: Clock
) -> None:
    """The step was busy when the length of its next frame was sent; a longer one needs a new connection."""
    lives: list[int] = []

    async def slow_at_first(connection: StepConnection) -> None:
        lives.append(0)
        async for fragment in connection.fragments():
            if lives == [0]:
                lives[0] += 1
                await trio.sleep(3)
            await connection.done(id_of(fragment))
        if connection.ended_by_kill:
            await connection.kill()

    async with temporary_row() as row:
        await row.put(1)
        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)

        async def put_another() -> None:
            await trio.sleep(2)
            await row.put_object("iterum_data/1.txt", b"content 1")
            row.describe(1, [("1.txt", "iterum_data/1.txt")], custom={"long": "x" * size})
            await trio.sleep(5)
            upstream.finished.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(put_another)
            with trio.fail_after(300):
                await run_while(sidecar, row, slow_at_first)
        assert row.tally.fragments == 2
        assert row.tally.struck == 0
        assert len(lives) == (1 if size == 1_000 else 2)
