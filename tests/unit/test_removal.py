"""Trees are removed however deep they lie, and nothing outside them is touched."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.removal import remove_folder

if TYPE_CHECKING:
    from pathlib import Path


def make_deep(folder: Path, depth: int) -> None:
    """Make directories in one another, by descriptors: no path of that length could be opened."""
    folder.mkdir()
    directory = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
        os.mkdir("d", dir_fd=directory)
        inner = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = inner
    os.close(directory)


def test_a_tree_deeper_than_the_stack(tmp_path: Path) -> None:
    make_deep(tmp_path / "tree", sys.getrecursionlimit() * 2)
    remove_folder(tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("kept")
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "link").symlink_to(kept)
    (tree / "inner" / "link").symlink_to(kept)
    remove_folder(tree)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    (tmp_path / "link").symlink_to(kept)
    remove_folder(tmp_path / "link")
    assert (kept / "file").read_text() == "kept"
    assert not (tmp_path / "link").is_symlink()


def test_what_is_not_there_is_removed_already(tmp_path: Path) -> None:
    remove_folder(tmp_path / "none")
    remove_folder(tmp_path / "none" / "below")


def test_a_place_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        remove_folder(tmp_path / "file" / "below")
    remove_folder(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
