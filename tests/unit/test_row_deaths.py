"""What a death of the transformation costs, and whom."""

from __future__ import annotations

import json
import socket

import pytest
import trio
import trio.testing

from iterum_sidecar.exit_codes import (
    SidecarError,
)
from iterum_sidecar.framing import encode_frame
from iterum_sidecar.messages import decode_remote_fragment
from tests.unit.row import (
    DEAD,
    FinishedOnRequest,
    StepConnection,
    fragment_id,
    temporary_row,
)
from tests.unit.row_with_faults import finished, id_of, run_while

Clock = trio.testing.MockClock


# -- blame


async def test_a_connection_that_closes_before_it_read_a_fragment_is_no_death_of_its(
    autojump_clock: Clock,
) -> None:
    """A step that works one fragment for each connection: the next is sent to it before it closes."""

    async def one_each(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            own = id_of(fragment)
            await connection.result([own], own, b"x")
            await connection.done(own)
            await trio.sleep(0.01)
            return
        await connection.kill()

    async with temporary_row() as row:
        await row.put(12)
        with trio.move_on_after(200):
            await run_while(row.make_sidecar(finished()), row, one_each)
        assert row.broker.messages(DEAD) == []
        assert row.tally.struck == 0
        assert len(row.outputs()) == 12


async def test_what_a_process_sent_before_it_ended_counts_though_it_had_only_just_connected(
    autojump_clock: Clock,
) -> None:
    """A process for each fragment, sixteen side by side: it connects its output, sends result and done, and is gone."""
    async with temporary_row() as row:

        async def brief() -> None:
            while True:
                try:
                    inputs = await trio.open_unix_socket(row.volume / "in.sock")
                except OSError:
                    await trio.sleep(0.01)
                    continue
                connection = StepConnection(row.volume, inputs, inputs)
                with inputs.socket:
                    async for fragment in connection.fragments():
                        await trio.sleep(1 - trio.current_time() % 1)
                        own = id_of(fragment)
                        path = row.volume / own
                        path.write_bytes(b"x")
                        result = {
                            "files": [{"name": own, "path": str(path)}],
                            "metadata": {"predecessors": [own]},
                        }
                        with socket.socket(socket.AF_UNIX) as outputs:
                            outputs.connect(str(row.volume / "out.sock"))
                            for message in (result, {"fragment_id": own}):
                                outputs.sendall(encode_frame(json.dumps(message).encode()))
                        break
                await trio.sleep(0.1)

        await row.put(300)
        sidecar = row.make_sidecar(FinishedOnRequest())
        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(brief)
            nursery.start_soon(sidecar.run)
            await trio.sleep(100)
            nursery.cancel_scope.cancel()
        assert row.tally.late_results == 0
        assert row.broker.messages(DEAD) == []


async def test_the_neighbours_of_a_poisonous_fragment_are_no_dead_letters(
    autojump_clock: Clock,
) -> None:
    """One process with sixteen connections, all of which die with it."""
    poisonous = {fragment_id(number) for number in range(0, 240, 60)}
    async with temporary_row() as row:

        async def process() -> None:
            with trio.CancelScope() as life:
                async with trio.open_nursery() as nursery:

                    async def worker(connection: StepConnection) -> None:
                        async for fragment in connection.fragments():
                            own = id_of(fragment)
                            await trio.sleep(0.1 if own in poisonous else 0.3)
                            if own in poisonous:
                                life.cancel()
                                await trio.sleep_forever()
                            await connection.result([own], own, b"x")
                            await connection.done(own)
                        await connection.kill()

                    for _ in range(16):
                        nursery.start_soon(row.run_step, worker)

        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)

        async def keep_coming() -> None:
            for start in range(0, 240, 6):
                await row.put(6, start=start)
                await trio.sleep(1)
            upstream.finished.set()

        async def keep_starting() -> None:
            while True:
                await process()
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_starting)
            nursery.start_soon(keep_coming)
            await sidecar.run()
            nursery.cancel_scope.cancel()
        dead = {
            decode_remote_fragment(letter.body).metadata.fragment_id
            for letter in row.broker.messages(DEAD)
        }
        assert dead == poisonous


async def test_the_last_fragment_of_a_slow_step_is_tried_again_when_the_step_dies_on_it(
    autojump_clock: Clock,
) -> None:
    deaths: list[str] = []

    async def slow(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            own = id_of(fragment)
            await trio.sleep(3)
            if not deaths:
                deaths.append(own)
                return
            await connection.result([own], own, b"x")
            await connection.done(own)
        await connection.kill()

    async with temporary_row() as row:
        await row.put(1)
        await run_while(row.make_sidecar(finished()), row, slow)
        assert len(row.outputs()) == 1


async def test_a_poisonous_last_fragment_of_a_slow_step_is_a_dead_letter_in_the_end(
    autojump_clock: Clock,
) -> None:
    """Whether in one life of the program or in several."""

    async def dying(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            assert fragment
            await trio.sleep(3)
            return
        await connection.kill()

    async with temporary_row(SIDECAR_TRANSFORMATION_RETURN_TIMEOUT="30") as row:
        await row.put(1)
        for _ in range(5):
            try:
                await run_while(row.make_sidecar(finished()), row, dying)
                break
            except* SidecarError:
                pass
        assert len(row.broker.messages(DEAD)) == 1


# -- several poisons at once


async def dead_after_deaths(
    poisonous: set[int],
    *,
    innocent: int = 20,
    restart_after: float = 1.0,
    connections: int = 4,
    **environment: str,
) -> list[int]:
    """Run a process of several connections, which dies on some fragments and is started again; return the dead letters."""
    count = innocent + len(poisonous)
    async with temporary_row(**environment) as row:

        async def process() -> None:
            with trio.CancelScope() as life:
                async with trio.open_nursery() as nursery:

                    async def worker(connection: StepConnection) -> None:
                        async for fragment in connection.fragments():
                            own = id_of(fragment)
                            # A poison is fast, so that whoever is beside it has been at work for some time.
                            await trio.sleep(0.2 if int(own) in poisonous else 0.3)
                            if int(own) in poisonous:
                                life.cancel()
                                await trio.sleep_forever()
                            await connection.result([own], own, b"x")
                            await connection.done(own)
                        await connection.kill()

                    for _ in range(connections):
                        nursery.start_soon(row.run_step, worker)

        async def keep_starting() -> None:
            while True:
                await process()
                await trio.sleep(restart_after)

        await row.put(count)
        with trio.fail_after(3600):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_starting)
                await row.make_sidecar(finished()).run()
                nursery.cancel_scope.cancel()
        done = {output["metadata"]["predecessors"][0] for output in row.outputs()}
        dead = [
            decode_remote_fragment(letter.body).metadata.fragment_id
            for letter in row.broker.messages(DEAD)
        ]
        assert sorted([*done, *dead]) == [fragment_id(number) for number in range(count)]
        return sorted(map(int, dead))


@pytest.mark.parametrize("attempts", ["1", "2", "3"])
@pytest.mark.parametrize(
    "poisonous", [{0, 1}, {3, 9}, {5, 21}, {1, 4, 8, 12, 16, 20}], ids=lambda each: str(len(each))
)
async def test_no_innocent_becomes_a_dead_letter_beside_several_poisons(
    poisonous: set[int], attempts: str, autojump_clock: Clock
) -> None:
    assert await dead_after_deaths(poisonous, SIDECAR_ATTEMPTS=attempts) == sorted(poisonous)


@pytest.mark.parametrize("restart_after", [0.01, 0.3, 2.0])
async def test_poisons_are_found_out_however_soon_the_process_is_started_again(
    restart_after: float, autojump_clock: Clock
) -> None:
    """Sooner than a death is judged, too."""
    assert await dead_after_deaths({3, 9}, restart_after=restart_after) == [3, 9]
    alone = await dead_after_deaths({0, 1}, restart_after=restart_after, connections=1)
    assert alone == [0, 1]


async def test_a_step_that_gathers_and_dies_of_its_batch_loses_the_batch_and_goes_on(
    autojump_clock: Clock,
) -> None:
    """It would die of it for ever: suspects cannot be handed out one at a time to a step that waits for more."""

    async def threes(connection: StepConnection) -> None:
        await connection.send({"gathers": {"fragments": 3}})
        batch: list[str] = []
        async for fragment in connection.fragments():
            batch.append(id_of(fragment))
            if len(batch) == 3:
                if fragment_id(1) in batch:
                    return
                await connection.result(batch, batch[0], b"x")
                for own in batch:
                    await connection.done(own)
                batch.clear()
        await connection.kill()

    async with temporary_row() as row:
        await row.put(9)
        with trio.fail_after(300):
            await run_while(row.make_sidecar(finished()), row, threes)
        dead = {
            decode_remote_fragment(each.body).metadata.fragment_id
            for each in row.broker.messages(DEAD)
        }
        assert fragment_id(1) in dead
        assert len(dead) == 3
        assert len(row.outputs()) == 2
