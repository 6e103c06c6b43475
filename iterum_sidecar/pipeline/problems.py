"""What can be wrong with a pipeline file, and how a person is told: each problem with its place and its remedy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from iterum_sidecar.exit_codes import ExitCode, SidecarError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from iterum_sidecar.pipeline.model import Pipeline

__all__ = [
    "Findings",
    "KeyPath",
    "PipelineRefused",
    "Problem",
    "did_you_mean",
    "nearest",
    "quoted",
    "report",
    "shown",
]

#: The order of the contract's section 9. What is of the file as a whole comes first, what is not listed after all else.
_ORDER = ("name", "input_dataset", "input_dataset_commit_hash", "fragmenter", "steps", "combiner")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
#: Characters of a value that a message repeats.
_LONGEST_SHOWN = 60

KeyPath = tuple[str | int, ...]
"""The way to a value: keys, and places in lists, from 0."""


class Problem(Struct, frozen=True, kw_only=True):
    """One thing that is wrong: where, what, and what to do about it.

    `path` leads from the top of the file to what is meant (keys and places in lists, from 0); an empty one means the whole file. A syntax
    error has its line and column in `file`. A warning is told and stops nothing.
    """

    file: str
    path: KeyPath
    message: str
    remedy: str
    severity: Literal["error", "warning"] = "error"

    @property
    def place(self) -> str:
        """Where it is, as in `pipeline.json: steps[1].input_channel`."""
        text = ""
        for part in self.path:
            if isinstance(part, int):
                text += f"[{part}]"
            else:
                text += ("." if text else "") + (part if _WORD.fullmatch(part) else quoted(part))
        return f"{self.file}: {text}" if text else self.file


class PipelineRefused(SidecarError):
    """A pipeline file cannot be used; `problems` has everything that was found.

    `rest` is the pipeline without what was refused, where enough is left to look at it.
    """

    exit_code = ExitCode.CONFIGURATION
    retryable = False

    def __init__(self, problems: Sequence[Problem], rest: Pipeline | None = None) -> None:
        super().__init__(report(problems))
        self.problems = list(problems)
        self.rest = rest


class Findings(list[Problem]):
    """The problems of one file, as they are found."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file

    def error(self, path: KeyPath, message: str, remedy: str) -> None:
        """Add what makes the pipeline unusable."""
        self.append(Problem(file=self.file, path=path, message=message, remedy=remedy))

    def warn(self, path: KeyPath, message: str, remedy: str) -> None:
        """Add what may be meant, and probably is not."""
        self.append(
            Problem(file=self.file, path=path, message=message, remedy=remedy, severity="warning")
        )


def report(problems: Iterable[Problem]) -> str:
    """Return the text that a person reads: a block for each problem, in the order of the file, and how many there are.

    Of what belongs to one step (or the fragmenter, or the combiner) errors come before warnings. Without a problem it is empty.
    """
    ordered = sorted(problems, key=_rank)
    if not ordered:
        return ""
    blocks = [
        f"{_visible(problem.place)}\n  {problem.severity}: {_visible(problem.message)}\n"
        f"  remedy: {_visible(problem.remedy)}\n"
        for problem in ordered
    ]
    errors = sum(problem.severity == "error" for problem in ordered)
    counts = [_count(errors, "error"), _count(len(ordered) - errors, "warning")]
    return "\n".join([*blocks, ", ".join(count for count in counts if count)])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `did you mean "…"? Otherwise ` with the nearest of `known`, or nothing when none is near."""
    meant = nearest(name, known)
    return "" if meant is None else f"did you mean {quoted(meant)}? Otherwise "


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return which of the other names in `known` a name is most like, or None when it is like none."""
    from difflib import get_close_matches

    found = get_close_matches(name, [each for each in known if each != name], n=1)
    return found[0] if found else None


def shown(value: object) -> str:
    """Return a value as a message repeats it: as JSON has it where it can, on one line, and not long."""
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = quoted(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"


def quoted(text: str) -> str:
    """Return a name between quotation marks, with nothing in it that a terminal would obey."""
    from json import dumps

    return _visible(dumps(text, ensure_ascii=False))


def _visible(text: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def _count(number: int, word: str) -> str:
    if number == 0:
        return ""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _rank(problem: Problem) -> tuple[int, int, bool]:
    first, second = (*problem.path, "", "")[:2]
    section = _ORDER.index(first) + 1 if first in _ORDER else len(_ORDER) + 1
    if not problem.path:
        section = 0
    number = second if isinstance(second, int) else -1
    return section, number, problem.severity == "warning"
