"""Dead letters as a table: two lines each that fit a terminal, or one that is not cut, or JSON.

What is shown is kept until the letters have gone back, so that nobody who reads slowly keeps them from others. It is kept as bytes:
a text with one character beyond Latin takes two or four for each.
"""

from __future__ import annotations

import json
import re
from contextlib import aclosing
from datetime import UTC
from io import BytesIO
from typing import TYPE_CHECKING, Final, Literal, TextIO, TypeAlias
from unicodedata import combining, east_asian_width

from iterum_sidecar.dead_letters.choosing import by_kind
from iterum_sidecar.dead_letters.letter import read_letter
from iterum_sidecar.local.progress import count, printable

if TYPE_CHECKING:
    from iterum_sidecar.dead_letters.choosing import Choosing
    from iterum_sidecar.dead_letters.letter import Letter
    from iterum_sidecar.dead_letters.reading import Reading

__all__ = ["Form", "Listing", "cut"]

#: A step's name begins with the pipeline's hash (contract, section 9), which tells nothing within one pipeline.
_HASH: Final = re.compile(r"[0-9a-z]{32}-(?=.)")
#: Characters of the reason's indent, and the fewest that a line may have.
_INDENT: Final = 4
_NARROWEST: Final = 80
_TIME: Final = "%Y-%m-%d %H:%M:%S"


Form: TypeAlias = Literal["text", "wide", "json"]


class Listing:
    """Puts down what is chosen of a queue; `width` is that of a line of text, and with `narrows` not all were asked for."""

    changes: Final = False

    def __init__(self, form: Form, queue: str, *, width: int, narrows: bool) -> None:
        self._form = form
        self._queue = queue
        self._width = max(width, _NARROWEST)
        self._narrows = narrows
        self._rows = BytesIO()
        self.problems: list[str] = []

    async def run(self, reading: Reading, choosing: Choosing) -> None:
        """Go through the queue; nothing of it is changed.

        Raises:
            NotDone: letters were asked for that are not there.
            ServiceLost.
        """
        async with aclosing(reading.letters()) as letters:
            async for delivery in letters:
                letter = read_letter(delivery)
                if choosing.takes(letter):
                    self.add(letter)
        if self._narrows:
            choosing.conclude()

    def add(self, letter: Letter) -> None:
        """Put one letter down."""
        if self._form == "json":
            row = f"{',' if self._rows.tell() else ''}\n{json.dumps(letter.fields())}"
        elif self._form == "wide":
            row = f"{_wide(letter)}\n"
        else:
            row = f"{_head(letter, self._width)}\n"
            if letter.reason:
                row += f"{' ' * _INDENT}{cut(letter.reason, self._width - _INDENT)}\n"
        self._rows.write(row.encode())

    def write_json(self, output: TextIO, rest: dict[str, object]) -> None:
        """Write one object of JSON: the `rest`, and the letters, a line each."""
        output.write(f'{json.dumps(rest)[:-1]}, "letters": [')
        self._write_rows(output)
        output.write("\n]}\n")

    def write_table(self, output: TextIO) -> None:
        """Write what was put down, with the titles of the columns above."""
        output.write(f"{_WIDE_TITLES if self._form == 'wide' else _TITLES}\n")
        self._write_rows(output)

    def _write_rows(self, output: TextIO) -> None:
        self._rows.seek(0)
        output.writelines(line.decode() for line in self._rows)

    def tell(self, output: TextIO, choosing: Choosing) -> None:
        """Write the table with what it is of above and how many there are of each kind below, or one object of JSON."""
        total, fitting = choosing.seen.total(), choosing.fitting.total()
        queue = printable(self._queue)
        if self._form == "json":
            rest = {"total": total, "by_kind": dict(choosing.seen), "fitting": fitting}
            self.write_json(output, {"queue": self._queue} | rest)
        elif choosing.has_no_queue:
            output.write(f"no dead letters: there is no queue {queue}\n")
        elif not total:
            output.write(f"no dead letters in {queue}\n")
        else:
            output.write(f"{count(total, 'dead letter')} in {queue}\n\n")
            self.write_table(output)
            end = by_kind(choosing.fitting)
            if self._narrows:
                end = f"{fitting:,} of {total:,} fit: {end}"
            if choosing.chosen < fitting:
                shown = "one is" if choosing.chosen == 1 else f"{choosing.chosen:,} are"
                end += f"; the first {shown} shown"
            output.write(f"\n{end}\n")


def cut(text: str, width: int) -> str:
    """Return a text in one line of at most `width` columns of a terminal, which it cannot steer."""
    line = printable(" ".join(text.split()))
    if line.isascii():
        return line if len(line) <= width else f"{line[: width - 1]}…"
    used = kept = 0
    for place, character in enumerate(line, 1):
        used += _columns(character)
        if used < width:
            kept = place
        elif used > width:
            return f"{line[:kept]}…"
    return line


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if combining(each) else 2 if east_asian_width(each) in "WF" else 1 for each in text
    )


def _cell(text: str, width: int) -> str:
    shown = cut(text, width)
    return shown + " " * (width - _columns(shown))


_TITLES: Final = f"{'ID':12}  {'TIME (UTC)':19}  {'KIND':21}  ATTEMPTS  STEP"
_WIDE_TITLES: Final = (
    f"{'ID':69}  {'TIME (UTC)':19}  {'KIND':21}  ATTEMPTS  RETRIES  {'STEP':40}  REASON"
)


def _head(letter: Letter, width: int) -> str:
    step = _HASH.sub("", letter.step, count=1)
    head = (
        f"{letter.short_name:12}  {_time(letter):19}  {_cell(letter.kind, 21)}  {letter.attempts:8}"
    )
    return f"{head}  {cut(step, width - _columns(head) - 2)}".rstrip()


def _wide(letter: Letter) -> str:
    return (
        f"{letter.name:69}  {_time(letter):19}  {printable(letter.kind):21}  {letter.attempts:8}"
        f"  {letter.retries:7}  {printable(letter.step) or '-':40}  {printable(' '.join(letter.reason.split()))}"
    )


def _time(letter: Letter) -> str:
    return "-" if letter.moment is None else letter.moment.astimezone(UTC).strftime(_TIME)
