"""What the input folder holds: its files, in an order that depends on their names alone.

Whatever is wrong with the folder is told at once, not one thing a run: a scan goes on past a file that it refuses, and
raises `InputsRefused` with all of them at its end.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from iterum_sidecar.messages import MAX_COMPONENT_BYTES, MAX_OUTPUT_NAME_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["InputFile", "InputsRefused", "Scan", "check_apart", "check_folder", "shown"]

#: As many problems as a person reads; the rest is counted.
_MOST_TOLD = 20
#: As many names of what is left out as a line has room for.
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of the input folder, as it was when it was looked at.

    `name` is its logical name: relative to the folder, with `/` between the components. `path` is absolute. `size` is
    in bytes, `mtime_ns` in nanoseconds since 1970.
    """

    name: str
    path: str
    size: int
    mtime_ns: int


class InputsRefused(Exception):
    """The input cannot be used as it is. `problems` has a line for each reason, with what to do."""

    def __init__(self, problems: list[str]) -> None:
        told = problems[:_MOST_TOLD]
        if len(problems) > _MOST_TOLD:
            told.append(f"… and {len(problems) - _MOST_TOLD:,} more")
        head = "" if len(told) == 1 else f"{len(problems):,} problems with the input:\n  "
        super().__init__(head + "\n  ".join(told))
        self.problems = problems


class Scan:
    """The files of a folder and of the folders in it, streamed, in an order that depends on their names alone.

    Of each folder first its files come, sorted by name, then its folders. Links to files and folders are followed; a
    link back to a folder that it lies in is not. Names that begin with a dot are left out, and so is what is no file:
    sockets, pipes, devices (`left_out` tells). A file that vanishes meanwhile is skipped.

    `match` is a shell pattern (`*`, `?`, `[…]`; case counts). Without a `/` it is held against the last component of
    a name, in whatever folder; with one, against the whole name, where `**` stands for any number of folders, a leading
    `/` for the input folder itself, and a trailing one for everything below. `output` is the folder of the results: a
    link that leads into it is refused.

    Iterating holds the names of one folder's files in memory at a time. It raises InputsRefused, after the last file,
    when anything was refused. The counters are those of the last iteration.

    Raises:
        InputsRefused: an empty pattern.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        match: str | None = None,
        *,
        output: str | os.PathLike[str] | None = None,
    ) -> None:
        self.root = os.path.abspath(root)
        self._fits = None if match is None else _matcher(match)
        self._output = None if output is None else os.path.realpath(output)
        self._begin()

    def _begin(self) -> None:
        self.hidden = 0
        """Files and folders whose names begin with a dot."""
        self.unmatched = 0
        """Files that `match` leaves out."""
        self.special = 0
        """Sockets, pipes and devices."""
        self._special_names: list[str] = []
        self.loops = 0
        """Links to a folder that they lie in."""
        self._problems: list[str] = []

    def __iter__(self) -> Iterator[InputFile]:
        self._begin()
        check_folder(self.root)
        to_enter = [_Folder("", None, None)]
        while to_enter:
            folder = to_enter.pop()
            names, folders = self._list(folder)
            for name in names:
                file = self._look_at(name)
                if file is not None:
                    yield file
            to_enter += reversed(folders)
        if self._problems:
            raise InputsRefused(self._problems)

    @property
    def left_out(self) -> str:
        """What the last iteration left out though its name was wanted, in words; empty if there was nothing."""
        if not self.special:
            return ""
        what = (
            "1 that is no regular file"
            if self.special == 1
            else f"{self.special:,} that are no regular files"
        )
        more = ", …" if self.special > _MOST_NAMED else ""
        return f"left out: {what} ({', '.join(map(shown, self._special_names))}{more})"

    def _list(self, folder: _Folder) -> tuple[list[str], list[_Folder]]:
        """Return the names of what a folder holds: what may be files, and the folders; each sorted."""
        prefix = f"{folder.name}/" if folder.name else ""
        names: list[str] = []
        folders: list[os.DirEntry[str]] = []
        try:
            status = os.stat(self._path(folder.name))
            here = folder._replace(identity=(status.st_dev, status.st_ino))
            if here.is_loop():
                self.loops += 1
                return [], []
            with os.scandir(self._path(folder.name)) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        self.hidden += 1
                    elif _is_folder(entry):
                        folders.append(entry)
                    else:
                        names.append(prefix + entry.name)
        except (FileNotFoundError, NotADirectoryError):
            if not folder.name:
                raise
            return [], []
        except OSError as error:
            self._refuse(folder.name, f"the folder cannot be read: {error.strerror}", _READABLE)
            return [], []
        folders.sort(key=lambda entry: entry.name)
        below = [
            _Folder(prefix + entry.name, None, here)
            for entry in folders
            if self._is_apart(entry, prefix)
        ]
        return sorted(names), below

    def _is_apart(self, entry: os.DirEntry[str], prefix: str) -> bool:
        """Tell whether a folder is neither the one of the results nor, by a link, in it."""
        if self._output is None:
            return True
        try:
            if entry.is_symlink():
                found = os.path.realpath(entry.path)
                lies_in_it = _is_within(found, self._output)
            else:
                lies_in_it = os.path.samestat(entry.stat(), os.stat(self._output))
        except OSError:
            return True
        if lies_in_it:
            self._refuse(
                prefix + entry.name,
                "the folder leads to the results, which would become inputs",
                "take it away, or choose another --output",
            )
        return not lies_in_it

    def _look_at(self, name: str) -> InputFile | None:
        """Return the file of this name, or None for what is left out, skipped or refused."""
        if self._fits is not None and not self._fits(name):
            self.unmatched += 1
            return None
        path = self._path(name)
        try:
            status = os.stat(path)
        except OSError as error:
            if os.path.islink(path):
                self._refuse(
                    name, f"the link leads nowhere: {error.strerror}", "mend it, or take it away"
                )
            elif not isinstance(error, FileNotFoundError | NotADirectoryError):
                self._refuse(name, f"cannot be looked at: {error.strerror}", _READABLE)
            return None
        if not stat.S_ISREG(status.st_mode):
            self.special += 1
            if self.special <= _MOST_NAMED:
                self._special_names.append(name)
            return None
        problem = _name_problem(name)
        if problem:
            self._refuse(name, problem, "rename it")
            return None
        if not os.access(path, os.R_OK, effective_ids=True):
            if os.path.exists(path):
                self._refuse(name, "cannot be read: Permission denied", _READABLE)
            return None
        return InputFile(name, path, status.st_size, status.st_mtime_ns)

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def _refuse(self, name: str, reason: str, remedy: str) -> None:
        self._problems.append(f"{shown(self._path(name))}: {reason}; {remedy}")


_READABLE = "make it readable for you, or take it out of the input"


class _Folder(NamedTuple):
    """A folder on the way to what is scanned: its logical name, what the system knows it by, and the one that it is in."""

    name: str
    identity: tuple[int, int] | None
    parent: _Folder | None

    def is_loop(self) -> bool:
        """Tell whether it lies in itself."""
        above = self.parent
        while above is not None:
            if above.identity == self.identity:
                return True
            above = above.parent
        return False


def check_folder(root: str | os.PathLike[str]) -> None:
    """See that `root` is a folder that can be read.

    Raises:
        InputsRefused: with one line.
    """
    told = shown(os.fspath(root))
    try:
        status = os.stat(root)
    except FileNotFoundError:
        raise InputsRefused([f"{told}: there is no such folder; check --input"]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputsRefused(
            [f"{told}: cannot be looked at: {reason}; check --input and its permissions"]
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise InputsRefused(
            [f"{told}: is no folder; give the folder that holds the files as --input"]
        )
    if not os.access(root, os.R_OK | os.X_OK, effective_ids=True):
        raise InputsRefused(
            [f"{told}: the folder cannot be read: Permission denied; make it readable for you"]
        )


def check_apart(input_folder: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """See that the results cannot become inputs, nor the run's own files; `output` need not be there yet.

    Neither may lie in the other.

    Raises:
        InputsRefused: with one line.
    """
    source, target = os.path.realpath(input_folder), os.path.realpath(output)
    told_source, told_target = shown(os.fspath(input_folder)), shown(os.fspath(output))
    if _is_within(target, source) or _is_mounted_within(target, source):
        relation = "is" if target == source else "lies in"
        raise InputsRefused(
            [
                f"{told_target}: the output folder {relation} the input folder {told_source}, so the results"
                " would become inputs; choose an --output beside it"
            ]
        )
    if _is_within(source, target):
        raise InputsRefused(
            [
                f"{told_source}: the input folder lies in the output folder {told_target}, so results could become"
                " inputs; choose an --output beside it"
            ]
        )


def shown(name: str) -> str:
    """Return a file's name as a person may see it: what is no UTF-8 or no character to print is escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that cannot be followed: told when it is looked at as a file


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_mounted_within(path: str, folder: str) -> bool:
    """Tell whether a path leads through a folder by another name of it, as a second mount gives it one."""
    try:
        sought = os.stat(folder)
    except OSError:
        return False
    while True:
        try:
            if os.path.samestat(os.stat(path), sought):
                return True
        except OSError:
            pass  # it is not there yet: what it will be in counts
        above = os.path.dirname(path)
        if above == path:
            return False
        path = above


def _name_problem(name: str) -> str | None:
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if len(encoded) <= MAX_COMPONENT_BYTES:
        return None
    if len(encoded) > MAX_OUTPUT_NAME_BYTES:
        return (
            f"its name, with the folders that it is in, has {len(encoded):,} bytes and may have"
            f" {MAX_OUTPUT_NAME_BYTES}"
        )
    if max(map(len, encoded.split(b"/"))) > MAX_COMPONENT_BYTES:
        return f"a part of its name is longer than {MAX_COMPONENT_BYTES} bytes"
    return None


def _matcher(pattern: str) -> Callable[[str], bool]:
    """Return what tells whether a logical name fits a shell pattern."""
    if not pattern.strip("/"):
        raise InputsRefused(
            [f"--match {pattern!r} fits no file; give a pattern such as '*.jpg', or leave it out"]
        )
    if "/" not in pattern:
        fits_last = re.compile(fnmatch.translate(pattern)).match
        return lambda name: fits_last(name.rpartition("/")[2]) is not None
    words = pattern.removeprefix("./").strip("/").split("/")
    if pattern.endswith("/"):
        words.append("**")
    if words[-1] == "**":
        words.append("*")
    parts = [None if word == "**" else re.compile(fnmatch.translate(word)) for word in words]

    def fits(name: str) -> bool:
        at = _past_folders(parts, {0})
        for component in name.split("/"):
            after = set()
            for position in at:
                if position < len(parts):
                    part = parts[position]
                    if part is None:
                        after.add(position)
                    elif part.match(component):
                        after.add(position + 1)
            at = _past_folders(parts, after)
        return len(parts) in at

    return fits


def _past_folders(parts: list[re.Pattern[str] | None], at: set[int]) -> set[int]:
    """Add the positions that are reached when a `**` stands for no folder."""
    reached = set(at)
    for position in sorted(at):
        while position < len(parts) and parts[position] is None:
            position += 1
            reached.add(position)
    return reached
