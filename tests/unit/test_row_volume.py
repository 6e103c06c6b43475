"""A volume with too little room, by its budget or by its disk: the row waits, goes on, and loses nothing."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import tempfile
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from iterum_sidecar.error_groups import leaves_of
from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.stores.directory import DirectoryStore
from iterum_sidecar.volume import Volume
from tests.unit.row import INPUT, FinishedOnRequest, StepConnection, copy_step, temporary_row
from tests.unit.row_with_faults import FaultyStore, finished, id_of, sidecar_with
from tests.unit.row_with_little import (
    SIZE,
    Disk,
    Watched,
    fail_for,
    join_step,
    messages,
    put,
    run,
    run_beside,
)

if TYPE_CHECKING:
    from iterum_sidecar.stores.port import Admit

Clock = trio.testing.MockClock


# -- the budget


async def test_no_more_is_on_the_volume_than_the_budget_says(autojump_clock: Clock) -> None:
    async with temporary_row(SIDECAR_VOLUME_BUDGET="3500") as row:
        await put(row, 20)
        store = Watched(row)
        await run(row, store, join_step)
        assert 0 < store.most <= 3500
        assert len(row.outputs()) == 20
        assert row.left_on_volume() == []


async def test_it_is_told_once_and_names_the_setting(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with temporary_row(SIDECAR_VOLUME_BUDGET="2k") as row:
        await put(row, 20)
        await run(row, FaultyStore(row.store_root), join_step)
    told = [line for line in messages(caplog) if "SIDECAR_VOLUME_BUDGET" in line]
    assert len(told) == 1


@pytest.mark.parametrize("budget", ["1", "0"], ids=["less than one fragment", "none"])
async def test_any_budget_brings_all_through(budget: str, autojump_clock: Clock) -> None:
    async with temporary_row(SIDECAR_VOLUME_BUDGET=budget) as row:
        await put(row, 20, files=3)
        await run(row, Watched(row), join_step)
        assert len(row.outputs()) == 20


async def test_one_that_is_larger_than_the_budget_goes_through_alone(autojump_clock: Clock) -> None:
    async with temporary_row(SIDECAR_VOLUME_BUDGET="3000") as row:
        await put(row, 5)
        await row.put_object("large", b"L" * 10_000)
        row.describe(5, [("large", "large")])
        store = Watched(row)
        await run(row, store, join_step)
        assert store.most == 10_000
        assert len(row.outputs()) == 6


async def test_fragments_of_many_files_do_not_wait_for_each_other(autojump_clock: Clock) -> None:
    """Sixteen are downloaded at a time, and none of them fits beside half of another."""
    async with temporary_row(SIDECAR_VOLUME_BUDGET="8k") as row:
        await put(row, 20, files=12)
        store = Watched(row)
        await run(row, store, join_step)
        assert len(row.outputs()) == 20
        assert store.most <= 8000 + 12_000


async def test_a_step_that_gathers_more_than_the_budget_holds_is_given_its_batch(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    batches: list[int] = []

    async def gather(connection: StepConnection) -> None:
        batch: list[str] = []
        async for fragment in connection.fragments():
            batch.append(id_of(fragment))
            if len(batch) == 24:
                for own in batch:
                    await connection.result([own], own, b"x")
                    await connection.done(own)
                batches.append(len(batch))
                batch.clear()
        await connection.kill()

    async with temporary_row(SIDECAR_VOLUME_BUDGET="5k") as row:
        await put(row, 48)
        began = trio.current_time()
        await run(row, Watched(row), gather)
        # The second batch has what the first has taught.
        assert trio.current_time() - began < 20
        assert batches == [24, 24]
        assert len(row.outputs()) == 48
    assert any("budget grows" in line for line in messages(caplog))
    assert not any("MQ_PREFETCH_COUNT" in line for line in messages(caplog))


async def test_the_last_batch_that_is_not_whole_comes_out_all_the_same(
    autojump_clock: Clock,
) -> None:
    async def gather(connection: StepConnection) -> None:
        batch = [id_of(fragment) async for fragment in connection.fragments()]
        await connection.result(batch, batch[0], b"x")
        for own in batch:
            await connection.done(own)
        await connection.kill()

    async with temporary_row(SIDECAR_VOLUME_BUDGET="5k") as row:
        await put(row, 48)
        await run(row, Watched(row), gather)
        assert row.tally.fragments == 48


async def test_a_drain_gives_back_what_waits_for_room(autojump_clock: Clock) -> None:
    async with temporary_row(SIDECAR_VOLUME_BUDGET="2k") as row:
        await put(row, 10)
        held = trio.Event()

        async def slow(connection: StepConnection) -> None:
            async for fragment in connection.fragments():
                held.set()
                await trio.sleep(5)
                await connection.result([id_of(fragment)], id_of(fragment), b"x")
                await connection.done(id_of(fragment))
            await connection.kill()

        sidecar = sidecar_with(row, FinishedOnRequest(), store=FaultyStore(row.store_root))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_beside, sidecar, row, slow)
            await held.wait()
            await trio.sleep(1)
            assert sidecar.volume_held == sidecar.volume_budget == 2000
            sidecar.drain()
            await sidecar.over.wait()
        assert sidecar.volume_held == 0
        assert row.tally.fragments + len(row.broker.messages(INPUT)) == 10
        assert row.left_on_volume() == []


# -- a full disk


async def test_a_full_disk_is_waited_for_with_one_line_and_nothing_half_written_is_handed_on(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with temporary_row(SIDECAR_VOLUME_BUDGET="0") as row:
        await put(row, 40, files=2)
        disk = Disk(row, monkeypatch, room=700)
        sidecar = sidecar_with(row, finished(), store=disk.store(row))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_beside, sidecar, row, join_step)
            await trio.sleep(200)
            assert row.outputs() == []
            disk.room = 100_000
        assert len(row.outputs()) == 40
        for name, content in row.contents().items():
            halves = [f"{int(name)}-{each}".encode().ljust(SIZE, b".") for each in (0, 1)]
            assert content == b"".join(halves)
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert {record.getMessage() for record in told} == {"waiting for room on the volume"}
    assert len(told) == 4  # at once, and at each minute
    fields = told[0].fields  # type: ignore[attr-defined]
    assert "fragments/" in fields["path"]
    assert "No space left on device" in fields["reason"]
    assert "make room" in fields["reason"]


async def test_a_disk_that_stays_full_ends_it(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with temporary_row() as row:
        await put(row, 3)
        disk = Disk(row, monkeypatch, room=700)
        began = trio.current_time()
        with pytest.RaisesGroup(VolumeUnusable, flatten_subgroups=True) as caught:
            await run(row, disk.store(row), copy_step)
        assert 300 <= trio.current_time() - began < 320
        (error,) = leaves_of(caught.value, VolumeUnusable)
        assert re.search(r"full for 30\d s: .*fragments/.*No space left.*make room", str(error))
        assert len(row.broker.messages(INPUT)) == 3


async def test_half_downloaded_fragments_that_fill_the_disk_give_way_to_the_eldest(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No budget is set, and sixteen begin at once, of which the disk holds four."""
    async with temporary_row(SIDECAR_VOLUME_BUDGET="0") as row:
        await put(row, 20, files=6)
        store = Disk(row, monkeypatch, room=25_000).store(row)
        began = trio.current_time()
        await run(row, store, join_step)
        assert trio.current_time() - began < 120
        assert len(row.outputs()) == 20
        assert row.left_on_volume() == []
        # What gives way is fetched again, but not again and again.
        assert store.begun < 2 * 20 * 6


async def test_a_slow_step_is_waited_for_however_long_its_files_fill_the_disk(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room comes with the next done, which takes longer than a full disk is waited for."""

    async def slow(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            await trio.sleep(1000)
            await connection.result([id_of(fragment)], id_of(fragment), b"x")
            await connection.done(id_of(fragment))
        await connection.kill()

    async with temporary_row(SIDECAR_VOLUME_BUDGET="0", SIDECAR_KILL_TIMEOUT="5000") as row:
        disk = Disk(row, monkeypatch, room=1500)
        upstream = FinishedOnRequest()
        sidecar = sidecar_with(row, upstream, store=disk.store(row))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(run_beside, sidecar, row, slow, seconds=10_000))
            for number in range(4):
                await put(row, 1, start=number)
                await trio.sleep(1)
            upstream.finished.set()
        assert len(row.outputs()) == 4


async def test_a_batch_that_the_disk_does_not_hold_ends_it(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step waits for more, and there will never be room for it."""

    async def gather(connection: StepConnection) -> None:
        async for _ in connection.fragments():
            pass

    async with temporary_row() as row:
        await put(row, 30)
        disk = Disk(row, monkeypatch, room=10_500)
        with pytest.RaisesGroup(VolumeUnusable, flatten_subgroups=True):
            await run(row, disk.store(row), gather)
        assert len(row.broker.messages(INPUT)) == 30


@pytest.mark.parametrize("budget", ["0", "5000"])
async def test_what_is_larger_than_the_whole_volume_is_a_dead_letter(
    budget: str, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with temporary_row(SIDECAR_VOLUME_BUDGET=budget) as row:
        await put(row, 5)
        await row.put_object("large", b"L" * 20_000)
        row.describe(5, [("large", "large")])
        row.describe(6, [("0-0", "0-0"), ("large", "large")])
        row.describe(7, [(f"many-{each}", "0-0") for each in range(25)])
        disk = Disk(row, monkeypatch, room=19_999)
        disk.size = 19_999
        await run(row, disk.store(row), join_step)
        assert len(row.outputs()) == 5
        dead = row.broker.messages("in-dead-letter")
        assert [letter.headers["x-iterum-kind"] for letter in dead] == ["input_refused"] * 3
        for letter in dead:
            assert "the whole volume has 19,999" in str(letter.headers["x-iterum-reason"])


@pytest.mark.parametrize("method", ["make_workspace", "create_file"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_no_room_for_a_name_is_waited_for_too(
    method: str, number: int, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system may have no inode left, or a directory no room for an entry."""
    refuse = fail_for(monkeypatch, Volume, method, number, times=50)
    async with temporary_row() as row:
        await put(row, 20, files=2)
        await run(row, FaultyStore(row.store_root), join_step)
        assert len(row.outputs()) == 20
    assert refuse == [0]


async def test_a_file_that_is_larger_than_any_may_be_is_a_dead_letter(
    autojump_clock: Clock,
) -> None:
    class Large(FaultyStore):
        async def fetch(
            self, bucket: str, key: str, file: int, *, admit: Admit | None = None
        ) -> int:
            if key == "0-0":
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            return await super().fetch(bucket, key, file, admit=admit)

    async with temporary_row() as row:
        await put(row, 2)
        await run(row, Large(row.store_root), join_step)
        assert len(row.outputs()) == 1
        (dead,) = row.broker.messages("in-dead-letter")
        assert dead.headers["x-iterum-kind"] == "input_refused"


async def test_a_volume_that_cannot_be_written_to_ends_it_at_once(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_for(monkeypatch, Volume, "create_file", errno.EROFS, times=1)
    async with temporary_row() as row:
        await put(row, 1)
        with pytest.RaisesGroup(VolumeUnusable, flatten_subgroups=True):
            await run(row, FaultyStore(row.store_root), join_step)


async def test_a_config_file_waits_for_room_too_and_holds_nothing_up(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(FaultyStore):
        async def fetch(
            self, bucket: str, key: str, file: int, *, admit: Admit | None = None
        ) -> int:
            if bucket == "hash-iterum-config" and trio.current_time() - began < 100:
                os.write(file, b"half")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return await super().fetch(bucket, key, file, admit=admit)

    config = json.dumps({"config_files": {"model": "model.bin"}})
    async with temporary_row(ITERUM_CONFIG=config) as row:
        store = DirectoryStore(row.store_root)
        await store.ensure_bucket("hash-iterum-config")
        with tempfile.TemporaryFile(dir=row.directory, buffering=0) as file:
            file.write(b"weights")
            await store.put("hash-iterum-config", "iterum_config/model.bin", file.fileno(), 7)
        await put(row, 3)
        began = trio.current_time()
        model = row.volume / "config" / "model.bin"

        async def patient(connection: StepConnection) -> None:
            async for fragment in connection.fragments():
                assert not model.exists()
                await connection.done(id_of(fragment))
            while not model.exists():  # noqa: ASYNC110 - another process could do no better
                await trio.sleep(1)
            await connection.kill()

        await run(row, Full(row.store_root), patient)
        assert model.read_bytes() == b"weights"
        assert row.tally.fragments == 3
