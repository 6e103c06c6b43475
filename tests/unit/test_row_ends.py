"""How a life of the row ends: the kill message in every case, and what comes after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing

from iterum_sidecar.exit_codes import (
    DrainDeadlinePassed,
    ServiceLost,
)
from iterum_sidecar.stores.port import StoreUnavailable
from tests.unit.row import (
    INPUT,
    FinishedOnRequest,
    Row,
    StepConnection,
    copy_step,
    temporary_row,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from iterum_sidecar.sidecar import Sidecar

from tests.unit.row_with_faults import FaultyStore, finished, id_of, sidecar_with

Clock = trio.testing.MockClock

KILL = b'{"status":"complete"}'


class DownStore(FaultyStore):
    async def ensure_bucket(self, bucket: str) -> None:
        await trio.lowlevel.checkpoint()
        raise StoreUnavailable("it is down", bucket=bucket)


async def heard_before_the_end(row: Row, sidecar: Sidecar, end: Callable[[], None] | None) -> bytes:
    """Connect, let the program be ended after 2 s, and return all that the input connection was sent."""
    heard = b""
    connection: list[StepConnection] = []

    async def listen() -> None:
        nonlocal heard
        connection.append(await row.connect())
        try:
            while data := await connection[0].inputs.receive_some():
                heard += data
        except trio.BrokenResourceError:
            pass

    async def end_later() -> None:
        await trio.sleep(2)
        if end is not None:
            end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        nursery.start_soon(end_later)
        try:
            await sidecar.run()
        except* (ServiceLost, DrainDeadlinePassed):
            pass
    await connection[0].inputs.aclose()
    await connection[0].outputs.aclose()
    return heard


async def test_kill_is_said_when_the_drain_deadline_passes(autojump_clock: Clock) -> None:
    """Here while the store is away, so that a result cannot be stored."""
    async with temporary_row(SIDECAR_DRAIN_SECONDS="0.5") as row:
        sidecar = sidecar_with(row, FinishedOnRequest())

        def drain() -> None:
            row.describe(1, [("0.txt", "iterum_data/0.txt")])

            async def soon() -> None:
                await trio.sleep(0.1)
                sidecar.drain()

            trio.lowlevel.spawn_system_task(soon)

        await row.put_object("iterum_data/0.txt", b"x")
        assert (await heard_before_the_end(row, sidecar, drain)).endswith(KILL)


async def test_kill_is_said_when_the_program_is_told_to_stop_before_the_broker_is_there(
    autojump_clock: Clock,
) -> None:
    """Ten times, because which task is cancelled first is Trio's to choose."""
    for _ in range(10):
        async with temporary_row() as row:
            sidecar = sidecar_with(row, FinishedOnRequest(), broker_is_away=True)
            assert (await heard_before_the_end(row, sidecar, sidecar.drain)).endswith(KILL)


async def test_kill_is_said_when_the_program_is_interrupted_twice(autojump_clock: Clock) -> None:
    async with temporary_row() as row:
        sidecar = sidecar_with(row, FinishedOnRequest())
        assert (await heard_before_the_end(row, sidecar, sidecar.abort)).endswith(KILL)


async def test_kill_is_said_when_the_store_does_not_come_in_time(autojump_clock: Clock) -> None:
    async with temporary_row() as row:
        sidecar = sidecar_with(
            row, FinishedOnRequest(), store=DownStore(row.store_root), service_timeout=3
        )
        assert (await heard_before_the_end(row, sidecar, None)).endswith(KILL)


# -- results after the kill


async def test_a_step_may_close_its_input_at_the_kill_and_send_its_last_batch_then(
    autojump_clock: Clock,
) -> None:
    async def gathering(connection: StepConnection) -> None:
        batch = [id_of(fragment) async for fragment in connection.fragments()]
        await connection.inputs.aclose()
        await trio.sleep(0.5)
        await connection.result(batch, "batch", b"x")
        for own in batch:
            await connection.done(own)
        await connection.kill()

    async with temporary_row() as row:
        await row.put(5)
        await row.run(gathering)
        (output,) = row.outputs()
        assert len(output["metadata"]["predecessors"]) == 5
        assert row.broker.messages(INPUT) == []


async def test_a_worker_that_connects_its_output_late_is_waited_for(autojump_clock: Clock) -> None:
    async def prompt(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            await connection.result([id_of(fragment)], id_of(fragment), b"x")
            await connection.done(id_of(fragment))
        await connection.kill()

    async with temporary_row() as row:

        async def late() -> None:
            await trio.sleep(1)
            async with await trio.open_unix_socket(row.volume / "in.sock") as inputs:
                connection = StepConnection(row.volume, inputs, inputs)
                fragment = await connection.__anext__()
                await trio.sleep(5)
                async with await trio.open_unix_socket(row.volume / "out.sock") as outputs:
                    connection.outputs = outputs
                    await connection.result([id_of(fragment)], id_of(fragment), b"x")
                    await connection.done(id_of(fragment))
                    await connection.kill()

        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, prompt)
            nursery.start_soon(late)
            nursery.start_soon(sidecar.run)
            await trio.sleep(2)
            await row.put(2)
            upstream.finished.set()
        assert len(row.outputs()) == 2


class _CallAtStep(trio.abc.Instrument):
    """Calls something when so many task steps have been taken."""

    def __init__(self, call: Callable[[], None], steps: int) -> None:
        self._call = call
        self._left = steps

    @property
    def reached(self) -> bool:
        return self._left <= 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._call()


async def test_a_drain_after_a_breach_settles_every_fragment_once(autojump_clock: Clock) -> None:
    """Begun at every step in turn."""
    steps = 0
    reached = True
    while reached:
        steps += 1
        async with temporary_row() as row:
            broken: list[str] = []

            async def breaking(connection: StepConnection, broken: list[str] = broken) -> None:
                async for fragment in connection.fragments():
                    own = id_of(fragment)
                    if not broken:
                        broken.append(own)
                        await connection.send(["not a message"])
                        await connection.outputs.aclose()
                        connection.outputs = await trio.open_unix_socket(
                            connection.volume / "out.sock"
                        )
                    await connection.done(own)
                await connection.kill()

            await row.put(2)
            sidecar = row.make_sidecar(finished())
            instrument = _CallAtStep(sidecar.drain, steps)
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(row.run_step, breaking)
                trio.lowlevel.add_instrument(instrument)
                try:
                    await sidecar.run()
                finally:
                    trio.lowlevel.remove_instrument(instrument)
                nursery.cancel_scope.cancel()
            reached = instrument.reached
            assert len(row.broker.messages(INPUT)) <= 2


async def test_an_answer_that_comes_over_a_connection_of_its_own_is_waited_for(
    autojump_clock: Clock,
) -> None:
    """As pyterum's does whose output still was one to the sidecar before this: it notices when it sends, and comes 5 s later."""

    async def late(connection: StepConnection) -> None:
        connection.outputs.socket.close()
        async for _ in connection.fragments():
            raise AssertionError("the other one has them all")
        await trio.sleep(5)
        connection.outputs = await trio.open_unix_socket(row.volume / "out.sock")
        await connection.kill()
        answered.append(connection)

    async def first(connection: StepConnection) -> None:
        await copy_step(connection)
        await trio.sleep_forever()

    answered: list[StepConnection] = []
    async with temporary_row() as row:
        before = trio.current_time()
        await row.run(first, late)
        assert len(answered) == 1
        assert trio.current_time() - before < 10


async def test_an_answer_that_never_comes_is_waited_for_no_longer_than_a_moment(
    autojump_clock: Clock,
) -> None:
    """A step may read two inputs and have one output."""

    async def silent(connection: StepConnection) -> None:
        connection.outputs.socket.close()
        async for _ in connection.fragments():
            raise AssertionError("there are none")
        await trio.sleep_forever()

    async def ends(connection: StepConnection) -> None:
        connection.outputs.socket.close()
        async for _ in connection.fragments():
            raise AssertionError("there are none")

    for other, least, most in ((silent, 10, 15), (ends, 0, 5)):
        async with temporary_row() as row:
            before = trio.current_time()
            await row.run(copy_step, other)
            assert least <= trio.current_time() - before < most
