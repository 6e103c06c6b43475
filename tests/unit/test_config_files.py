"""Config files beside a transformation that can write to their directory too."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.config_files import fetch_config_files
from iterum_sidecar.stores.directory import DirectoryStore
from iterum_sidecar.stores.port import StoreUnavailable
from iterum_sidecar.volume import Volume
from tests.unit.row_with_faults import FaultyStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio.testing import MockClock

    from iterum_sidecar.stores.port import Admit, Store


@pytest.fixture
def beside() -> Iterator[Path]:
    """A directory on tmpfs that holds the volume `v`, and a file that is nobody's business."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        path = Path(directory)
        (path / "secret").write_text("secret")
        (path / "v" / "config").mkdir(parents=True)
        yield path


async def fetch(beside: Path, store: Store | None = None) -> None:
    store = store or DirectoryStore(beside / "objects")
    await store.ensure_bucket("bucket")
    with (beside / "model").open("w+b") as file:
        file.write(b"weights")
        file.flush()
        await store.put("bucket", "iterum_config/model.bin", file.fileno(), 7)
    with Volume(str(beside / "v")) as volume, trio.fail_after(1020):
        await fetch_config_files(
            {"model": "model.bin"}, store=store, bucket="bucket", volume=volume, directory="config"
        )


class AwayStore(FaultyStore):
    """A store that is away until a time, by Trio's clock."""

    away_until = 0.0

    async def fetch(self, bucket: str, key: str, file: int, *, admit: Admit | None = None) -> int:
        await trio.lowlevel.checkpoint()
        if trio.current_time() < self.away_until:
            raise StoreUnavailable("connection refused", bucket=bucket, key=key)
        return await super().fetch(bucket, key, file, admit=admit)


async def test_after_the_stores_return_a_file_is_there_within_5_seconds(
    beside: Path, autojump_clock: MockClock
) -> None:
    store = AwayStore(beside / "objects")
    store.away_until = trio.current_time() + 1000
    await fetch(beside, store)
    assert 0 <= trio.current_time() - store.away_until <= 5


@pytest.mark.parametrize("what", ["fifo", "symlink", "second name", "directory", "half a file"])
async def test_whatever_is_in_the_place_of_the_part_file_is_not_written_to(
    beside: Path, what: str
) -> None:
    config = beside / "v" / "config"
    part, other = config / ".model.bin.partial", config / "other"
    other.write_text("other")
    if what == "fifo":
        os.mkfifo(part)  # to open it for writing waits until somebody reads
    elif what == "symlink":
        part.symlink_to(beside / "secret")
    elif what == "second name":
        part.hardlink_to(other)
    elif what == "directory":
        (part / "deep").mkdir(parents=True)
    else:
        part.write_text("x" * 1000)
    await fetch(beside)
    assert (config / "model.bin").read_bytes() == b"weights"
    assert sorted(os.listdir(config)) == ["model.bin", "other"]
    assert other.read_text() == "other"
    assert (beside / "secret").read_text() == "secret"
