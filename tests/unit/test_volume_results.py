"""What the volume holds of a result, and what it removes of one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar import volume as volume_module
from iterum_sidecar.volume import OWN_DIRECTORY, PathRefused, TakenFile, Volume
from tests.unit.taking import remove_result, take
from tests.unit.test_volume import outside, put_input, root, volume

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["outside", "root", "volume"]  # the fixtures


def read(taken: TakenFile) -> str:
    return os.pread(taken.open(), 1000, 0).decode()


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def cat(root: Path) -> Path:
    """A result's path."""
    return root / "output/cat.jpg"


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def links(root: Path) -> int:
    return len(os.listdir(root / OWN_DIRECTORY / "results"))


@pytest.fixture
def narrow(root: Path, monkeypatch: pytest.MonkeyPatch) -> Volume:
    """A volume that may hold three results by their descriptors."""
    monkeypatch.setattr(volume_module, "_raise_descriptor_limit", lambda: 12)
    return Volume(str(root))


def test_a_taken_file_stays_what_it_was_when_its_path_is_given_to_another(
    volume: Volume, root: Path, cat: Path
) -> None:
    taken = take(volume, str(cat))
    write(root / "new", "a newer cat").rename(cat)
    assert (taken.size, read(taken)) == (3, "cat")
    cat.unlink()
    assert read(taken) == "cat"
    volume.release(taken)


def test_an_empty_file_is_a_result(volume: Volume, root: Path) -> None:
    taken = take(volume, str(write(root / "empty", "")))
    assert (taken.size, read(taken)) == (0, "")
    volume.release(taken)


def test_remove_result_removes_the_path_of_the_file_that_was_taken(
    volume: Volume, cat: Path
) -> None:
    taken = take(volume, str(cat))
    volume.release(taken)
    remove_result(volume, taken)
    assert not cat.exists()
    remove_result(volume, taken)
    assert cat.parent.is_dir()


def test_remove_result_leaves_a_newer_file_of_the_same_path(
    volume: Volume, root: Path, cat: Path
) -> None:
    taken = take(volume, str(cat))
    write(root / "new", "a newer cat").rename(cat)
    remove_result(volume, taken)
    assert cat.read_text() == "a newer cat"
    volume.release(taken)


@pytest.mark.parametrize("released", [True, False])
def test_remove_result_leaves_a_file_that_was_written_over_since(
    volume: Volume, cat: Path, released: bool
) -> None:
    taken = take(volume, str(cat))
    if released:
        volume.release(taken)
    cat.write_text("a newer cat")
    remove_result(volume, taken)
    assert cat.read_text() == "a newer cat"
    volume.release(taken)


def test_remove_result_leaves_a_newer_file_that_got_the_number_of_the_old_one(
    volume: Volume, cat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = take(volume, str(cat))
    volume.release(taken)
    cat.unlink()
    cat.write_text("a newer cat")
    # What ext4 does with the number of an inode that was freed, and tmpfs does not.
    taken.identity = (taken.identity[0], cat.stat().st_ino, *taken.identity[2:])
    remove_result(volume, taken)
    assert cat.read_text() == "a newer cat"


@pytest.mark.parametrize("swap", ["file", "parent"])
def test_remove_result_follows_no_symlink(
    volume: Volume, outside: Path, root: Path, cat: Path, swap: str
) -> None:
    taken = take(volume, str(cat))
    if swap == "file":
        cat.rename(outside / "cat.jpg")
        cat.symlink_to(outside / "cat.jpg")
    else:
        cat.parent.rename(outside / "output")
        (root / "output").symlink_to(outside / "output")
    remove_result(volume, taken)
    assert [each for each in outside.rglob("cat.jpg") if not each.is_symlink()]
    volume.release(taken)


def test_a_result_in_a_directory_that_is_gone_is_removed_already(volume: Volume, cat: Path) -> None:
    taken = take(volume, str(cat))
    cat.unlink()
    cat.parent.rmdir()
    before = open_files()
    remove_result(volume, taken)
    assert open_files() == before
    volume.release(taken)


def test_what_is_protected_may_be_a_result_and_is_never_removed(root: Path) -> None:
    (root / "config/deep").mkdir(parents=True)
    model = write(root / "config/deep/model", "weights")
    similar = write(root / "config-like", "not protected")
    with Volume(str(root), protected=("config",)) as volume:
        for path in (model, similar):
            taken = take(volume, str(path))
            volume.release(taken)
            remove_result(volume, taken)
    assert model.read_text() == "weights"
    assert not similar.exists()


def test_release_may_be_called_again(volume: Volume, cat: Path) -> None:
    before = open_files()
    taken = take(volume, str(cat))
    assert open_files() == before + 1
    for _ in range(2):
        volume.release(taken)
        assert open_files() == before
    with pytest.raises(AssertionError, match="was released"):
        taken.open()


@pytest.mark.parametrize("text", ["newer cat", "cut", ""])
def test_a_taken_file_tells_that_it_was_written_over(volume: Volume, cat: Path, text: str) -> None:
    taken = take(volume, str(cat))
    os.pread(taken.open(), 10, 0)
    assert not taken.has_changed()
    cat.write_text(text)
    os.utime(cat, ns=(1, 1))
    assert taken.has_changed()
    volume.release(taken)


def test_a_result_that_became_a_link_has_not_changed_by_that(narrow: Volume, cat: Path) -> None:
    with narrow:
        taken = [take(narrow, str(cat)) for _ in range(5)]
        assert taken[-1].is_link
        assert not any(each.has_changed() for each in taken)
        for each in taken:
            narrow.release(each)


# -- many results


def test_results_beyond_the_share_of_descriptors_become_links(narrow: Volume, root: Path) -> None:
    with narrow:
        before = open_files()
        paths = [write(root / f"{number}", f"text {number}") for number in range(8)]
        taken = [take(narrow, str(path)) for path in paths]
        assert (open_files() - before, links(root)) == (3, 5)
        for number, path in enumerate(paths):
            path.unlink()
            write(path, "newer")
            assert read(taken[number]) == f"text {number}"
        for each in taken:
            narrow.release(each)
        assert (open_files() - before, links(root)) == (0, 0)


def test_a_share_that_was_given_back_is_used_again(narrow: Volume, root: Path, cat: Path) -> None:
    with narrow:
        for _ in range(20):
            taken = [take(narrow, str(cat)) for _ in range(5)]
            assert links(root) == 2
            for each in reversed(taken):
                read(each)
                narrow.release(each)
                narrow.release(each)
            assert links(root) == 0


def test_the_path_of_a_result_that_became_a_link_is_removed_too(
    narrow: Volume, root: Path, cat: Path
) -> None:
    with narrow:
        held = [take(narrow, str(cat)) for _ in range(3)]
        linked = take(narrow, str(cat))
        assert linked.is_link
        remove_result(narrow, linked)
        assert not cat.exists()
        assert read(linked) == "cat"
        for each in (*held, linked):
            narrow.release(each)
        assert links(root) == 0


def test_where_no_link_can_be_made_the_descriptor_is_kept(
    narrow: Volume, root: Path, cat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    with narrow:
        before = open_files()
        taken = [take(narrow, str(cat)) for _ in range(6)]
        assert (open_files() - before, links(root)) == (6, 0)
        for each in taken:
            assert read(each) == "cat"
            narrow.release(each)
        assert open_files() == before


def test_close_removes_links_that_are_still_held(narrow: Volume, root: Path, cat: Path) -> None:
    taken = [take(narrow, str(cat)) for _ in range(5)]
    narrow.close()
    assert os.listdir(root) == ["output"]
    for each in taken[:3]:
        each.release(narrow.large_files)
    assert cat.read_text() == "cat"


# -- workspaces


@pytest.mark.parametrize("change", ["nothing", "removed", "added", "directory", "gone"])
def test_a_workspace_is_removed_whatever_the_transformation_did_in_it(
    volume: Volume, outside: Path, root: Path, change: str
) -> None:
    name, path = put_input(volume)
    directory = root / OWN_DIRECTORY / "fragments" / name
    if change == "removed":
        os.unlink(path)
    elif change == "added":
        (directory / "link").symlink_to(outside)
    elif change == "directory":
        os.unlink(path)
        (directory / "in.txt/deep").mkdir(parents=True)
    elif change == "gone":
        os.unlink(path)
        directory.rmdir()
    workspace = volume_module.Workspace(name, str(directory))
    volume.remove_workspace(workspace, ["in.txt"])
    assert os.listdir(root / OWN_DIRECTORY / "fragments") == []
    assert (outside / "secret").read_text() == "secret"


@pytest.mark.parametrize("names", [["a/b/c"], ["a/b", "a/c", "d"]])
def test_a_workspace_of_many_files_is_removed(volume: Volume, root: Path, names: list[str]) -> None:
    workspace = volume.make_workspace()
    for name in names:
        os.close(volume.create_file(workspace, name))
    volume.remove_workspace(workspace, names)
    assert os.listdir(root / OWN_DIRECTORY / "fragments") == []


def test_a_symlink_in_the_place_of_a_workspace_is_removed_and_not_followed(
    volume: Volume, outside: Path, root: Path
) -> None:
    workspace = volume.make_workspace()
    os.rmdir(workspace.path)
    os.symlink(outside, workspace.path)
    volume.remove_workspace(workspace, ["secret"])
    assert os.listdir(root / OWN_DIRECTORY / "fragments") == []
    assert (outside / "secret").read_text() == "secret"


def test_the_files_of_a_result_may_be_in_several_directories(root: Path, volume: Volume) -> None:
    paths = [
        write(root / where / f"{number}", f"{where}/{number}")
        for number, where in enumerate(("a", "a", "a/b", "c", "a"))
    ]
    taken: list[TakenFile] = []
    volume.take(map(str, paths), taken)
    assert [read(each) for each in taken] == [str(path.relative_to(root)) for path in paths]
    volume.remove_results(taken)
    assert not any(path.exists() for path in paths)


def test_a_directory_that_is_swapped_between_two_results_is_walked_to_anew(
    root: Path, volume: Volume
) -> None:
    first = take(volume, str(write(root / "output" / "cat", "first")))
    (root / "output").rename(root / "elsewhere")
    second = take(volume, str(write(root / "output" / "cat", "second")))
    assert read(second) == "second"
    remove_result(volume, first)
    assert (root / "elsewhere" / "cat").exists()
    assert (root / "output" / "cat").exists()


def test_what_was_taken_before_a_refused_file_is_told(root: Path, volume: Volume) -> None:
    taken: list[TakenFile] = []
    before = open_files()
    cat, dog = (str(write(root / "output" / name, name)) for name in ("cat", "dog"))
    with pytest.raises(PathRefused, match="cannot be opened"):
        volume.take([cat, dog, str(root / "output" / "absent"), cat], taken)
    assert [each.path for each in taken] == ["output/cat", "output/dog"]
    for each in taken:
        volume.release(each)
    assert open_files() == before
