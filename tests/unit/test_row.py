"""The whole row of stages, in memory, on the autojump clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
import trio.testing

from iterum_sidecar.exit_codes import (
    DrainDeadlinePassed,
    TransformationLost,
    TransformationNeverCame,
)
from tests.unit.row import (
    DEAD,
    INPUT,
    LINEAGE,
    FinishedOnRequest,
    StepConnection,
    copy_step,
    fragment_id,
    temporary_row,
)

Clock = trio.testing.MockClock


async def test_every_fragment_arrives_once_with_its_lineage(autojump_clock: Clock) -> None:
    async with temporary_row() as row:
        await row.put(100)
        await row.run(copy_step)
        assert row.contents() == {
            f"out-{number}.txt": f"CONTENT {number}".encode() for number in range(100)
        }
        outputs = row.outputs()
        assert len({output["metadata"]["fragment_id"] for output in outputs}) == len(outputs) == 100
        lineage = [json.loads(message.body) for message in row.broker.messages(LINEAGE)]
        assert sorted(each["description"]["metadata"]["fragment_id"] for each in lineage) == sorted(
            output["metadata"]["fragment_id"] for output in outputs
        )
        assert {each["transformation_step"] for each in lineage} == {"hash-step"}
        assert row.broker.messages(INPUT) == []
        assert row.left_on_volume() == []
        row.check_acknowledgements()


async def test_work_done_again_has_the_same_identities(autojump_clock: Clock) -> None:
    seen = []
    for _ in range(2):
        async with temporary_row() as row:
            await row.put(5)
            await row.run(copy_step)
            seen.append(sorted(output["metadata"]["fragment_id"] for output in row.outputs()))
    assert seen[0] == seen[1]


async def test_a_done_before_its_last_result_is_stored_waits_for_it(autojump_clock: Clock) -> None:
    async def hasty(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            own = fragment["metadata"]["fragment_id"]
            for number in range(5):
                await connection.result([own], f"{number}", b"x" * 100_000)
            await connection.done(own)
        await connection.kill()

    async with temporary_row() as row:
        await row.put(3)
        await row.run(hasty)
        assert len(row.outputs()) == 15
        row.check_acknowledgements()


async def test_two_connections_share_the_fragments(autojump_clock: Clock) -> None:
    counts = {"one": 0, "two": 0}

    def counting(name: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
        async def step(connection: StepConnection) -> None:
            async for fragment in connection.fragments():
                counts[name] += 1
                own = fragment["metadata"]["fragment_id"]
                await trio.sleep(0.1)
                await connection.result([own], f"{own}", b"x")
                await connection.done(own)
            await connection.kill()

        return step

    async with temporary_row() as row:
        await row.put(40)
        await row.run(counting("one"), counting("two"))
        assert len(row.outputs()) == 40
        assert counts["one"] + counts["two"] == 40
        assert min(counts.values()) >= 15


@pytest.mark.parametrize("prefetch", ["", "64"])
async def test_a_step_that_gathers_gets_what_it_needs(prefetch: str, autojump_clock: Clock) -> None:
    """50 at a time, with a last batch that is sent after the kill message."""
    batches: list[int] = []

    async def gather(connection: StepConnection) -> None:
        batch: list[str] = []

        async def send() -> None:
            batches.append(len(batch))
            await connection.result(list(batch), f"batch-{len(batches)}", b"x")
            for own in batch:
                await connection.done(own)
            batch.clear()

        async for fragment in connection.fragments():
            batch.append(fragment["metadata"]["fragment_id"])
            if len(batch) == 50:
                await send()
        if batch:
            await send()
        await connection.kill()

    async with temporary_row(MQ_PREFETCH_COUNT=prefetch) as row:
        await row.put(120)
        await row.run(gather)
        assert batches == [50, 50, 20]
        assert sorted(len(each["metadata"]["predecessors"]) for each in row.outputs()) == [
            20,
            50,
            50,
        ]
        assert row.broker.messages(INPUT) == []
        assert row.left_on_volume() == []
        row.check_acknowledgements()


async def test_a_slow_step_is_not_flooded(autojump_clock: Clock) -> None:
    """One that takes seconds for each fragment holds one at a time, although it finishes none for a second."""
    async with temporary_row() as row:
        held: list[int] = []

        async def slow(connection: StepConnection) -> None:
            async for fragment in connection.fragments():
                await trio.sleep(5)
                own = fragment["metadata"]["fragment_id"]
                await connection.result([own], own, b"x")
                await connection.done(own)
            await connection.kill()

        upstream = FinishedOnRequest()
        await row.put(12)
        sidecar = row.make_sidecar(upstream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, slow)
            nursery.start_soon(sidecar.run)
            for _ in range(100):
                await trio.sleep(0.5)
                held.append(sidecar._roster.held)
            upstream.finished.set()
        assert max(held) == 1
        assert len(row.outputs()) == 12


async def test_what_cannot_be_processed_is_a_dead_letter_and_stops_nothing(
    autojump_clock: Clock,
) -> None:
    async with temporary_row() as row:
        await row.put(3)
        row.broker.put(INPUT, b"not JSON")
        row.broker.put(INPUT, b'{"files":[],"metadata":{}}')
        row.describe(50, [("lost.txt", "iterum_data/no such object")])
        row.describe(51, [("../up.txt", "iterum_data/0.txt")])
        await row.put(3, start=10)
        await row.run(copy_step)
        assert len(row.outputs()) == 6
        letters = row.broker.messages(DEAD)
        assert len(letters) == 4
        assert {letter.body for letter in letters} >= {b"not JSON"}
        for letter in letters:
            assert letter.headers["x-iterum-reason"]
            assert letter.headers["x-iterum-step"] == "hash-step"
            assert letter.headers["x-iterum-time"]
        assert row.broker.messages(INPUT) == []
        assert row.left_on_volume() == []


async def test_nothing_but_dead_letters_pauses_intake(autojump_clock: Clock) -> None:
    async with temporary_row(MQ_PREFETCH_COUNT="5") as row:
        for _ in range(25):
            row.broker.put(INPUT, b"not JSON")
        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, copy_step)
            nursery.start_soon(sidecar.run)
            await trio.sleep(0.5)
            assert len(row.broker.messages(DEAD)) == 20
            await trio.sleep(100)
            assert len(row.broker.messages(DEAD)) == 25
            upstream.finished.set()


async def test_a_refused_result_makes_a_dead_letter_of_its_fragment(autojump_clock: Clock) -> None:
    async def naughty(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            own = fragment["metadata"]["fragment_id"]
            if int(own) == 1:
                await connection.send_result([own], [("x", "/etc/passwd")])
            else:
                await connection.result([own], own, b"x")
            await connection.done(own)
        await connection.kill()

    async with temporary_row() as row:
        await row.put(3)
        await row.run(naughty)
        assert len(row.outputs()) == 2
        (letter,) = row.broker.messages(DEAD)
        assert json.loads(letter.body)["metadata"]["fragment_id"] == fragment_id(1)
        assert "outside the volume" in letter.headers["x-iterum-reason"]
        assert row.left_on_volume() == []


async def test_a_breach_closes_its_connection_and_the_fragment_is_handed_out_again(
    autojump_clock: Clock,
) -> None:
    seen: list[str] = []

    async def breaking(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            own = fragment["metadata"]["fragment_id"]
            seen.append(own)
            if len(seen) == 2:
                await connection.send(["not a message"])
                await connection.outputs.aclose()
                outputs = await trio.open_unix_socket(connection.volume / "out.sock")
                connection.outputs = outputs
            await connection.result([own], own, b"x")
            await connection.done(own)
        await connection.kill()

    async with temporary_row() as row:
        await row.put(4)
        await row.run(breaking)
        assert len(seen) == 5
        assert len(row.outputs()) == 4
        assert row.broker.messages(INPUT) == []


async def test_a_transformation_that_dies_on_a_fragment_is_given_it_three_times(
    autojump_clock: Clock,
) -> None:
    """And its neighbours are all done."""
    lives: list[str] = []

    async def poisoned(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            own = fragment["metadata"]["fragment_id"]
            if int(own) == 2:
                lives.append(own)
                return
            await connection.result([own], own, b"x")
            await connection.done(own)
        await connection.kill()

    async with temporary_row() as row:
        await row.put(5)
        upstream = FinishedOnRequest()
        upstream.finished.set()
        sidecar = row.make_sidecar(upstream)

        async def keep_starting() -> None:
            while True:
                await row.run_step(poisoned)
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_starting)
            await sidecar.run()
            nursery.cancel_scope.cancel()
        assert len(lives) == 3
        assert len(row.outputs()) == 4
        (letter,) = row.broker.messages(DEAD)
        assert letter.headers["x-iterum-attempts"] == 3
        assert "died" in letter.headers["x-iterum-reason"]


async def test_a_drain_gives_back_what_was_not_handed_out_and_finishes_the_rest(
    autojump_clock: Clock,
) -> None:
    async with temporary_row() as row:
        handed: list[str] = []
        handed_out, may_go_on = trio.Event(), trio.Event()

        async def patient(connection: StepConnection) -> None:
            async for fragment in connection.fragments():
                own = fragment["metadata"]["fragment_id"]
                handed.append(own)
                handed_out.set()
                await may_go_on.wait()
                await connection.result([own], own, b"x")
                await connection.done(own)
            await connection.kill()

        await row.put(10)
        sidecar = row.make_sidecar(FinishedOnRequest())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, patient)
            nursery.start_soon(sidecar.run)
            await handed_out.wait()
            sidecar.drain()
            await trio.testing.wait_all_tasks_blocked()
            assert len(row.broker.messages(INPUT)) == 9
            may_go_on.set()
        assert len(handed) == len(row.outputs()) == 1
        assert row.left_on_volume() == []
        row.check_acknowledgements()


async def test_a_drain_that_takes_too_long_ends_and_acknowledges_nothing(
    autojump_clock: Clock,
) -> None:
    async def stuck(connection: StepConnection) -> None:
        async for _ in connection.fragments():
            await trio.sleep_forever()

    async with temporary_row(SIDECAR_DRAIN_SECONDS="7") as row:
        await row.put(3)
        sidecar = row.make_sidecar(FinishedOnRequest())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, stuck)
            nursery.start_soon(_drain_after, sidecar.drain, 1.0)
            began = trio.current_time()
            with pytest.raises(DrainDeadlinePassed):
                await sidecar.run()
            assert 8 <= trio.current_time() - began < 9
            nursery.cancel_scope.cancel()
        assert len(row.broker.messages(INPUT)) == 3
        assert not any(kind == "acknowledged" for kind, _, _ in row.broker.events)


async def _drain_after(drain, seconds: float) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    await trio.sleep(seconds)
    drain()


async def test_a_transformation_that_never_comes_ends_the_program(autojump_clock: Clock) -> None:
    async with temporary_row(SIDECAR_TRANSFORMATION_START_TIMEOUT="30") as row:
        await row.put(1)
        with pytest.RaisesGroup(TransformationNeverCame, flatten_subgroups=True):
            await row.run()
        assert len(row.broker.messages(INPUT)) == 1


async def test_a_transformation_that_ends_with_a_fragment_undone_is_no_success(
    autojump_clock: Clock,
) -> None:
    async def forgetful(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            own = fragment["metadata"]["fragment_id"]
            if int(own) != 1:
                await connection.done(own)
        await connection.kill()

    async with temporary_row() as row:
        await row.put(2)
        with pytest.RaisesGroup(TransformationLost, flatten_subgroups=True):
            await row.run(forgetful)
        (left,) = row.broker.messages(INPUT)
        assert json.loads(left.body)["metadata"]["fragment_id"] == fragment_id(1)


async def test_a_kill_that_is_not_answered_ends_the_program_in_time(autojump_clock: Clock) -> None:
    async def deaf(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            await connection.done(fragment["metadata"]["fragment_id"])
        await trio.sleep_forever()

    async with temporary_row(SIDECAR_KILL_TIMEOUT="40") as row:
        await row.put(1)
        began = trio.current_time()
        with pytest.RaisesGroup(TransformationLost, flatten_subgroups=True):
            await row.run(deaf)
        assert 40 <= trio.current_time() - began < 45


async def test_a_result_is_routed_by_its_output_channel(autojump_clock: Clock) -> None:
    async def routing(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            own = fragment["metadata"]["fragment_id"]
            await connection.result([own], own, b"x", output_channel="errors")
            await connection.done(own)
        await connection.kill()

    config = json.dumps({"queue_mapping": {"errors": "hash-errors"}})
    async with temporary_row(ITERUM_CONFIG=config) as row:
        await row.put(2)
        await row.run(routing)
        routed = [json.loads(message.body) for message in row.broker.messages("hash-errors")]
        assert [each["metadata"]["target_queue"] for each in routed] == ["hash-errors"] * 2
        assert row.outputs() == []


async def test_config_files_appear_whole_and_hold_nothing_up(autojump_clock: Clock) -> None:
    config = json.dumps({"config_files": {"model": "model.bin", "late": "late.bin"}})
    async with temporary_row(ITERUM_CONFIG=config) as row:
        bucket = row.store_root
        assert bucket.is_dir()
        from iterum_sidecar.stores.directory import DirectoryStore

        store = DirectoryStore(row.store_root)
        await store.ensure_bucket("hash-iterum-config")
        source = row.directory / "model"
        source.write_bytes(b"weights" * 1000)
        with source.open("rb") as file:
            await store.put("hash-iterum-config", "iterum_config/model.bin", file.fileno(), 7000)
        await row.put(1)
        seen: list[bytes] = []

        async def reading(connection: StepConnection) -> None:
            async for fragment in connection.fragments():
                path = Path(connection.volume, "config", "model.bin")
                for _ in range(100):
                    if path.exists():
                        break
                    await trio.sleep(0.1)
                seen.append(path.read_bytes())
                await connection.done(fragment["metadata"]["fragment_id"])
            await connection.kill()

        await row.run(reading)
        assert seen == [b"weights" * 1000]
        assert row.left_on_volume() == ["config/model.bin"]
