"""What the row tells about itself while it works: what is there, where fragments are and for how long, and why some are dead letters."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from iterum_sidecar.entries import DeadLetterKind
from iterum_sidecar.stores.port import StoreRefused, StoreUnavailable
from iterum_sidecar.telemetry.health import State
from iterum_sidecar.telemetry.stage_times import StageTimes
from iterum_sidecar.telemetry.tally import Tally
from tests.unit.row import DEAD, INPUT, FinishedOnRequest, StepConnection, copy_step, temporary_row
from tests.unit.row_with_faults import FaultyStore, finished, id_of, run_while, sidecar_with

if TYPE_CHECKING:
    from pathlib import Path

    from iterum_sidecar.sidecar import Sidecar
    from iterum_sidecar.stores.port import Admit

Clock = trio.testing.MockClock


class StoreThatGoes(FaultyStore):
    """A store that can be taken away, and given back."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.away = False

    async def fetch(self, bucket: str, key: str, file: int, *, admit: Admit | None = None) -> int:
        if self.away:
            raise StoreUnavailable("it is away", bucket=bucket)
        return await super().fetch(bucket, key, file, admit=admit)


class BarredStore(FaultyStore):
    """A store of which no object can be read, but the bucket is fine."""

    async def fetch(self, bucket: str, key: str, file: int, *, admit: Admit | None = None) -> int:
        await trio.lowlevel.checkpoint()
        raise StoreRefused("no", bucket=bucket, key=key, code="InvalidObjectState")


# -- health


async def test_a_life_from_start_to_end_in_states(autojump_clock: Clock) -> None:
    states: list[State] = []

    def note(sidecar: Sidecar) -> None:
        if not states or states[-1] != sidecar.health().state:
            states.append(sidecar.health().state)

    async with temporary_row() as row:
        store = StoreThatGoes(row.store_root)
        upstream = FinishedOnRequest()
        sidecar = sidecar_with(row, upstream, store=store)

        async def watch() -> None:
            while not sidecar.over.is_set():
                note(sidecar)
                await trio.sleep(0.01)

        note(sidecar)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sidecar.run)
            nursery.start_soon(watch)
            await trio.sleep(1)
            nursery.start_soon(row.run_step, copy_step)
            await trio.sleep(1)
            store.away = True
            await row.put(1)
            await trio.sleep(10)
            store.away = False
            await trio.sleep(10)
            upstream.finished.set()
        note(sidecar)
    # Between two looks the sockets, the broker and the store may all have come.
    assert states[0] == State("starting")
    assert states[-5:] == [
        State("waiting", "the transformation"),
        State("ready"),
        State("waiting", "the store"),
        State("ready"),
        State("draining"),
    ]


async def test_a_broker_that_is_away_is_missing_and_the_drain_is_told(
    autojump_clock: Clock,
) -> None:
    async with temporary_row() as row:
        sidecar = sidecar_with(row, FinishedOnRequest(), broker_is_away=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sidecar.run)
            await trio.sleep(1)
            assert sidecar.health().missing == ("the broker", "the transformation")
            assert sidecar.window == 0
            assert sidecar.channel_depths() == {}
            sidecar.drain()
            assert sidecar.health().state == State("draining")


# -- where fragments are, and for how long


async def test_fragments_are_told_of_where_they_are_and_for_how_long(
    autojump_clock: Clock,
) -> None:
    async def slow(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            await trio.sleep(10)
            await connection.result([id_of(fragment)], id_of(fragment), b"x")
            await connection.done(id_of(fragment))
        await connection.kill()

    async with temporary_row() as row:
        row.tally = Tally(times=StageTimes(trio.current_time))
        times = row.tally.times
        await row.put(3)
        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sidecar.run)
            nursery.start_soon(row.run_step, slow)
            await trio.sleep(5)
            stages = sorted(entry.work.stage for entry in sidecar.in_flight())
            assert stages == ["ready", "ready", "transformation"]
            assert sidecar.window == 32
            assert sidecar.connections == 1
            assert set(sidecar.channel_depths().values()) == {0}
            upstream.finished.set()
        assert times.stages["transformation"].sum == pytest.approx(30, abs=0.1)
        assert times.stages["ready"].sum == pytest.approx(10 + 20, abs=0.1)
        assert times.whole.sum == pytest.approx(10 + 20 + 30, abs=0.1)
        for stage, histogram in times.stages.items():
            assert histogram.count == 3, stage
        assert times.whole.count == row.tally.fragments == 3


async def test_each_hand_out_after_a_death_is_a_stay_of_its_own(autojump_clock: Clock) -> None:
    died: list[str] = []

    async def dies_once(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            if not died:
                died.append(id_of(fragment))
                await trio.sleep(3)
                return
            await connection.done(id_of(fragment))
        await connection.kill()

    async with temporary_row() as row:
        row.tally = Tally(times=StageTimes(trio.current_time))
        await row.put(1)
        await run_while(row.make_sidecar(finished()), row, dies_once)
        stages = row.tally.times.stages
        assert stages["transformation"].count == 2
        # It is judged a second after the death.
        assert stages["transformation"].sum == pytest.approx(4, abs=0.1)
        assert row.tally.times.whole.count == row.tally.fragments == 1


# -- dead letters by kind


async def kinds_of(
    step: object = copy_step,
    *,
    bodies: tuple[bytes, ...] = (),
    store: type[FaultyStore] = FaultyStore,
    objects: bool = True,
) -> list[str]:
    """Run one fragment, or messages, through a step that may die, and return the kinds in the dead letters' headers."""
    async with temporary_row(SIDECAR_ATTEMPTS="1") as row:
        if bodies:
            for body in bodies:
                row.broker.put(INPUT, body)
        elif objects:
            await row.put(1)
        else:
            row.describe(0, [("0.txt", "iterum_data/nowhere")])
        sidecar = sidecar_with(row, finished(), store=store(row.store_root))
        await run_while(sidecar, row, step)  # type: ignore[arg-type]
        kinds = [str(letter.headers["x-iterum-kind"]) for letter in row.broker.messages(DEAD)]
        assert sum(row.tally.dead_letters_by_kind.values()) == row.tally.dead_letters
        assert dict(row.tally.dead_letters_by_kind) == {kind: kinds.count(kind) for kind in kinds}
        return kinds


async def names_another_file(connection: StepConnection) -> None:
    async for fragment in connection.fragments():
        await connection.send_result([id_of(fragment)], [("x", "/etc/passwd")])
        await connection.done(id_of(fragment))
    await connection.kill()


async def fails(connection: StepConnection) -> None:
    async for fragment in connection.fragments():
        await connection.send({"failed": {"fragment_id": id_of(fragment), "reason": "no"}})
    await connection.kill()


async def dies(connection: StepConnection) -> None:
    async for _ in connection.fragments():
        return
    await connection.kill()


async def sends_what_cannot_be_read(connection: StepConnection) -> None:
    async for fragment in connection.fragments():
        await connection.send(["not a message"])
        await connection.outputs.aclose()
        connection.outputs = await trio.open_unix_socket(connection.volume / "out.sock")
        await connection.done(id_of(fragment))
    await connection.kill()


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (names_another_file, DeadLetterKind.RESULT_REFUSED),
        (fails, DeadLetterKind.TRANSFORMATION_FAILED),
        (dies, DeadLetterKind.TRANSFORMATION_DIED),
        (sends_what_cannot_be_read, DeadLetterKind.BREACH),
    ],
)
async def test_what_the_transformation_does_has_a_kind(
    step: object, kind: str, autojump_clock: Clock
) -> None:
    assert await kinds_of(step) == [kind]


async def test_what_is_wrong_with_the_input_has_a_kind(autojump_clock: Clock) -> None:
    assert await kinds_of(bodies=(b"not JSON",)) == [DeadLetterKind.UNREADABLE]
    assert await kinds_of(objects=False) == [DeadLetterKind.INPUT_MISSING]
    assert await kinds_of(store=BarredStore) == [DeadLetterKind.INPUT_REFUSED]


async def test_two_fragments_of_one_id_are_a_conflict(autojump_clock: Clock) -> None:
    def described(name: str) -> bytes:
        file = {"name": name, "path": "iterum_data/0.txt", "bucket": "nowhere"}
        metadata = {"fragment_id": "0" * 64, "predecessors": None, "custom": None}
        return json.dumps({"files": [file], "metadata": metadata}).encode()

    kinds = await kinds_of(bodies=(described("a"), described("b")))
    assert sorted(kinds) == [DeadLetterKind.CONFLICT, DeadLetterKind.INPUT_MISSING]
