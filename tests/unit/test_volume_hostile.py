"""What a transformation can do to the volume that it shares with us, and what it gains by that: nothing."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar import volume as volume_module
from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.volume import OWN_DIRECTORY, PathRefused, TakenFile, Volume
from tests.unit.taking import remove_result, take
from tests.unit.test_volume import content, is_refused, outside, put_input, root, volume

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["outside", "root", "volume"]  # the fixtures

TIB = 1 << 40


@pytest.fixture
def linked(root: Path, monkeypatch: pytest.MonkeyPatch) -> Volume:
    """A volume that holds every result by a link in the directory of the sidecar."""
    monkeypatch.setattr(volume_module, "_raise_descriptor_limit", lambda: 0)
    return Volume(str(root))


def link_of(taken: TakenFile, root: Path) -> Path:
    assert taken.is_link
    (link,) = (root / OWN_DIRECTORY / "results").iterdir()
    return link


# -- taking


@pytest.mark.parametrize("way", ["./", "/"])
def test_a_path_is_no_longer_than_any_path_may_be(volume: Volume, root: Path, way: str) -> None:
    """Each part of it costs a system call, and a frame has room for millions."""
    plain = f"{root}/output/cat.jpg"
    longest = f"{root}/{way * 2000}output/cat.jpg"
    assert content(volume, plain) == content(volume, longest) == "cat"
    assert is_refused(volume, f"{root}/{way * 5000}output/cat.jpg")


def test_a_file_of_holes_that_no_volume_could_hold_is_refused(volume: Volume, root: Path) -> None:
    """It would be a terabyte of nothing to everybody who comes after."""
    huge = root / "huge"
    huge.touch()
    os.truncate(huge, TIB)
    assert huge.stat().st_blocks == 0
    assert is_refused(volume, huge)


def test_a_file_of_holes_that_the_volume_could_hold_is_a_result(volume: Volume, root: Path) -> None:
    sparse = root / "sparse"
    sparse.touch()
    os.truncate(sparse, 1 << 30)
    taken = take(volume, str(sparse))
    assert taken.size == 1 << 30
    volume.release(taken)


def test_a_file_that_another_process_has_leased_is_refused_and_not_waited_for(
    volume: Volume, root: Path
) -> None:
    # The kernel tells the holder of a lease by SIGIO, which ends who does not expect it.
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    with (root / "output/cat.jpg").open("r+") as cat:
        fcntl.fcntl(cat, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        assert is_refused(volume, root / "output/cat.jpg")
        fcntl.fcntl(cat, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        assert content(volume, root / "output/cat.jpg") == "cat"
    signal.signal(signal.SIGIO, before)


def test_a_second_name_of_another_fragments_input_is_a_file_like_any_other(
    volume: Volume, root: Path
) -> None:
    _, path = put_input(volume)
    os.link(path, root / "output/in.txt")
    taken = take(volume, str(root / "output/in.txt"))
    volume.release(taken)
    remove_result(volume, taken)
    assert not (root / "output/in.txt").exists()
    assert os.path.exists(path), "the input stays"


# -- what is held by a link


@pytest.mark.parametrize("change", ["removed", "file", "symlink", "fifo", "directory"])
def test_a_link_in_whose_place_is_something_else_is_not_read(
    linked: Volume, root: Path, outside: Path, change: str
) -> None:
    with linked:
        taken = take(linked, str(root / "output/cat.jpg"))
        link = link_of(taken, root)
        link.unlink()
        if change == "file":
            link.write_text("dog")
        elif change == "symlink":
            link.symlink_to(outside / "secret")
        elif change == "fifo":
            os.mkfifo(link)
        elif change == "directory":
            link.mkdir()
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(PathRefused, match="the sidecar's own directory"):
            taken.open()
        assert len(os.listdir("/proc/self/fd")) == before
        linked.release(taken)
        linked.release(taken)
    assert sorted(os.listdir(root)) == ["output"]


# -- our own directory


@pytest.mark.parametrize("change", ["removed", "moved", "symlink", "file"])
def test_the_volume_is_closed_whatever_has_become_of_our_directory(
    linked: Volume, root: Path, outside: Path, change: str
) -> None:
    own = root / OWN_DIRECTORY
    with linked:
        taken = take(linked, str(root / "output/cat.jpg"))
        put_input(linked)
        if change == "removed":
            shutil.rmtree(own)
        else:
            own.rename(root / "moved")
        if change == "symlink":
            own.symlink_to(outside)
        elif change == "file":
            own.write_text("x")
        assert taken.path == "output/cat.jpg"
    assert (outside / "secret").read_text() == "secret"
    if change == "symlink":
        assert own.is_symlink(), "it is not ours to remove"


@pytest.mark.parametrize("what", ["", "fragments", "fragments/1"])
@pytest.mark.parametrize("how", ["removed", "symlink"])
def test_who_finds_our_directory_gone_is_told_whose_it_is(
    volume: Volume, root: Path, outside: Path, what: str, how: str
) -> None:
    workspace = volume.make_workspace()
    gone = root / OWN_DIRECTORY / what
    shutil.rmtree(gone)
    if how == "symlink":
        gone.symlink_to(outside)
    with pytest.raises(VolumeUnusable, match=r"\.iterum-sidecar was removed, or something in it"):
        volume.create_file(workspace, "in.txt")
    if what != "fragments/1":
        with pytest.raises(VolumeUnusable, match=r"\.iterum-sidecar was removed"):
            volume.make_workspace()
    assert sorted(os.listdir(outside)) == ["secret", "volume"]


@pytest.mark.parametrize("name", ["b", "deep/b"])
def test_who_finds_a_workspace_gone_while_it_is_filled_is_told_whose_it_was(
    volume: Volume, name: str
) -> None:
    workspace = volume.make_workspace()
    os.close(volume.create_file(workspace, "a"))
    shutil.rmtree(workspace.path)
    with pytest.raises(VolumeUnusable, match=r"\.iterum-sidecar was removed, or something in it"):
        volume.create_file(workspace, name)
