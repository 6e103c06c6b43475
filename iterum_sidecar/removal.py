"""Removing trees whose depth is for others to choose: no recursion, few open files, no link followed."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["OPEN_DIRECTORY", "remove_folder", "remove_tree"]

#: How a directory is opened in which somebody else may write: a link in its place is an error.
OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(name: str, parent: int) -> None:
    """Remove a file or directory in the open directory `parent`, and all that is in it, following nothing; it may be gone already.

    Raises:
        OSError: something in it cannot be removed, or is written to meanwhile (ENOTEMPTY).
    """
    with suppress(FileNotFoundError):
        if _is_directory(name, parent):
            directory = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
            try:
                _empty(directory)
            finally:
                os.close(directory)
            os.rmdir(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)


def remove_folder(folder: Path) -> None:
    """Remove the tree at a path; as `remove_tree`, errors too."""
    with suppress(FileNotFoundError):
        parent = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_tree(folder.name, parent)
        finally:
            os.close(parent)


def _empty(directory: int) -> None:
    """Remove all that is in a directory.

    A directory in it is emptied by bringing up those that it has. So neither the stack nor the open files grow with the depth, which
    is for others to choose; `shutil.rmtree` takes of both for each level before Python 3.13.
    """
    names = os.listdir(directory)
    while names:
        name = names.pop()
        if not _is_directory(name, directory):
            os.unlink(name, dir_fd=directory)
            continue
        inner = os.open(name, OPEN_DIRECTORY, dir_fd=directory)
        try:
            for below in os.listdir(inner):
                if _is_directory(below, inner):
                    names.append(secrets.token_hex(16))
                    os.rename(below, names[-1], src_dir_fd=inner, dst_dir_fd=directory)
                else:
                    os.unlink(below, dir_fd=inner)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=directory)


def _is_directory(name: str, parent: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
