"""Measure everything: a sidecar under each load and each of its stages alone, beside the floor and beside others.

python -m benchmarks [--part PART] [--load NAME] [--stage NAME] [--runs N] [--minutes N] [--versus 'COMMAND'] [--json FILE]

See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from benchmarks import pod
from benchmarks.bench import (
    at_least_one,
    clean_up_when_told_to_stop,
    failures_in_one_line,
    open_bench,
)
from benchmarks.machine import describe_machine, versions_of
from benchmarks.measure import LOADS
from benchmarks.results import FLOOR, Results
from benchmarks.rounds import journey_turns, run_rounds, stage_turns
from benchmarks.stages.catalogue import OURS, STAGES
from benchmarks.table import table_of

if TYPE_CHECKING:
    from benchmarks.stages.catalogue import Contender, Stage

SIDECAR = "sidecar"
PARTS = ("journey", "stages")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--part", action="append", choices=PARTS, help="a part to run (default: both)"
    )
    parser.add_argument(
        "--load",
        action="append",
        choices=[load.name for load in LOADS],
        help="a load of the journey (default: all; may be repeated)",
    )
    parser.add_argument(
        "--stage",
        action="append",
        choices=[stage.name for stage in STAGES],
        help="a stage (default: all; may be repeated)",
    )
    parser.add_argument(
        "--runs", type=at_least_one, default=3, help="runs of everything (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=7,
        help="begin no further round of runs that would not end by then (default: %(default)s)",
    )
    parser.add_argument(
        "--command",
        default=shlex.join(pod.SIDECAR),
        help="the sidecar to measure (default: %(default)s)",
    )
    parser.add_argument("--versus", help="another one, in turn with the first and the floor")
    parser.add_argument("--json", type=Path, help="a file for everything, for benchmarks.compare")
    options = parser.parse_args()
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json: there is no directory {options.json.parent}")
    if options.part is None:
        # Who names stages or loads alone means these alone.
        chosen = {"journey": options.load, "stages": options.stage}
        options.part = [part for part in PARTS if chosen[part]] or list(PARTS)
    return options


def stages_of(options: argparse.Namespace) -> list[tuple[Stage, list[Contender]]]:
    """Return the stages that are asked for, with those contenders that are installed; say who is left out."""
    stages = [stage for stage in STAGES if options.stage is None or stage.name in options.stage]
    missing = {
        each.name: each.missing for stage in stages for each in stage.contenders if each.missing
    }
    for name, why in missing.items():
        print(f"{name} is left out: {why}")
    return [(stage, [each for each in stage.contenders if not each.missing]) for stage in stages]


def take(options: argparse.Namespace) -> Results:
    """Measure what is asked for."""
    stages = stages_of(options) if "stages" in options.part else []
    loads = [load for load in LOADS if options.load is None or load.name in options.load]
    commands = {SIDECAR: options.command}
    if options.versus:
        commands["versus"] = options.versus
    commands[FLOOR] = shlex.join([sys.executable, "-m", "benchmarks.floor"])
    taken = f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC"
    load_average = os.getloadavg()
    with open_bench() as bench:
        turns = journey_turns(bench, loads, commands) if "journey" in options.part else []
        services = bool(turns) or any(stage.kind != "memory" for stage, _ in stages)
        turns += stage_turns(bench, stages)
        return Results(
            taken=taken,
            machine=describe_machine(bench.directory),
            versions=versions_of(bench, services=services),
            load_average=load_average,
            rows=run_rounds(turns, options.runs, options.minutes * 60),
        )


def main() -> None:
    """Measure what the command line asks for; end with 1 when something of ours was not as it should be."""
    options = arguments()
    clean_up_when_told_to_stop()
    with failures_in_one_line():
        results = take(options)
    print(table_of(results))
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    if any(row.faults for row in results.rows if row.contender in {SIDECAR, OURS}):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
