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
from iterum_sidecar.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def beside() -> Iterator[Path]:
    """A directory on tmpfs that holds the volume `v`, and a file that is nobody's business."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        path = Path(directory)
        (path / "secret").write_text("secret")
        (path / "v" / "config").mkdir(parents=True)
        yield path


async def fetch(beside: Path) -> None:
    store = DirectoryStore(beside / "objects")
    await store.ensure_bucket("bucket")
    with (beside / "model").open("w+b") as file:
        file.write(b"weights")
        file.flush()
        await store.put("bucket", "iterum_config/model.bin", file.fileno(), 7)
    with Volume(str(beside / "v")) as volume, trio.fail_after(20):
        await fetch_config_files(
            {"model": "model.bin"}, store=store, bucket="bucket", volume=volume, directory="config"
        )


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
