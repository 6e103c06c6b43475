"""Hold two results of `python -m benchmarks --json FILE` against each other. See benchmarks/README.md.

python -m benchmarks.compare OLD.json NEW.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from benchmarks.results import BadResults, Results, Row, Value, read_results
from benchmarks.table import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Change", "comparison_of", "main"]

BAD_INPUT = 2
#: With fewer, the range says too little: of two runs each, one row of eight that has not changed would be marked.
LEAST_RUNS = 3
HEADING = (
    f"{'what':<13} {'who':<9} {'CPU us/op':>11} {'new':>11} {'change':>8} {'noise':>6}  {'':<6}"
    f" {'x floor':>7} {'new':>7} {'change':>8} {'noise':>6}"
)


class Change(Struct, frozen=True):
    """What became of a value of which less is better."""

    old: Value
    new: Value

    @property
    def share(self) -> float:
        """How much more it is, as a share of what it was."""
        return self.new.median / self.old.median - 1

    @property
    def noise(self) -> float | None:
        """The ranges of both together, as a share of what it was; None where either is of too few runs to tell.

        Half of that, which is what the table shows, would be too little: of three runs each, one row of eight that has not changed
        would be marked, where with the whole it is one of seventy (drawn from normal distributions).
        """
        if self.old.noise is None or self.new.noise is None:
            return None
        if min(self.old.count, self.new.count) < LEAST_RUNS:
            return None
        return 2 * (self.old.noise + self.new.noise) / self.old.median

    @property
    def mark(self) -> str:
        """`better` or `worse`, if the change is more than noise; nothing otherwise."""
        if self.noise is None or abs(self.share) <= self.noise:
            return ""
        return "better" if self.share < 0 else "worse"

    def figures(self) -> str:
        """Return the change and the noise in percent."""
        noise = "?" if self.noise is None else f"{self.noise * 100:.0f} %"
        return f"{self.share * 100:>+6.0f} % {noise:>6}"


def _cells(
    old: Value | None, new: Value | None, width: int, scale: float, *, comparable: bool = True
) -> str:
    """Return two values beside each other, and how the second differs; blanks where either is missing.

    No change is marked of values that are not comparable.
    """
    if old is None or new is None:
        return " " * (2 * width + 25)
    change = Change(old, new)
    return (
        f"{old.median * scale:>{width},.2f} {new.median * scale:>{width},.2f} {change.figures()}"
        f"  {change.mark if comparable else '':<6}"
    )


def _row(old: Results, new: Results, one: Row, other: Row) -> str:
    line = (
        f"{one.name:<13} {one.contender:<9}"
        f" {_cells(one.cpu, other.cpu, 11, 1e6, comparable=old.machine == new.machine)}"
        f" {_cells(old.ratio(one), new.ratio(other), 7, 1)}"
    )
    faults = [
        f"{when}: {'; '.join(row.faults)}"
        for when, row in (("old", one), ("new", other))
        if row.faults
    ]
    return f"{line.rstrip()}  {', '.join(faults)}".rstrip()


def _differences(old: Results, new: Results) -> list[str]:
    """Return the lines that say what else differs than the figures."""
    lines = []
    if old.machine != new.machine:
        lines += [
            "The machine differs, so hold the ratios to the floor against each other, not the times:",
            f"  old  {describe(old.machine)}",
            f"  new  {describe(new.machine)}",
        ]
    changed = [
        f"{name} {old.versions.get(name, 'none')} -> {new.versions.get(name, 'none')}"
        for name in {**old.versions, **new.versions}
        if old.versions.get(name) != new.versions.get(name)
    ]
    if changed:
        lines += [
            "Versions differ; where broker, store or Python do, the ratios to the floor are what can be compared:",
            f"  {', '.join(changed)}",
        ]
    return lines


def comparison_of(old: Results, new: Results) -> str:
    """Return everything that there is to say, as lines."""
    lines = [
        f"old  {old.taken}, load average {old.load_average[0]:.2f}",
        f"new  {new.taken}, load average {new.load_average[0]:.2f}",
        *_differences(old, new),
        "",
        HEADING,
    ]
    others = {row.key: row for row in new.rows}
    known = {row.key for row in old.rows}
    lines += [_row(old, new, row, others[row.key]) for row in old.rows if row.key in others]
    alone = (
        ("old", [row for row in old.rows if row.key not in others]),
        ("new", [row for row in new.rows if row.key not in known]),
    )
    for which, rows in alone:
        if rows:
            names = ", ".join(f"{row.name} {row.contender}" for row in rows)
            lines.append(f"only in {which}: {names}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare two files; end with 2, and one line that says why, when either is not what it should be."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args(arguments)
    try:
        old, new = read_results(options.old), read_results(options.new)
    except BadResults as error:
        print(error, file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None
    print(comparison_of(old, new))


if __name__ == "__main__":
    main()
