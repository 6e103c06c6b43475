"""The volume: whom it lets in, and what of it is ours. What is held and removed is in `test_volume_results.py`."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar import volume as volume_module
from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.volume import OWN_DIRECTORY, PathRefused, Volume
from tests.unit.taking import take

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def outside() -> Iterator[Path]:
    """A directory on tmpfs that holds the volume and a secret beside it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        (Path(directory) / "secret").write_text("secret")
        yield Path(directory)


@pytest.fixture
def root(outside: Path) -> Path:
    """The volume's directory, with one result in it."""
    root = outside / "volume"
    (root / "output").mkdir(parents=True)
    (root / "output" / "cat.jpg").write_text("cat")
    return root


@pytest.fixture
def volume(root: Path) -> Iterator[Volume]:
    """The volume, opened."""
    with Volume(str(root)) as volume:
        yield volume


def content(volume: Volume, path: str | Path, *allowed: str) -> str:
    taken = take(volume, str(path), allowed)
    try:
        return os.pread(taken.open(), 1000, 0).decode()
    finally:
        volume.release(taken)


def is_refused(volume: Volume, path: str | Path, *allowed: str) -> bool:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PathRefused):
        take(volume, str(path), allowed)
    return len(os.listdir("/proc/self/fd")) == before


def put_input(volume: Volume, name: str = "in.txt") -> tuple[str, str]:
    """Make a workspace with one file, and return its name and the file's path."""
    workspace = volume.make_workspace()
    descriptor = volume.create_file(workspace, name)
    os.write(descriptor, b"input")
    os.close(descriptor)
    workspace.rest()
    return workspace.name, f"{workspace.path}/{name}"


# -- taking


@pytest.mark.parametrize("path", ["output/cat.jpg", "/output//cat.jpg", "./output/./cat.jpg"])
def test_a_file_of_the_volume_is_taken(volume: Volume, root: Path, path: str) -> None:
    assert content(volume, f"{root}/{path}") == "cat"


@pytest.mark.parametrize("ending", ["", "/", "//", "/."])
def test_the_volume_may_be_named_with_slashes_at_its_end(root: Path, ending: str) -> None:
    with Volume(f"{root}{ending}") as volume:
        assert content(volume, f"{root}/output/cat.jpg") == "cat"


def test_the_volume_may_itself_be_a_symlink_and_be_named_either_way(
    outside: Path, root: Path
) -> None:
    link = outside / "link"
    link.symlink_to(root)
    with Volume(str(link)) as volume:
        assert content(volume, link / "output/cat.jpg") == "cat"
        assert content(volume, root / "output/cat.jpg") == "cat"


@pytest.mark.parametrize(
    "path",
    [
        "{root}/../secret",
        "{root}/output/../../secret",
        "{root}/output/../output/cat.jpg",
        "{outside}/secret",
        "/etc/passwd",
        "{root}-other/secret",
        "{root}other",
        "{root}output/cat.jpg",
        "output/cat.jpg",
        "",
        "/",
        "{root}",
        "{root}/",
        "{root}/.",
        "{root}/..",
        "{root}/output",
        "{root}/output/",
        "{root}/absent",
        "{root}/absent/cat.jpg",
        "{root}/output/cat.jpg/x",
        "{root}/output/cat.jpg\0",
        "{root}/output\0/cat.jpg",
        "{root}/" + "a" * 256,
        "{root}/" + "a/" * 2500 + "x",
    ],
)
def test_a_path_that_leads_out_or_to_nothing_is_refused(
    volume: Volume, outside: Path, root: Path, path: str
) -> None:
    other = outside / "volume-other"
    other.mkdir()
    (other / "secret").write_text("secret")
    (outside / "volumeother").write_text("secret")
    assert is_refused(volume, path.format(root=root, outside=outside))


@pytest.mark.parametrize("target", ["../../secret", "{outside}/secret", "cat.jpg", "absent", "."])
def test_a_symlink_is_refused_wherever_it_leads(
    volume: Volume, outside: Path, root: Path, target: str
) -> None:
    (root / "output" / "link").symlink_to(target.format(outside=outside))
    assert is_refused(volume, root / "output/link")


@pytest.mark.parametrize("target", ["..", "{outside}", "output"])
def test_a_symlinked_parent_is_refused_wherever_it_leads(
    volume: Volume, outside: Path, root: Path, target: str
) -> None:
    (root / "link").symlink_to(target.format(outside=outside))
    (outside / "cat.jpg").write_text("another cat")
    assert is_refused(volume, root / "link/cat.jpg")


def test_a_symlink_swapped_in_after_the_look_is_refused(
    volume: Volume, outside: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, look = root / "output/cat.jpg", os.stat

    def look_and_swap(*arguments: object, **options: object) -> os.stat_result:
        found = look(*arguments, **options)  # type: ignore[arg-type]
        if arguments[0] == "cat.jpg":
            file.unlink()
            file.symlink_to(outside / "secret")
        return found

    monkeypatch.setattr(os, "stat", look_and_swap)
    assert is_refused(volume, file)
    assert file.is_symlink()


def test_a_parent_swapped_while_it_is_walked_gains_nothing(
    volume: Volume, outside: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (outside / "cat.jpg").write_text("another cat")
    open_file = os.open

    def open_and_swap(
        path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> int:
        descriptor = open_file(path, flags, mode, dir_fd=dir_fd)
        if path == "output":
            (root / "output").rename(root / "moved")
            (root / "output").symlink_to(outside)
        return descriptor

    monkeypatch.setattr(os, "open", open_and_swap)
    assert content(volume, root / "output/cat.jpg") == "cat"


def test_a_fifo_swapped_in_after_the_look_is_refused_without_waiting_for_its_writer(
    volume: Volume, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, open_file = root / "output/cat.jpg", os.open

    def swap_and_open(
        path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> int:
        if path == "cat.jpg":
            file.unlink()
            os.mkfifo(file)
        return open_file(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", swap_and_open)
    assert is_refused(volume, file)


def test_what_is_no_regular_file_is_refused(volume: Volume, root: Path) -> None:
    os.mkfifo(root / "fifo")
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(root / "socket"))
        for name in ("fifo", "socket", "output"):
            assert is_refused(volume, root / name)


def test_a_device_is_refused_before_it_is_opened(
    volume: Volume, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("devices cannot be made here")
    opened: list[object] = []
    open_file = os.open

    def note_and_open(
        path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> int:
        opened.append(path)
        return open_file(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", note_and_open)
    assert is_refused(volume, root / "null")
    assert opened == []


@pytest.mark.parametrize("name", ["in.txt", "a/b/in.txt"])
def test_an_input_is_taken_as_the_result_of_its_own_fragment_alone(
    volume: Volume, name: str
) -> None:
    own, path = put_input(volume, name)
    other, others_path = put_input(volume, name)
    assert content(volume, path, own) == "input"
    assert content(volume, path, other, own) == "input"
    assert is_refused(volume, path)
    assert is_refused(volume, path, other)
    assert is_refused(volume, others_path, own)
    assert is_refused(volume, path.replace("/fragments/", "/./fragments//"), other)


@pytest.mark.parametrize("inside", ["x", "fragments/x", "results/x", "results/{own}/x", ""])
def test_what_is_the_sidecars_own_is_refused(volume: Volume, root: Path, inside: str) -> None:
    own, _ = put_input(volume)
    path = root / OWN_DIRECTORY / inside.format(own=own)
    path.parent.mkdir(parents=True, exist_ok=True)
    if inside:
        path.write_text("x")
    assert is_refused(volume, path, own, "x", "")


# -- making


def test_a_workspace_is_a_directory_that_no_other_fragment_has(volume: Volume, root: Path) -> None:
    workspaces = [volume.make_workspace() for _ in range(20)]
    assert len({each.path for each in workspaces}) == 20
    for each in workspaces:
        assert each.path == f"{root}/{OWN_DIRECTORY}/fragments/{each.name}"
        assert os.path.isdir(each.path)


def test_an_inputs_file_is_made_with_its_directories_and_once(volume: Volume) -> None:
    workspace = volume.make_workspace()
    for name in ("a/b/c", "a/b/d", "e"):
        os.close(volume.create_file(workspace, name))
        assert os.path.isfile(f"{workspace.path}/{name}")
        with pytest.raises(FileExistsError):
            volume.create_file(workspace, name)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "..", "a/.."])
def test_no_name_makes_an_input_outside_of_its_workspace(
    volume: Volume, root: Path, name: str
) -> None:
    workspace = volume.make_workspace()
    with pytest.raises(OSError):  # noqa: PT011 - whichever it is, it ends this fragment alone
        volume.create_file(workspace, name)
    assert [each for each in root.rglob("x") if each.is_file()] == []


@pytest.mark.parametrize("name", ["planted/x", "file"])
def test_no_symlink_in_a_workspace_is_followed(volume: Volume, outside: Path, name: str) -> None:
    workspace = volume.make_workspace()
    os.symlink(outside, f"{workspace.path}/planted")
    os.symlink(outside / "new", f"{workspace.path}/file")
    with pytest.raises(OSError):  # noqa: PT011 - ELOOP, ENOTDIR or EEXIST
        volume.create_file(workspace, name)
    assert sorted(each.name for each in outside.iterdir()) == ["secret", "volume"]


def test_a_path_as_long_as_the_system_takes_passes_and_a_longer_one_is_refused(
    volume: Volume,
) -> None:
    workspace = volume.make_workspace()
    room = 4095 - len(workspace.path) - 1
    name = ("a" * 254 + "/") * (room // 255)
    name += "b" * (room - len(name))
    os.close(volume.create_file(workspace, name))
    assert os.stat(f"{workspace.path}/{name}").st_size == 0
    with pytest.raises(OSError, match="File name too long"):
        volume.create_file(workspace, name + "b")


def test_a_public_directory_is_made_and_used_as_it_is(
    volume: Volume, outside: Path, root: Path
) -> None:
    for _ in range(2):
        os.close(volume.make_public_directory("config/deep"))
        assert (root / "config/deep").is_dir()
    (root / "planted").symlink_to(outside)
    for taken in ("planted/config", "output/cat.jpg"):
        with pytest.raises(VolumeUnusable, match=f"the directory {taken} cannot be made"):
            volume.make_public_directory(taken)
    assert not (outside / "config").exists()


# -- opening and closing


def test_close_leaves_nothing_of_ours_and_all_of_others(root: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with Volume(str(root)) as volume:
        workspace, path = put_input(volume, "a/b")
        Path(path).with_name("scribble").symlink_to("/")
        volume.release(take(volume, path, [workspace]))
        assert (root / OWN_DIRECTORY).is_dir()
    assert [str(each.relative_to(root)) for each in sorted(root.rglob("*"))] == [
        "output",
        "output/cat.jpg",
    ]
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_left_overs_of_an_earlier_life_are_removed_and_foreign_files_are_not(root: Path) -> None:
    own = root / OWN_DIRECTORY
    (own / "fragments/1/deep").mkdir(parents=True)
    (own / "fragments/1/deep/file").write_text("old")
    (own / "fragments/link").symlink_to(root / "output")
    (own / "results").mkdir()
    (own / "results/1").write_text("old")
    (own / "foreign").write_text("foreign")
    (root / "foreign").write_text("foreign")
    with Volume(str(root)):
        assert os.listdir(own / "fragments") == os.listdir(own / "results") == []
    assert (own / "foreign").read_text() == (root / "foreign").read_text() == "foreign"
    assert os.listdir(own) == ["foreign"]
    assert (root / "output/cat.jpg").read_text() == "cat"


#: A name of a fragment's file that is nearly as deep as the longest path allows.
DEEP_NAME = "/".join(["a"] * 1900)


def test_a_fragment_of_any_depth_is_removed_when_it_is_settled(volume: Volume, root: Path) -> None:
    workspace = volume.make_workspace()
    os.close(volume.create_file(workspace, DEEP_NAME))
    volume.remove_workspace(workspace, [DEEP_NAME])
    assert os.listdir(root / OWN_DIRECTORY / "fragments") == []


def test_a_left_over_of_any_depth_does_not_keep_the_next_life_from_its_start(root: Path) -> None:
    killed = Volume(str(root))
    os.close(killed.create_file(killed.make_workspace(), DEEP_NAME))
    with Volume(str(root)):
        assert os.listdir(root / OWN_DIRECTORY / "fragments") == []


def test_what_is_removed_deep_down_is_not_followed(volume: Volume, root: Path) -> None:
    workspace = volume.make_workspace()
    deep = Path(workspace.path) / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "link").symlink_to(root / "output")
    (deep / "file").write_text("x")
    (deep / "full" / "empty").mkdir(parents=True)
    os.mkfifo(deep / "full" / "pipe")
    volume.remove_workspace(workspace, [])
    assert os.listdir(root / OWN_DIRECTORY / "fragments") == []
    assert (root / "output/cat.jpg").read_text() == "cat"


@pytest.mark.parametrize("name", ["fragments", "results"])
@pytest.mark.parametrize("kind", ["symlink", "file"])
def test_what_is_planted_in_the_place_of_a_directory_of_ours_is_removed_and_not_followed(
    root: Path, name: str, kind: str
) -> None:
    (root / OWN_DIRECTORY).mkdir()
    if kind == "symlink":
        (root / OWN_DIRECTORY / name).symlink_to(root / "output")
    else:
        (root / OWN_DIRECTORY / name).write_text("x")
    with Volume(str(root)):
        assert (root / OWN_DIRECTORY / name).is_dir()
        assert not (root / OWN_DIRECTORY / name).is_symlink()
    assert (root / "output/cat.jpg").read_text() == "cat"


def test_a_symlink_in_the_place_of_our_own_directory_is_refused(outside: Path, root: Path) -> None:
    (outside / "fragments").mkdir()
    (root / OWN_DIRECTORY).symlink_to(outside)
    with pytest.raises(VolumeUnusable, match=rf"{OWN_DIRECTORY} cannot be made or cleared"):
        Volume(str(root))
    assert (outside / "fragments").is_dir()


@pytest.mark.parametrize("name", ["absent", "secret"])
def test_a_root_that_is_no_directory_is_refused(outside: Path, name: str) -> None:
    with pytest.raises(VolumeUnusable, match="DATA_VOLUME_PATH must name a directory"):
        Volume(str(outside / name))


def test_what_cannot_be_removed_at_the_end_is_left_without_a_fault(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def may_not(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", "written by a root transformation")

    with Volume(str(root)) as volume:
        workspace = volume.make_workspace()
        os.mkdir(f"{workspace.path}/of-root")
        with monkeypatch.context() as patched:
            patched.setattr(volume_module, "remove_tree", may_not)
            volume.remove_workspace(workspace, [])
    assert volume_module.OWN_DIRECTORY not in os.listdir(root)
