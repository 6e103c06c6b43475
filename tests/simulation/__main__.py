"""Simulations by the command line.

python -m tests.simulation SEED                                 one, with all that happened in it
python -m tests.simulation --seeds 10000 --processes 2          many, with a summary
"""

from __future__ import annotations

import argparse
import os
import sys

from tests.simulation.campaign import run_campaign
from tests.simulation.run import run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("seed", nargs="?", type=int, help="one seed, which is told event by event")
    parser.add_argument("--seeds", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (0)")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="how many at a time"
    )
    given = parser.parse_args()
    if given.seed is None:
        return run_campaign(given.first, given.seeds, given.processes)
    outcome = run_seed(given.seed)
    print(outcome.describe())
    return bool(outcome.violations)


if __name__ == "__main__":
    sys.exit(main())
