"""The shared volume as the step sees it: where its results go, and which paths can be results."""

from __future__ import annotations

import os
import stat
from itertools import count

__all__ = ["OUTPUT_DIRECTORY", "Volume"]

#: Below the volume; the name that pyterum's steps use too.
OUTPUT_DIRECTORY = "output"
#: Bytes of a logical name's end that a path keeps, so that a program which goes by the extension knows the file.
_LONGEST_EXTENSION = 40

# One count for the process: whichever connection makes a path, no other makes the same.
_numbers = count(1)
_token = os.urandom(4).hex()


class Volume:
    """The directory that this step and its sidecar share."""

    def __init__(self, root: str) -> None:
        self.root = root
        absolute = os.path.abspath(root)
        self._real = os.path.realpath(root)
        self._prefixes = tuple(dict.fromkeys((f"{absolute.rstrip('/')}/", f"{self._real}/")))
        self._output = f"{absolute.rstrip('/')}/{OUTPUT_DIRECTORY}"
        self._made = False

    def new_path(self, name: str) -> str:
        """Return a path for a file of that logical name at which there is nothing, its directory made; the extension is the name's."""
        if not self._made:
            os.makedirs(self._output, exist_ok=True)
            self._made = True
        extension = _extension(name)
        # The process's number: one that was forked off counts on from the same number.
        return f"{self._output}/{os.getpid():x}-{_token}-{next(_numbers):x}{extension}"

    def is_output(self, path: str) -> bool:
        """Tell whether a path is in the directory of results, where nothing else lies."""
        return path.startswith(f"{self._output}/")

    def checked(self, path: str) -> str:
        """Return a path that the function chose itself, made absolute.

        Raises:
            ValueError: it is outside the volume, or reached over a symbolic link, which a sidecar does not follow.
        """
        absolute = os.path.abspath(path)
        prefix = next((each for each in self._prefixes if absolute.startswith(each)), None)
        if prefix is None:
            raise ValueError(
                f"{path!r} is outside the volume of the step: a path or text that is given back names a file that was"
                " made at a path from `fragment.create(name)` or `fragment.new_path(name)`"
            )
        parent = os.path.dirname(absolute[len(prefix) :])
        if os.path.realpath(os.path.dirname(absolute)) != os.path.join(self._real, parent).rstrip(
            "/"
        ):
            raise ValueError(
                f"{path!r} is reached over a symbolic link, which the sidecar does not follow: make the file at a"
                " path from `fragment.create(name)` or `fragment.new_path(name)`"
            )
        return absolute

    def identity(self, path: str, name: str) -> tuple[int, ...]:
        """Return what changes when the regular file at `path`, which is to be the result `name`, is written again.

        Raises:
            ValueError: there is none; the text names what is there, and the remedy.
        """
        shown = f"{name!r} ({path})"
        try:
            status = os.lstat(path)
        except OSError as error:
            raise ValueError(
                f"there is no file for the result {shown}: {error.strerror}; write it before the `create` block ends,"
                " or before it is given to `result`"
            ) from None
        mode = status.st_mode
        if not stat.S_ISREG(mode):
            kind = (
                "a symbolic link" if stat.S_ISLNK(mode)
                else "a directory" if stat.S_ISDIR(mode)
                else "no regular file"
            )  # fmt: skip
            raise ValueError(
                f"the result {shown} is {kind}; a result is a regular file, so copy it"
            )
        return status.st_ino, status.st_size, status.st_mtime_ns


def _extension(name: str) -> str:
    """Return the end of a name that tells what the file is, `.nii.gz` as a whole."""
    last = name.rpartition("/")[2]
    extension = os.path.splitext(last)[1]
    whole = last[last.find(".") :] if "." in last else ""
    chosen = whole if len(whole.encode(errors="replace")) <= _LONGEST_EXTENSION else extension
    if "\0" in chosen or len(chosen.encode(errors="replace")) > _LONGEST_EXTENSION:
        return ""
    return chosen
