"""The row of `row.py` where something is short, and fragments of many files for it."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.volume import Volume
from tests.unit.row_with_faults import FaultyStore, finished, id_of, sidecar_with

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    import pytest

    from iterum_sidecar.sidecar import Sidecar
    from iterum_sidecar.stores.port import Admit, Store
    from tests.unit.row import Row, StepConnection

#: Bytes of a file.
SIZE = 1000


async def put(row: Row, fragments: int, *, files: int = 1, start: int = 0) -> None:
    """Put fragments of so many files."""
    for number in range(start, start + fragments):
        names = [f"{number}-{each}" for each in range(files)]
        for name in names:
            await row.put_object(name, name.encode().ljust(SIZE, b"."))
        row.describe(number, [(name, name) for name in names])


async def join_step(connection: StepConnection) -> None:
    """A transformation that makes of each fragment one result with the contents of all its files."""
    async for fragment in connection.fragments():
        content = b"".join(Path(file["path"]).read_bytes() for file in fragment["files"])
        await connection.result([id_of(fragment)], id_of(fragment), content)
        await connection.done(id_of(fragment))
    await connection.kill()


class Watched(FaultyStore):
    """A store that looks, whenever an object has been fetched, at how many bytes of input are on the volume."""

    def __init__(self, row: Row) -> None:
        super().__init__(row.store_root)
        self._fragments = row.volume / ".iterum-sidecar" / "fragments"
        self.most = 0

    async def fetch(self, bucket: str, key: str, file: int, *, admit: Admit | None = None) -> int:
        size = await super().fetch(bucket, key, file, admit=admit)
        found = sum(path.stat().st_size for path in self._fragments.rglob("*") if path.is_file())
        self.most = max(self.most, found)
        return size


class Disk:
    """A disk with so many bytes, as far as the input files on it are concerned; it stands in for the volume's own."""

    def __init__(self, row: Row, monkeypatch: pytest.MonkeyPatch, *, room: int) -> None:
        self.room = room
        self.size = 10**12
        self.fragments = row.volume / ".iterum-sidecar" / "fragments"
        monkeypatch.setattr(Volume, "available", lambda _: self.free)
        monkeypatch.setattr(Volume, "may_hold", lambda _, size: size <= self.free)
        monkeypatch.setattr(Volume, "capacity", lambda _: self.size)

    @property
    def used(self) -> int:
        return sum(path.stat().st_size for path in self.fragments.rglob("*") if path.is_file())

    @property
    def free(self) -> int:
        return self.room - self.used

    def store(self, row: Row) -> OnDisk:
        return OnDisk(row, self)


class OnDisk(FaultyStore):
    """A store that writes as the real one does, piece after piece, until the disk is full."""

    def __init__(self, row: Row, disk: Disk) -> None:
        super().__init__(row.store_root)
        self._row = row
        self._disk = disk
        self.begun = 0
        """How many objects were let onto the volume."""

    async def fetch(self, bucket: str, key: str, file: int, *, admit: Admit | None = None) -> int:
        await trio.lowlevel.checkpoint()
        content = self._row.object(bucket, key)
        if admit is not None:
            admit(len(content))
        self.begun += 1
        free = self._disk.free
        os.write(file, content[: max(0, free)])
        if len(content) > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(content)


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


async def run(row: Row, store: Store, *steps: Callable[[StepConnection], Any]) -> None:
    sidecar = sidecar_with(row, finished(), store=store)
    await run_beside(sidecar, row, *steps)


async def run_beside(
    sidecar: Sidecar, row: Row, *steps: Callable[[StepConnection], Any], seconds: float = 3600
) -> None:
    with trio.fail_after(seconds):
        async with trio.open_nursery() as nursery:
            for step in steps:
                nursery.start_soon(row.run_step, step)
            await sidecar.run()
            nursery.cancel_scope.cancel()


def fail_for(
    monkeypatch: pytest.MonkeyPatch, kind: type, method: str, number: int, *, times: int
) -> list[int]:
    """Let a method fail so many times; returns how often it has still to."""
    sound = getattr(kind, method)
    left = [times]

    def fail(*arguments: object) -> object:
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return sound(*arguments)

    monkeypatch.setattr(kind, method, fail)
    return left
