"""The command of a step in a local run: where its program is, and which files beside the pipeline file it names."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["is_our_python", "missing_scripts", "named_files", "program_file", "resolve_command"]

#: The interpreter that runs us, so that a step sees the packages that are installed beside us.
_PYTHONS = frozenset({"python", "python3"})

#: What a word ends in that can hardly be anything but a program's text.
_SCRIPTS = frozenset(
    (".py", ".sh", ".bash", ".r", ".jl", ".pl", ".rb", ".js", ".mjs", ".ts", ".lua", ".php", ".jar")
)
#: What follows these is a program's text or a module's name, and never a file to look for.
_NO_FILE_FOLLOWS = frozenset({"-c", "-m", "-e"})


def resolve_command(command: Sequence[str], directory: Path) -> list[str]:
    """Return the command as it can be run from any working directory.

    A first word with a `/`, or one that is a file in `directory`, is made an absolute path, and so is every other word that is a file
    there, unless it begins with `-`. `python` and `python3` as the first word mean the interpreter that runs us (`sys.executable`), so that
    a step sees the same installed packages; write a path for another one. Any other first word is left to be found on PATH.
    """
    if not command:
        return []
    if is_our_python(command[0], directory):
        first = sys.executable
    else:
        first = str(program_file(command[0], directory) or command[0])
    rest = [
        _absolute(word, directory) if _is_file(word, directory) else word for word in command[1:]
    ]
    return [first, *rest]


def named_files(command: Sequence[str], directory: Path) -> list[Path]:
    """Return the regular files that words of the command name, absolute, each once, in the order of the words.

    They are those that `resolve_command` makes absolute; a program that is found on PATH is none of them.
    """
    words = [word for word in command if _is_file(word, directory)]
    return [Path(word) for word in dict.fromkeys(_absolute(word, directory) for word in words)]


def is_our_python(word: str, directory: Path) -> bool:
    """Tell whether a first word means the interpreter that runs us."""
    return word in _PYTHONS and bool(sys.executable) and not _is_file(word, directory)


def program_file(word: str, directory: Path) -> Path | None:
    """Return the file that a first word means, absolute, whether it is there or not; None when it is to be found on PATH."""
    if "/" in word or _is_file(word, directory):
        return Path(_absolute(word, directory))
    return None


def missing_scripts(command: Sequence[str], directory: Path) -> Iterator[tuple[int, Path]]:
    """Yield the words after the first that look like a script's file and are none: their places, and where the file should be."""
    for number, word in enumerate(command[1:], 1):
        looks_like_one = os.path.splitext(word)[1].lower() in _SCRIPTS and not word.startswith("-")
        plain = not any(character.isspace() or character in "*\0" for character in word)
        if (
            looks_like_one
            and plain
            and "://" not in word
            and command[number - 1] not in _NO_FILE_FOLLOWS
            and not _is_file(word, directory)
        ):
            yield number, Path(_absolute(word, directory))


def _is_file(word: str, directory: Path) -> bool:
    # os.path.isfile, unlike Path.is_file, takes a word that is too long for a name, or has a NUL, for no file.
    return not word.startswith("-") and os.path.isfile(os.path.join(directory, word))


def _absolute(word: str, directory: Path) -> str:
    return str(directory.absolute() / word)
