"""How long the sidecar's event loop goes without a look at its sockets. See README.md.

python -m benchmarks.loop_lag [--load NAME] [--runs N]

An event loop that does one thing for long keeps all others waiting: heartbeats, deadlines, the other fragments. Rounds and steps are
timed in the process itself (`watched.py`), which takes a part of each round, some 5 us for each step, so the rates are no figures.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.bench import (
    at_least_one,
    clean_up_when_told_to_stop,
    failures_in_one_line,
    open_bench,
)
from benchmarks.measure import LOADS, Load, measure

if TYPE_CHECKING:
    from benchmarks.pod import Peers

WATCHED = (
    *(load for load in LOADS if load.name != "unset"),
    Load("many-files", 4, 5_000, 4 << 10, 100),
    Load("very-large", 4, 1, 256 << 20, 100),
)
HEADING = (
    f"{'load':<10} {'rounds':>7} {'median ms':>10} {'99 %':>7} {'99.9 %':>7} {'longest':>8}"
    f"  {'longest step, CPU ms':<20}  where it had waited"
)


class Seen(NamedTuple):
    """What one run has seen: the seconds of its rounds, and the longest step with where it began."""

    rounds: list[float]
    longest_step: tuple[float, str]


def observe(load: Load, peers: Peers) -> tuple[Seen, tuple[str, ...]]:
    """Run one load, and return what was seen and what was not as it should be."""
    file = peers.directory / "watched.json"
    command = shlex.join([sys.executable, "-m", "benchmarks.watched", str(file)])
    faults = measure(load, command, peers).faults
    seen = json.loads(file.read_text(encoding="utf-8"))
    return Seen(seen["rounds"], (seen["seconds"], seen["where"])), faults


def row(load: Load, runs: list[Seen]) -> str:
    """Return one line of the table: of all rounds of all runs, but for the longest, which are medians of the runs."""
    rounds = sorted(seconds * 1e3 for seen in runs for seconds in seen.rounds)
    longest = statistics.median(max(seen.rounds) * 1e3 for seen in runs)
    seconds, where = sorted(seen.longest_step for seen in runs)[len(runs) // 2]
    return (
        f"{load.name:<10} {len(rounds) // len(runs):>7,} {rounds[len(rounds) // 2]:>10.2f}"
        f" {rounds[len(rounds) * 99 // 100]:>7.2f} {rounds[len(rounds) * 999 // 1000]:>7.2f}"
        f" {longest:>8.2f}  {seconds * 1e3:<20.2f}  {where}"
    )


def main() -> None:
    """Run all loads; end with 1 when something was not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop_lag", description=__doc__)
    parser.add_argument(
        "--load",
        action="append",
        choices=[load.name for load in WATCHED],
        help="a load to run (default: all; may be repeated)",
    )
    parser.add_argument(
        "--runs", type=at_least_one, default=3, help="runs of each load (default: %(default)s)"
    )
    options = parser.parse_args()
    clean_up_when_told_to_stop()
    faults: dict[str, None] = {}
    with failures_in_one_line(), open_bench() as bench:
        print(HEADING)
        for load in WATCHED:
            if options.load is not None and load.name not in options.load:
                continue
            runs = []
            for _ in range(options.runs):
                seen, found = observe(load, bench.peers)
                runs.append(seen)
                faults |= dict.fromkeys(f"{load.name}: {fault}" for fault in found)
            print(row(load, runs), flush=True)
    if faults:
        raise SystemExit("\n".join(faults))


if __name__ == "__main__":
    main()
