"""Drive a sidecar through the loads and print what each took. See README.md.

python -m benchmarks.journey [--load NAME] [--runs N] [--volumes DIR] [--versus 'COMMAND'] [--tls] [--json FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import statistics
from pathlib import Path

from benchmarks.bench import (
    at_least_one,
    clean_up_when_told_to_stop,
    failures_in_one_line,
    open_bench,
)
from benchmarks.measure import LOADS, Load, Run, measure
from benchmarks.pod import SIDECAR

HEADING = (
    f"{'load':<10} {'command':<11} {'fragments/s':>11} {'CPU ms/fragment':>15} {'peak MB':>8}"
    f" {'to first s':>10} {'to exit s':>9}  verified"
)


def middle(runs: list[Run]) -> Run:
    """Return the median of each figure, and every fault of every run."""
    return Run(
        rate=statistics.median(run.rate for run in runs),
        cpu=statistics.median(run.cpu for run in runs),
        memory=round(statistics.median(run.memory for run in runs)),
        first_output=statistics.median(run.first_output for run in runs),
        end=statistics.median(run.end for run in runs),
        faults=tuple(dict.fromkeys(fault for run in runs for fault in run.faults)),
    )


def row(load: str, command: str, run: Run) -> str:
    """Return one line of the table."""
    return (
        f"{load:<10} {command:<11} {run.rate:>11,.0f} {run.cpu * 1000:>15.3f} {run.memory / 1e6:>8.1f}"
        f" {run.first_output:>10.2f} {run.end:>9.2f}  {'; '.join(run.faults) or 'yes'}"
    )


def ratios(load: str, one: Run, other: Run, name: str = "ratio") -> str:
    """Return a line that says how the first command compares with the second."""
    return (
        f"{load:<10} {name:<11} {one.rate / other.rate:>11.2f} {one.cpu / other.cpu:>15.2f}"
        f" {one.memory / other.memory:>8.2f} {one.first_output / other.first_output:>10.2f}"
        f" {one.end / other.end:>9.2f}"
    )


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.journey", description=__doc__)
    parser.add_argument(
        "--command",
        default=shlex.join(SIDECAR),
        help="the sidecar to measure (default: %(default)s)",
    )
    parser.add_argument(
        "--versus", help="another one, in turn with the first; ratios are printed too"
    )
    parser.add_argument(
        "--load",
        action="append",
        choices=[load.name for load in LOADS],
        help="a load to run (default: all; may be repeated)",
    )
    parser.add_argument(
        "--runs", type=at_least_one, default=1, help="runs of each load (default: %(default)s)"
    )
    parser.add_argument(
        "--tls",
        action="store_true",
        help="each command over TLS too, in turn with itself without; ratios are printed too",
    )
    parser.add_argument(
        "--volumes",
        type=Path,
        help="a directory of the file system that the volumes are to be on (default: in memory)",
    )
    parser.add_argument("--json", type=Path, help="a file for the figures of every run")
    return parser.parse_args()


def compare(options: argparse.Namespace, loads: list[Load]) -> dict[str, dict[str, list[Run]]]:
    """Run everything, printing as it goes; return all runs by load and command."""
    commands = {"sidecar": options.command}
    if options.versus:
        commands["versus"] = options.versus
    every: dict[str, dict[str, list[Run]]] = {}
    with open_bench(tls=options.tls) as bench:
        every_peers = [bench.peers, bench.tls_peers] if options.tls else [bench.peers]
        contenders = {
            f"{label}{' tls' if peers.store.tls else ''}": (command, peers)
            for label, command in commands.items()
            for peers in every_peers
        }
        print(HEADING)
        for load in loads:
            runs: dict[str, list[Run]] = {label: [] for label in contenders}
            for _ in range(options.runs):
                for label, (command, peers) in contenders.items():
                    runs[label].append(measure(load, command, peers, options.volumes))
            medians = {label: middle(done) for label, done in runs.items()}
            for label, median in medians.items():
                print(row(load.name, label, median), flush=True)
            if options.versus:
                print(ratios(load.name, medians["sidecar"], medians["versus"]), flush=True)
            if options.tls:
                for label in commands:
                    over_tls, plain = medians[f"{label} tls"], medians[label]
                    print(ratios(load.name, over_tls, plain, "tls/plain"), flush=True)
            every[load.name] = runs
    return every


def main() -> None:
    """Run the loads that the command line asks for; end with 1 when something was not as it should be."""
    options = arguments()
    clean_up_when_told_to_stop()
    loads = [load for load in LOADS if options.load is None or load.name in options.load]
    with failures_in_one_line():
        every = compare(options, loads)
    if options.json:
        figures = {
            load: {label: [dataclasses.asdict(run) for run in done] for label, done in runs.items()}
            for load, runs in every.items()
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if any(
        run.faults
        for runs in every.values()
        for run in runs["sidecar"] + runs.get("sidecar tls", [])
    ):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
