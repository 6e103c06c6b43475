"""What goes beyond the contract on the sockets: a fragment that is failed with a reason, and a step that says how many it gathers."""

from __future__ import annotations

import json
import logging

import pytest
import trio
import trio.testing

from iterum_sidecar.error_groups import leaves_of
from iterum_sidecar.exit_codes import PrefetchTooSmall
from iterum_sidecar.messages import (
    MOST_GATHERED,
    Failed,
    Gathers,
    MessageRefused,
    decode_transformation_message,
)
from iterum_sidecar.roster import Roster
from tests.unit.row import (
    DEAD,
    INPUT,
    FinishedOnRequest,
    StepConnection,
    fragment_id,
    temporary_row,
)
from tests.unit.row_with_faults import id_of, run_while

Clock = trio.testing.MockClock


async def test_each_fragment_says_what_the_sidecar_accepts(autojump_clock: Clock) -> None:
    accepted: list[object] = []

    async def looking(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            accepted.append(fragment["accepts"])
            await connection.done(id_of(fragment))
        await connection.kill()

    async with temporary_row() as row:
        await row.put(2)
        await row.run(looking)
    assert accepted == [["failed", "gathers"]] * 2


async def test_a_failed_fragment_is_a_dead_letter_with_the_reason_and_the_rest_goes_on(
    autojump_clock: Clock,
) -> None:
    async def failing(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            own = id_of(fragment)
            if own == fragment_id(1):
                await connection.send({"failed": {"fragment_id": own, "reason": "no such colour"}})
            else:
                await connection.result([own], f"{own}.txt", b"x")
                await connection.done(own)
        await connection.kill()

    async with temporary_row() as row:
        await row.put(3)
        await row.run(failing)
        (dead,) = row.broker.messages(DEAD)
        assert json.loads(dead.body)["metadata"]["fragment_id"] == fragment_id(1)
        assert dead.headers["x-iterum-reason"] == "no such colour"
        assert sorted(row.contents()) == [f"{fragment_id(number)}.txt" for number in (0, 2)]
        assert row.left_on_volume() == []
        assert (row.tally.fragments, row.tally.dead_letters) == (2, 1)


async def test_a_fragment_that_is_not_out_cannot_be_failed(autojump_clock: Clock) -> None:
    async def failing_another(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            await connection.send({"failed": {"fragment_id": fragment_id(9), "reason": "mistaken"}})
            await connection.done(id_of(fragment))
        await connection.kill()

    async with temporary_row() as row:
        await row.put(2)
        await row.run(failing_another)
        assert row.broker.messages(DEAD) == []
        assert row.tally.fragments == 2


async def test_a_step_that_says_how_many_it_gathers_waits_for_no_starvation(
    autojump_clock: Clock,
) -> None:
    count = 100
    held: list[float] = []

    async def gathering(connection: StepConnection) -> None:
        batch: list[str] = []
        async for fragment in connection.fragments():
            if not batch:
                await connection.send({"gathers": {"fragments": count}})
            batch.append(id_of(fragment))
            held.append(trio.current_time())
        await connection.result(batch, "all.txt", b"x")
        for own in batch:
            await connection.done(own)
        await connection.kill()

    async with temporary_row() as row:
        await row.put(count)
        await row.run(gathering)
        assert row.contents() == {"all.txt": b"x"}
        assert len(held) == count
        # All were there without a second's starvation; only then the end had to be found out.
        assert held[-1] - held[0] < 1


async def test_a_window_that_was_set_and_is_less_than_what_is_gathered_is_told_at_once(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("iterum_sidecar"), "propagate", True)

    async def gathering(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            await connection.send({"gathers": {"fragments": 5}})
            await connection.done(id_of(fragment))
        await connection.kill()

    async with temporary_row(MQ_PREFETCH_COUNT="2") as row:
        await row.put(1)
        await row.run(gathering)
    (told,) = [each for each in caplog.records if "needs a larger MQ_PREFETCH_COUNT" in each.msg]
    assert told.__dict__["fields"] == {"window": 2, "needed_at_least": 5}


async def gather_ten(connection: StepConnection) -> None:
    batch: list[str] = []
    async for fragment in connection.fragments():
        if not batch:
            await connection.send({"gathers": {"fragments": 10}})
        batch.append(id_of(fragment))
    for own in batch:
        await connection.done(own)
    await connection.kill()


async def test_a_batch_that_never_fits_ends_the_program_where_that_is_asked_for(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("iterum_sidecar"), "propagate", True)
    async with temporary_row(MQ_PREFETCH_COUNT="4") as row:
        await row.put(5)
        sidecar = row.make_sidecar(FinishedOnRequest(), standstill_after=3)
        with pytest.RaisesGroup(PrefetchTooSmall, flatten_subgroups=True) as raised:
            await run_while(sidecar, row, gather_ten)
    (error,) = leaves_of(raised.value, PrefetchTooSmall)
    assert (error.gathered, error.window) == (10, 4)
    assert "MQ_PREFETCH_COUNT is 4: set it to 10 or more" in str(error)
    assert not [each for each in caplog.records if "needs a larger" in each.msg], "told once"


async def test_what_fits_the_prefetch_is_gathered_though_a_batch_would_not(
    autojump_clock: Clock,
) -> None:
    async with temporary_row(MQ_PREFETCH_COUNT="4") as row:
        await row.put(4)
        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream, standstill_after=3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, gather_ten)
            nursery.start_soon(sidecar.run)
            await trio.sleep(60)
            upstream.finished.set()
        assert row.tally.fragments == 4


async def test_a_batch_that_never_fits_waits_in_a_pod(autojump_clock: Clock) -> None:
    """Another pod of the step, which comes late, may take what waits."""
    async with temporary_row(MQ_PREFETCH_COUNT="4") as row:
        await row.put(5)
        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, gather_ten)
            nursery.start_soon(sidecar.run)
            await trio.sleep(600)
            assert row.broker.waiting(INPUT) == 1
            async with row.broker.consume(INPUT, 1) as another:
                (delivery,) = await another.receive()
                row.broker.acknowledge(delivery)
                upstream.finished.set()
        assert row.tally.fragments == 4


def test_the_two_messages_are_read() -> None:
    own = "a" * 64
    failed = decode_transformation_message(
        json.dumps({"failed": {"fragment_id": own, "reason": "why"}}).encode()
    )
    assert failed == Failed(own, "why")
    assert decode_transformation_message(b'{"gathers":{"fragments":3}}') == Gathers(3)


@pytest.mark.parametrize(
    "frame",
    [
        b'{"failed":{"fragment_id":"short","reason":"x"}}',
        b'{"failed":{"reason":"x"}}',
        b'{"failed":null}',
        b'{"gathers":{"fragments":0}}',
        b'{"gathers":{"fragments":"many"}}',
        b'{"gathers":true}',
    ],
)
def test_one_that_cannot_be_read_is_a_breach(frame: bytes) -> None:
    with pytest.raises(MessageRefused):
        decode_transformation_message(frame)


def test_what_peers_send_means_what_it_meant() -> None:
    own = "a" * 64
    done = decode_transformation_message(json.dumps({"fragment_id": own, "failed": "x"}).encode())
    assert type(done).__name__ == "Done"
    assert (
        type(decode_transformation_message(b'{"status":"complete","gathers":1}')).__name__ == "Kill"
    )


def test_a_depth_that_was_asked_for_has_a_limit() -> None:
    roster: Roster[object, object] = Roster(1)
    seat = roster.sit()
    roster.gather(10**9)
    assert seat.depth == MOST_GATHERED
    roster.gather(2)
    roster.deepen(seat)
    assert seat.depth == MOST_GATHERED
    assert roster.sit().depth == MOST_GATHERED


async def test_a_step_that_connects_when_nothing_is_left_is_told_so_at_once(
    autojump_clock: Clock,
) -> None:
    async def only_kill(connection: StepConnection) -> None:
        async for _ in connection.fragments():
            raise AssertionError("there is nothing to hand out")
        await connection.kill()

    async with temporary_row() as row:
        upstream = FinishedOnRequest()
        upstream.finished.set()
        sidecar = row.make_sidecar(upstream)
        connected = 0.0

        async def late(connection_at: float) -> None:
            nonlocal connected
            await trio.sleep(connection_at)
            connected = trio.current_time()
            await row.run_step(only_kill)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(late, 10.05)
            await sidecar.run()
        assert trio.current_time() - connected < 0.04
