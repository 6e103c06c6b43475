"""What is told of a run at its end: how it went, then only what someone has to know or do."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass, field
from json import dumps
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from iterum_sidecar.local.progress import as_size, as_time, count, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Failure", "Outcome", "Places", "Renamed", "StepSummary", "Summary", "json", "text"]

Outcome: TypeAlias = Literal["done", "nothing to do", "done with failures", "interrupted", "failed"]

#: A list longer than this is cut: the rest is in the output folder, and in the JSON form.
MOST_LISTED = 10
#: A reason longer than this many characters is cut; the whole is in the failure's folder.
_LONGEST_REASON = 200
#: A line is for reading: wider than this, eyes lose the next one.
_WIDEST = 110


class StepSummary(NamedTuple):
    """What became of the fragments of one step, and how many it has made of them, those of earlier runs among these."""

    name: str
    done: int
    done_before: int
    failed: int
    made: int


class Failure(NamedTuple):
    """A fragment that was set aside: `place` holds its input files, the reason and the last lines of the log."""

    step: str
    files: Sequence[str]
    reason: str
    place: str

    @property
    def in_one_line(self) -> str:
        """What is told of it at once: the step, some of its files, and the first line of the reason."""
        first, *_ = self.reason.splitlines() or [""]
        return f"{self.step} failed on {_few(self.files, 3)}: {printable(first)}"


class Renamed(NamedTuple):
    """A result whose name was taken, and the name that it was given; `files` are inputs that it came of, some of them at least."""

    wanted: str
    given: str
    files: Sequence[str]
    taken_by: str


class Places(NamedTuple):
    """Where things are, as the user would write the paths; an empty one is not told."""

    output: str
    logs: str = ""
    lineage: str = ""
    failed: str = ""


@dataclass(slots=True)
class Summary:
    """How a run went. Lists are whole here; the text form cuts them."""

    pipeline: str
    outcome: Outcome
    seconds: float
    first_fragments: int
    results_new: int
    results_before: int
    places: Places
    exit_code: int
    steps: list[StepSummary] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    renamed: list[Renamed] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    """Results that this run would not make: what they came of is gone, or a step is another one; still there."""
    pruned: list[str] = field(default_factory=list)
    """The same, removed by this run."""
    state_bytes: int = 0
    """What is kept to resume from."""
    how_to_go_on: str | None = None
    reason: str | None = None
    """Why the run failed as a whole, in one sentence without a full stop."""


def json(summary: Summary) -> str:
    """Return a summary as one line of JSON in ASCII, with every field and nothing cut."""
    return dumps(_fields(summary))


def _fields(summary: Summary) -> dict[str, object]:
    fields = asdict(summary)
    for name in ("steps", "failures", "renamed"):
        fields[name] = [each._asdict() for each in getattr(summary, name)]
    fields["places"] = {name: path for name, path in summary.places._asdict().items() if path}
    return fields


def text(summary: Summary, width: int = 80) -> str:
    """Return a summary for people, without an end of line; no line is wider than `width` unless a name is."""
    width = max(min(width, _WIDEST), 40)
    blocks = [
        _filled(_headline(summary), width),
        _steps(summary),
        _barren(summary, width),
        _failures(summary, width),
        _renamed(summary, width),
        _out_of_date(summary, width),
        _places(summary),
        _filled(summary.how_to_go_on or "", width),
    ]
    return "\n\n".join(block for block in blocks if block)


def _headline(summary: Summary) -> str:
    fragments = count(summary.first_fragments, "fragment")
    files = summary.results_new + summary.results_before
    took = as_time(summary.seconds)
    became = f"{fragments} became {count(files, 'file')}"
    if summary.results_before and summary.results_new:
        became += f", {summary.results_new} of them new,"
    match summary.outcome:
        case "nothing to do" if summary.first_fragments:
            there = count(files, "result is", "results are")
            return f"Nothing to do: {fragments}, and {there} there from earlier runs."
        case "nothing to do":
            return "Nothing to do: the input gave no fragment."
        case "done with failures":
            return f"{became} in {took}, but {count(len(summary.failures), 'fragment')} failed."
        case "interrupted":
            return f"Interrupted after {took}: {fragments}, {count(files, 'result')} so far."
        case "failed":
            why = f": {printable(summary.reason)}" if summary.reason else ""
            return f"Failed after {took}{why}."
        case _:
            return f"{became} in {took}."


def _steps(summary: Summary) -> str:
    """Tell the steps one by one where the first line is not the whole truth."""
    unusual = summary.outcome in {"interrupted", "failed", "done with failures"}
    before = any(step.done_before for step in summary.steps)
    if not unusual and not (before and summary.outcome == "done"):
        return ""
    widest = max((len(step.name) for step in summary.steps), default=0)
    return "\n".join(f"  {step.name:{widest}}  {_step(step)}" for step in summary.steps)


def _step(step: StepSummary) -> str:
    parts = [f"{step.done} done"]
    if step.done_before:
        parts.append(f"{step.done_before} done by earlier runs")
    if step.failed:
        parts.append(f"{step.failed} failed")
    return ", ".join(parts)


def _barren(summary: Summary, width: int) -> str:
    """Ask of each step that made nothing at all whether that was meant: a result that was not given back is lost silently."""
    if summary.outcome in {"interrupted", "failed"}:
        return ""
    lines = []
    for step in summary.steps:
        done = step.done + step.done_before
        if done and not step.made and not step.failed:
            asked = "does its function create, return or yield its results?"
            told = f"{step.name} made nothing of {count(done, 'fragment')}: {asked}"
            lines.append(_filled(told, width, hang="  "))
    return "\n".join(lines)


def _failures(summary: Summary, width: int) -> str:
    if not summary.failures:
        return ""
    what = "Failed, each with its input files, the reason and the last lines of the log:"
    lines = [_filled(what, width)]
    for failure in summary.failures[:MOST_LISTED]:
        names = _few(failure.files, 3)
        lines += [
            _filled(f"{failure.step}: {names}", width, "  ", "  "),
            _filled(_cut(failure.reason), width, "    "),
            f"    {printable(failure.place)}",
        ]
    return "\n".join(lines + _more(len(summary.failures), "  "))


def _renamed(summary: Summary, width: int) -> str:
    if not summary.renamed:
        return ""
    number = len(summary.renamed)
    what = "1 result has" if number == 1 else f"{number} results have"
    lines = [_filled(f"{what} another name, since the wanted one was taken:", width)]
    for each in summary.renamed[:MOST_LISTED]:
        told = f"{each.wanted} of {_few(each.files, 3)} -> {each.given} (taken by {each.taken_by})"
        lines.append(_filled(told, width, "  ", "  "))
    return "\n".join(lines + _more(number, "  "))


def _out_of_date(summary: Summary, width: int) -> str:
    lines = []
    if number := len(summary.stale):
        what = "1 result is" if number == 1 else f"{number} results are"
        them = "it" if number == 1 else "them"
        told = f"{what} out of date: this run would not make {them} (kept; --prune removes {them})"
        lines.append(_filled(f"{told}: {_few(summary.stale)}", width, hang="  "))
    if number := len(summary.pruned):
        what = "1 result that was" if number == 1 else f"{number} results that were"
        was = "was" if number == 1 else "were"
        told = f"{what} out of date {was} removed: {_few(summary.pruned)}"
        lines.append(_filled(told, width, hang="  "))
    return "\n".join(lines)


def _places(summary: Summary) -> str:
    places = summary.places
    rows = [("results", places.output), ("logs", places.logs), ("lineage", places.lineage)]
    if summary.failures:
        rows.append(("failed", places.failed))
    lines = [f"{name:8} {printable(path)}" for name, path in rows if path]
    if summary.state_bytes:
        lines.append(f"{'kept':8} {as_size(summary.state_bytes)}, to resume from")
    return "\n".join(lines)


def _few(names: Sequence[str], most: int = MOST_LISTED) -> str:
    shown = ", ".join(printable(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} … and {len(names) - most} more"


def _more(number: int, indent: str) -> list[str]:
    return [f"{indent}… and {number - MOST_LISTED} more"] if number > MOST_LISTED else []


def _cut(reason: str) -> str:
    line = printable(" ".join(reason.split())) or "no reason was given"
    return line if len(line) <= _LONGEST_REASON else line[: _LONGEST_REASON - 1] + "…"


def _filled(paragraph: str, width: int, indent: str = "", hang: str = "") -> str:
    """Return a paragraph whose lines fit; a name is never broken, so that it can be copied."""
    return textwrap.fill(
        printable(paragraph),
        width,
        initial_indent=indent,
        subsequent_indent=indent + hang,
        break_long_words=False,
        break_on_hyphens=False,
    )
