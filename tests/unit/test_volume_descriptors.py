"""The volume when no descriptor is free: what cannot be removed now is removed later, and nobody opens more than there are."""

from __future__ import annotations

import os
import resource
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar import volume as volume_module
from iterum_sidecar.volume import OWN_DIRECTORY, Volume
from tests.unit.taking import take

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iterum_sidecar.volume import Workspace


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture
def volume(root: Path) -> Iterator[Volume]:
    with Volume(str(root)) as volume:
        yield volume


@contextmanager
def no_descriptor() -> Iterator[None]:
    """What is open stays open, and nothing else can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def fill(volume: Volume, *names: str) -> Workspace:
    workspace = volume.make_workspace()
    for name in names:
        os.close(volume.create_file(workspace, name))
    return workspace


def left(root: Path) -> list[str]:
    return sorted(path.name for path in (root / OWN_DIRECTORY / "fragments").iterdir())


def open_directories(root: Path) -> list[str]:
    """Where this process has directories open below `root`."""
    listed = (f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd"))
    targets = [os.readlink(each) for each in listed if os.path.lexists(each)]
    return sorted(each for each in targets if each.startswith(f"{root}/") and os.path.isdir(each))


def test_a_workspace_is_open_from_its_first_file_until_it_rests(volume: Volume, root: Path) -> None:
    before = open_directories(root)
    workspace = fill(volume, "a", "deep/deeper/b", "deep/c")
    assert open_directories(root) == sorted([*before, workspace.path])
    for _ in range(2):
        workspace.rest()
        assert open_directories(root) == before
    os.close(volume.create_file(workspace, "d"))
    volume.remove_workspace(workspace, ["a", "deep/deeper/b", "deep/c", "d"])
    assert open_directories(root) == before
    assert left(root) == []


def test_a_fragment_s_files_that_cannot_be_removed_now_are_removed_with_the_next(
    volume: Volume, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = (["a"], ["b", "c"], ["d/e"])
    first, second, third = (fill(volume, *names) for names in files)
    last = fill(volume, "f")
    with no_descriptor():
        for workspace, names in zip((first, second, third), files, strict=True):
            volume.remove_workspace(workspace, names)
    assert left(root) == sorted(each.name for each in (first, second, third, last))
    volume.remove_workspace(last, ["f"])
    assert left(root) == []
    assert caplog.records == []


def test_a_result_s_path_that_cannot_be_removed_now_is_removed_later(
    volume: Volume, root: Path
) -> None:
    (root / "output").mkdir()
    for name in ("cat", "dog"):
        (root / "output" / name).write_text(name)
    cat, dog = (take(volume, str(root / "output" / name)) for name in ("cat", "dog"))
    with no_descriptor():
        volume.remove_results([cat, dog])
    assert (root / "output" / "cat").exists()
    # By then the path is another result's.
    (root / "output" / "dog").unlink()
    (root / "output" / "dog").write_text("a newer dog")
    volume.remove_results([])
    assert [path.name for path in (root / "output").iterdir()] == ["dog"]


def test_what_is_left_is_removed_at_the_end(root: Path) -> None:
    (root / "cats").mkdir()
    (root / "cats" / "cat").write_text("cat")
    with Volume(str(root)) as volume:
        taken = take(volume, str(root / "cats" / "cat"))
        workspace = fill(volume, "a")
        with no_descriptor():
            volume.remove_results([taken])
            volume.remove_workspace(workspace, ["a"])
    assert list((root / "cats").iterdir()) == []
    assert not (root / OWN_DIRECTORY).exists()


@pytest.mark.parametrize(
    ("allowed", "at_a_time"),
    [(20, (1, 1)), (64, (4, 1)), (512, (16, 2)), (1024, (16, 4)), (4096, (16, 8))],
)
def test_no_more_files_are_moved_at_a_time_than_may_be_open(
    allowed: int, at_a_time: tuple[int, int], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_module, "_raise_descriptor_limit", lambda: allowed)
    with Volume(str(root)) as volume:
        assert volume.files_at_a_time(16, 8) == at_a_time


def test_what_a_file_system_tells_of_its_room(volume: Volume, root: Path) -> None:
    found = os.statvfs(root)
    assert volume.capacity() == found.f_blocks * found.f_frsize
    available = volume.available()
    assert available is not None
    assert 0 < available <= volume.capacity()
    assert volume.may_hold(1)
    assert not volume.may_hold(int(volume.capacity()) + 1)


def test_a_file_system_that_tells_nothing_is_believed_to_have_room(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda _: silent)
    assert volume.available() is None
    assert volume.capacity() == float("inf")
    assert volume.may_hold(10**18)
