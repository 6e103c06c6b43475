"""A process, or a machine, with too few descriptors: the row waits, goes on, and loses nothing."""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.stores.port import StoreUnavailable
from iterum_sidecar.volume import Volume
from tests.unit.row import StepConnection, temporary_row
from tests.unit.row_with_faults import FaultyStore, finished, id_of, sidecar_with
from tests.unit.row_with_little import fail_for, join_step, messages, put, run, run_beside

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from iterum_sidecar.stores.port import Admit
    from iterum_sidecar.volume import TakenFile

Clock = trio.testing.MockClock


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
async def test_no_descriptor_for_a_file_is_waited_for_with_one_line(
    number: int,
    autojump_clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    left = fail_for(monkeypatch, Volume, "create_file", number, times=100)
    async with temporary_row() as row:
        await put(row, 40, files=3)
        await run(row, FaultyStore(row.store_root), join_step)
        assert len(row.outputs()) == 40
    assert left == [0]
    (told,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert told.getMessage() == "waiting for a descriptor or memory to be free"
    assert os.strerror(number) in told.fields["reason"]  # type: ignore[attr-defined]


class Short(FaultyStore):
    """A store that cannot be asked for one object, nor be given its result, since no descriptor is free for a socket."""

    def __init__(self, root: Path, name: str, seconds: float) -> None:
        super().__init__(root)
        self._name = name
        self._seconds = seconds
        self._since: float | None = None

    def _look(self, key: str) -> None:
        if not key.endswith(self._name):
            return
        now = trio.current_time()
        self._since = now if self._since is None else self._since
        if now - self._since < self._seconds:
            raise StoreUnavailable("Too many open files", key=key, code="EMFILE")

    async def fetch(self, bucket: str, key: str, file: int, *, admit: Admit | None = None) -> int:
        self._look(key)
        return await super().fetch(bucket, key, file, admit=admit)

    async def put(self, bucket: str, key: str, file: int, size: int) -> None:
        self._look(key)
        await super().put(bucket, key, file, size)


@pytest.mark.parametrize("name", ["7-0", "/result-7-0"], ids=["fetch", "put"])
async def test_no_descriptor_for_the_store_is_neither_its_fault_nor_the_fragments(
    name: str, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is waited for however long it lasts, while other objects are read and written."""

    async def slow(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            (file,) = fragment["files"]
            await trio.sleep(100)
            await connection.result([id_of(fragment)], f"result-{file['name']}", b"x")
            await connection.done(id_of(fragment))
        await connection.kill()

    async with temporary_row() as row:
        await put(row, 20)
        store = Short(row.store_root, name, 500)
        sidecar = sidecar_with(row, finished(), store=store, service_timeout=60)
        await run_beside(sidecar, row, slow)
        assert len(row.outputs()) == 20
    told = messages(caplog, logging.WARNING)
    assert told.count("waiting for a descriptor or memory to be free") > 1
    assert not any("store" in line for line in told)


class Slow(FaultyStore):
    """A store that takes minutes for each result."""

    async def put(self, bucket: str, key: str, file: int, size: int) -> None:
        await trio.sleep(90)
        await super().put(bucket, key, file, size)


async def test_no_descriptor_for_a_result_is_waited_for_while_others_hold_some(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The store may be away for hours: what is stored by then gives its descriptor back."""
    sound = Volume.take

    def take(
        volume: Volume,
        paths: Iterable[str],
        taken: list[TakenFile],
        allowed: Collection[str] = (),
    ) -> None:
        if volume.holds_results:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        sound(volume, paths, taken, allowed)

    monkeypatch.setattr(Volume, "take", take)
    async with temporary_row() as row:
        await put(row, 5)
        await run(row, Slow(row.store_root), join_step)
        assert len(row.outputs()) == 5
    # One line a minute, for more than the minute after which one that waits for nobody would have been the end.
    told = messages(caplog, logging.WARNING).count("waiting for a descriptor or memory to be free")
    assert 2 < told <= 7


async def test_a_result_that_never_finds_a_descriptor_ends_it(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_for(monkeypatch, Volume, "take", errno.EMFILE, times=10**9)
    async with temporary_row() as row:
        await put(row, 1)
        began = trio.current_time()
        with pytest.RaisesGroup(VolumeUnusable, flatten_subgroups=True):
            await run(row, FaultyStore(row.store_root), join_step)
        assert 60 <= trio.current_time() - began < 70
