"""How far a run is, as plain data, and the words in which people are told of it."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

__all__ = [
    "Line",
    "Rates",
    "RunProgress",
    "State",
    "StepProgress",
    "as_rate",
    "as_size",
    "as_time",
    "count",
    "in_one_line",
    "picture",
    "printable",
]

State: TypeAlias = Literal["waits", "works", "ended", "skipped", "broken"]
#: Texts of one line, each with its style as rich names it.
Line: TypeAlias = list[tuple[str, str]]

#: Seconds over which a rate is told: long enough not to flicker, short enough to show a stall.
WINDOW = 5.0
#: A rate over less than this many seconds is chance.
_SHORTEST_SPAN = 0.5
#: Samples closer together than this many seconds add nothing.
_SAMPLE_EVERY = 0.1
#: With fewer fragments than this in the window, time left is told by the average of the whole run.
_ENOUGH = 5

#: Blanks between two columns of the table.
_GAP = 2
_LONGEST_BAR = 40
_SHORTEST_BAR = 10
#: Lines of the picture that are no step's: two above, what is hidden, and the line of the cursor.
_LINES_AROUND = 4


@dataclass(slots=True)
class StepProgress:
    """How far one step is; all are counts of fragments, but for `files`, `bytes` and `restarts`."""

    name: str
    instances: int = 1
    waiting: int = 0
    """Come to this step, and not in work yet."""
    in_work: int = 0
    done: int = 0
    """Finished well by this run."""
    failed: int = 0
    done_before: int = 0
    """Finished by earlier runs; not among `done`."""
    files: int = 0
    """Results that this run made."""
    bytes: int = 0
    """Size of these results."""
    restarts: int = 0
    """How often a transformation of this step died and was started again."""
    state: State = "waits"
    expected: int | None = None
    """All fragments that will have come when upstream has ended, those done before among them; None while not known."""

    @property
    def finished(self) -> int:
        """Fragments that this run is through with, well or not."""
        return self.done + self.failed

    @property
    def remaining(self) -> int | None:
        """Fragments that are still to be finished, or None while that is not known."""
        if self.state in {"ended", "skipped"}:
            return 0
        if self.expected is None:
            return None
        return max(self.expected - self.done_before - self.finished, self.waiting + self.in_work)


@dataclass(slots=True)
class RunProgress:
    """How far a run is; `steps` in the order in which files pass through them."""

    pipeline: str
    first_fragments: int = 0
    """Fragments that the input became."""
    steps: list[StepProgress] = field(default_factory=list)
    results: int = 0
    """Files that this run delivered to the output folder."""
    results_before: int = 0
    """Files that earlier runs delivered and that still hold."""
    failed: int = 0
    """Fragments that were set aside."""


class Rates:
    """How fast each step is, from samples of the last few seconds. Times are seconds of one clock, given by the caller."""

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self._samples: dict[str, deque[tuple[float, int]]] = {}
        self._begun: dict[str, tuple[float, int]] = {}

    def note(self, step: StepProgress, now: float) -> None:
        """Take a sample of a step."""
        samples = self._samples.setdefault(step.name, deque())
        sample = (now, step.finished)
        begun = self._begun.setdefault(step.name, sample)
        if step.finished == begun[1] and not step.in_work:
            # It has not begun to work: what it waited says nothing of how fast it is.
            self._begun[step.name] = sample
            samples.clear()
        elif len(samples) > 1 and now - samples[-2][0] < _SAMPLE_EVERY:
            samples.pop()
        samples.append(sample)
        while len(samples) > 1 and samples[1][0] <= now - self._window:
            samples.popleft()

    def rate(self, step: StepProgress, now: float) -> float | None:
        """Return the fragments per second that a step finished in the window, or None while it is too early to tell."""
        samples = self._samples.get(step.name)
        if not samples or now - samples[0][0] < _SHORTEST_SPAN:
            return None
        return (samples[-1][1] - samples[0][1]) / (now - samples[0][0])

    def time_left(self, step: StepProgress, now: float) -> float | None:
        """Return the seconds until a step has finished all that will come, or None while no one can know."""
        remaining, rate = step.remaining, self.rate(step, now)
        if remaining is None or remaining == 0:
            return remaining
        if rate is None:
            return None
        samples = self._samples[step.name]
        if samples[-1][1] - samples[0][1] < _ENOUGH:
            since, before = self._begun[step.name]
            rate = (samples[-1][1] - before) / (now - since)
        return remaining / rate if rate > 0 else None


def picture(
    progress: RunProgress,
    rates: Rates,
    now: float,
    seconds: float,
    size: tuple[int, int | None],
    signs: str = "━─",
) -> list[Line]:
    """Return a table of a run, a row for each step, as it fits `size` columns and rows; None for all rows.

    `seconds` is how long the run has lasted, `signs` are what a bar consists of where it is full and where it is empty.
    Where there is no room, columns are left out in the order of their use, then rows of steps that are not at work.
    """
    width, height = size
    steps = _shown(progress.steps, height)
    columns, bar = _fitting(_columns(steps, rates, now, longest_name=max(8, width // 4)), width)
    titles, *rows = zip(*(column.lines for column in columns), strict=True)
    lines = [_headline(progress, seconds), [("".join(titles), "dim")]]
    for step, row in zip(steps, rows, strict=True):
        styles = _styles(step)
        cells = [
            (cell, styles.get(each.title, "")) for each, cell in zip(columns, row, strict=True)
        ]
        lines.append([*cells, *_bar(step, bar, signs)])
    if hidden := len(progress.steps) - len(steps):
        lines.append([(f"and {count(hidden, 'more step')}", "dim")])
    return lines


@dataclass(slots=True)
class _Column:
    title: str
    cells: list[str]
    rank: int
    """Which one is lost where there is no room: that of the highest rank first."""
    least: int = 0
    """A width that keeps the column from jumping while its numbers grow."""

    @property
    def width(self) -> int:
        return max(self.least, len(self.title), *map(len, self.cells), 0)

    @property
    def lines(self) -> list[str]:
        """The title and the cells, all of one width and with their gap; a step's name to the left, numbers to the right."""
        width = self.width
        if self.title == "step":
            return [line.ljust(width) for line in (self.title, *self.cells)]
        return [line.rjust(_GAP + width) for line in (self.title, *self.cells)]


def _fitting(columns: list[_Column], width: int) -> tuple[list[_Column], int]:
    """Return the columns for which there is room, and the width of the bar, 0 for none."""
    room = width - 1  # A character in the last column makes some terminals wrap.
    kept: list[str] = []
    for column in sorted(columns, key=lambda each: each.rank):
        needed = column.width + _GAP * (column.title != "step")
        if room < needed and kept:
            break
        room -= needed
        kept.append(column.title)
    bar = min(_SHORTEST_BAR + max(room, 0), _LONGEST_BAR) if "" in kept else 0
    return [each for each in columns if each.title and each.title in kept], bar


def _shown(steps: list[StepProgress], height: int | None) -> list[StepProgress]:
    """Return the steps for which there is room, in their order: those at work rather than those that wait or are through."""
    room = len(steps) if height is None else max(height - _LINES_AROUND, 1)
    if len(steps) <= room:
        return steps
    importance = {"broken": 0, "works": 1, "waits": 2, "ended": 3, "skipped": 4}
    best = sorted(range(len(steps)), key=lambda index: importance[steps[index].state])[:room]
    return [steps[index] for index in sorted(best)]


def _columns(
    steps: list[StepProgress], rates: Rates, now: float, longest_name: int
) -> list[_Column]:
    failed = any(step.failed for step in steps)
    columns = [
        _Column("step", [_name(step, longest_name) for step in steps], 0),
        _Column("waiting", [str(step.waiting) for step in steps], 6),
        _Column("in work", [str(step.in_work) for step in steps], 5),
        _Column("done", [_done(step) for step in steps], 1, least=8),
        _Column("failed", [str(step.failed) for step in steps], 3 if failed else 8),
        _Column("files", [str(step.files) for step in steps], 9),
        _Column("size", [as_size(step.bytes) for step in steps], 10, least=8),
        _Column("rate", [_rate(step, rates, now) for step in steps], 7, least=6),
        _Column("left", [_left(step, rates, now) for step in steps], 2, least=9),
        _Column("", [""], 4, least=_SHORTEST_BAR),
    ]
    if any(step.restarts for step in steps):
        columns.insert(5, _Column("restarts", [str(step.restarts or "") for step in steps], 8))
    return columns


def _name(step: StepProgress, longest: int) -> str:
    times = f" x{step.instances}" if step.instances > 1 else ""
    room = longest - len(times)
    return (step.name if len(step.name) <= room else step.name[: room - 2] + "..") + times


def _done(step: StepProgress) -> str:
    done = step.done_before + step.done
    return str(done) if step.expected is None else f"{done} of {step.expected}"


def _rate(step: StepProgress, rates: Rates, now: float) -> str:
    rate = rates.rate(step, now) if step.state == "works" else None
    return "" if rate is None else as_rate(rate)


def _left(step: StepProgress, rates: Rates, now: float) -> str:
    if step.state != "works":
        return step.state
    left = rates.time_left(step, now)
    return "" if left is None else as_time(math.ceil(left), whole=True)


def _headline(progress: RunProgress, seconds: float) -> Line:
    results = count(progress.results + progress.results_before, "result")
    return [
        (printable(progress.pipeline), "bold"),
        (f"  {count(progress.first_fragments, 'fragment')}  {results}", ""),
        (f"  {progress.failed} failed" if progress.failed else "", "bold red"),
        (f"  {as_time(seconds, whole=True)}", ""),
    ]


def _styles(step: StepProgress) -> dict[str, str]:
    """Return the style of each column's cell, where it has one."""
    states = {"works": "", "ended": "green", "broken": "bold red"}
    return {
        "step": "bold" if step.state == "works" else "",
        "failed": "bold red" if step.failed else "dim",
        "restarts": "yellow",
        "left": states.get(step.state, "dim"),
    }


def _bar(step: StepProgress, width: int, signs: str) -> Line:
    if not width:
        return []
    full, empty = signs[0], signs[1]
    before, done, failed = _bar_parts(step, width)
    # Faint while it is not known how much will come: such a bar may shrink.
    style = "green" if step.expected is not None or step.state == "ended" else "dim"
    parts = [(before, "cyan"), (done, style), (failed, "red")]
    rest = (empty * (width - before - done - failed), "dim")
    return [(" " * _GAP, ""), *((full * number, style) for number, style in parts), rest]


def _bar_parts(step: StepProgress, width: int) -> tuple[int, int, int]:
    """Return how much of a bar of `width` is done before, done and failed.

    While it is not known how much will come, the whole is what has come so far.
    """
    come = step.done_before + step.finished + step.waiting + step.in_work
    whole = max(step.expected or 0, come)
    ends, total = [0], 0
    for part in (step.done_before, step.done, step.failed):
        total += part
        # What there is at all is seen, and only what is all fills the bar.
        end = total * width // whole if whole else 0
        ends.append(min(max(end, ends[-1] + bool(part)), width))
    return ends[1], ends[2] - ends[1], ends[3] - ends[2]


def in_one_line(progress: RunProgress, rates: Rates, now: float) -> str:
    """Return how far a run is in one line: each step at work, then which ones wait or are through, then results."""
    parts = [
        _work(step, rates, now) for step in progress.steps if step.state in {"works", "broken"}
    ]
    for state, word in (("waits", "waiting"), ("ended", "ended"), ("skipped", "skipped")):
        names = [step.name for step in progress.steps if step.state == state]
        if names:
            parts.append(f"{', '.join(names) if len(names) <= 3 else f'{len(names)} steps'} {word}")
    parts.append(count(progress.results + progress.results_before, "result"))
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    return "; ".join(parts)


def _work(step: StepProgress, rates: Rates, now: float) -> str:
    parts = [f"{step.name} {_done(step)}"]
    if step.failed:
        parts.append(f"{step.failed} failed")
    if step.state == "broken":
        return ", ".join([*parts, "broken"])
    if rate := rates.rate(step, now):
        parts.append(as_rate(rate))
    if left := rates.time_left(step, now):
        parts.append(f"{as_time(math.ceil(left), whole=True)} left")
    return ", ".join(parts)


def as_time(seconds: float, *, whole: bool = False) -> str:
    """Return a length of time for people: 3.2 s, 45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h; `whole` leaves out tenths."""
    if not whole and seconds < 9.95:
        return f"{max(seconds, 0.1):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def as_size(size: int) -> str:
    """Return a number of bytes for people: 512 B, 1.2 KiB, 340 MiB, 1.2 GiB."""
    number, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if number < 999.5:
            break
        number, unit = number / 1024, larger
    return f"{number:.1f} {unit}" if unit != "B" and number < 99.95 else f"{number:.0f} {unit}"


def as_rate(rate: float) -> str:
    """Return a rate in fragments for people: 120/s, 8.3/s, 24/min."""
    if rate >= 9.95:
        return f"{rate:.0f}/s"
    return f"{rate:.1f}/s" if rate >= 0.95 or rate == 0 else f"{rate * 60:.0f}/min"


def count(number: int, one: str, several: str = "") -> str:
    """Return a number with its word: 1 file, 2 files; `several` where an s does not make the plural."""
    return f"{number} {one if number == 1 else several or one + 's'}"


def printable(text: str, *, lines: bool = False) -> str:
    """Return a text in one line that cannot steer a terminal: all that is no visible character is told by its escape.

    With `lines` a text of several lines stays one, and a tab becomes blanks.
    """
    if lines:
        return "\n".join(printable(line.expandtabs(4)) for line in text.split("\n"))
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def _escape(character: str) -> str:
    code = ord(character)
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )
