"""The last lines of a log, safe to print."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["last_lines", "with_last_lines"]

_LINE_END = re.compile(r"\r\n|\n|\r")
#: What a terminal would obey and not show: the C0 and C1 control characters except tab, the line and paragraph
#: separators, and the marks that turn the direction of text.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def last_lines(
    path: str | os.PathLike[str], count: int = 20, most_bytes: int = 64 * 1024, since: int = 0
) -> list[str]:
    """Return the last `count` lines of a text file, of its last `most_bytes` only; none if there is no such file.

    `since` is an offset in the file: what stands before it is left out.

    The lines are safe to print: bytes that are not UTF-8 are replaced by U+FFFD, and a control character other than
    tab is shown as an escape such as `\\x1b`. A carriage return ends a line too, since progress bars write nothing else. A line
    whose beginning is out of reach starts with `…`.

    Raises OSError when the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = max(since if since <= size else 0, size - most_bytes)
            file.seek(begin)
            data = file.read(most_bytes)
    except FileNotFoundError:
        return []
    lines = _LINE_END.split(data.decode("utf-8", "replace"))
    if not lines[-1]:
        lines.pop()
    if begin not in {0, since} and lines:
        lines[0] = "…" + lines[0].lstrip("\ufffd")
        if len(lines) > 1:
            del lines[0]
    return [_CONTROL.sub(_escape, line) for line in lines[max(0, len(lines) - count) :]]


def with_last_lines(what: str, log: Path, count: int = 10, since: int = 0) -> str:
    """Return what happened, and below it the last `count` lines of its log since an offset, or that there are none; raises as `last_lines`."""
    lines = [f"  {line}" for line in last_lines(log, count, since=since)]
    told = f"the last lines of {log}:" if lines else f"it has written nothing to {log}"
    return "\n".join([f"{what}; {told}", *lines])


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
