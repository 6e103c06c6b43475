"""Measure what a fragment costs as more is queued, connected, in it, or beside it. See benchmarks/README.md.

python -m benchmarks.scale [--curve NAME] [--runs N] [--instances N] [--calls] [--json FILE] [--read FILE] [--plot FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from benchmarks.bench import (
    at_least_one,
    clean_up_when_told_to_stop,
    failures_in_one_line,
    open_bench,
)
from benchmarks.scale.curves import CURVES, Curve, Figures, Point, measure_curve

HEADING = (
    f"{'curve':<12} {'x':>9} {'':<14} {'CPU us':>7} {'(least to most)':>17} {'of each':<9}"
    f" {'calls':>6} {'peak MB':>8} {'a second':>9}  verified"
)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument(
        "--curve",
        action="append",
        choices=[curve.name for curve in CURVES],
        help="a curve to measure (default: all; may be repeated)",
    )
    parser.add_argument(
        "--runs", type=at_least_one, default=3, help="runs of each point (default: 3)"
    )
    parser.add_argument(
        "--instances", type=at_least_one, default=2, help="the most sidecars (default: 2)"
    )
    parser.add_argument(
        "--calls",
        action="store_true",
        help="one run more of each point, to count the calls of functions, which no busy machine changes",
    )
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument(
        "--read",
        type=Path,
        action="append",
        default=[],
        help="print and plot the figures of such a file instead of measuring (may be repeated)",
    )
    parser.add_argument("--plot", type=Path, help="a file for the picture (.svg, .png or .pdf)")
    return parser.parse_args()


def row(curve: Curve, figures: Figures) -> str:
    """Return one line of the table."""
    calls = f"{figures.calls:,.0f}" if figures.calls else "-"
    rate = f"{figures.rate:,.0f}" if figures.rate else "-"
    spread = f"({figures.least:,.0f} to {figures.most:,.0f})"
    return (
        f"{curve.name:<12} {figures.x:>9,} {figures.series:<14} {figures.cost:>7,.0f} {spread:>17}"
        f" {curve.unit:<9} {calls:>6} {figures.memory / 1e6:>8.1f} {rate:>9}"
        f"  {'; '.join(figures.faults) or 'yes'}"
    )


def with_instances(curve: Curve, most: int) -> Curve:
    """Return the curve with 1, 2, 4, … sidecars, if it is the one of instances, and as it is otherwise."""
    if curve.name != "instances":
        return curve
    first = curve.points[0]
    points: list[Point] = []
    count = 1
    while count <= most:
        points.append(dataclasses.replace(first, x=count, instances=count))
        count *= 2
    return dataclasses.replace(curve, points=tuple(points))


def measure(options: argparse.Namespace) -> dict[str, list[Figures]]:
    """Measure the curves that are asked for, printing as it goes."""
    with open_bench() as bench:
        print(HEADING)
        every: dict[str, list[Figures]] = {}
        for curve in CURVES:
            if options.curve is None or curve.name in options.curve:
                wanted = with_instances(curve, options.instances)
                every[curve.name] = measure_curve(
                    wanted, bench.peers, options.runs, counted=options.calls
                )
                for figures in every[curve.name]:
                    print(row(curve, figures), flush=True)
    return every


def read(files: list[Path]) -> dict[str, list[Figures]]:
    """Read the figures of earlier runs and print them."""
    every: dict[str, list[Figures]] = {}
    for file in files:
        told: dict[str, list[dict[str, Any]]] = json.loads(file.read_text(encoding="utf-8"))
        for name, rows in told.items():
            every[name] = [Figures(**{**each, "faults": tuple(each["faults"])}) for each in rows]
    print(HEADING)
    for curve in CURVES:
        for figures in every.get(curve.name, ()):
            print(row(curve, figures))
    return every


def main() -> None:
    """Do what the command line asks for; end with 1 when something was not as it should be."""
    options = arguments()
    clean_up_when_told_to_stop()
    with failures_in_one_line():
        every = read(options.read) if options.read else measure(options)
    if options.json:
        told = {name: [dataclasses.asdict(each) for each in rows] for name, rows in every.items()}
        options.json.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    if options.plot:
        try:
            from benchmarks.scale.picture import draw
        except ImportError:
            raise SystemExit("matplotlib is not installed: no picture") from None
        draw([(curve, every[curve.name]) for curve in CURVES if curve.name in every], options.plot)
    if any(each.faults for rows in every.values() for each in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
