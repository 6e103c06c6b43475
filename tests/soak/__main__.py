"""Soak: `python -m tests.soak --minutes 30 --seed 1`. Prints what was done to two sidecars, and what was lost by it; 1 where anything was."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from .report import failures_of, report
from .soak import soak

MEMORY = Path("/dev/shm")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="how long faults happen (default: %(default)g)"
    )
    parser.add_argument(
        "--seed", type=int, help="the same seed draws the same faults (default: one that is drawn)"
    )
    parser.add_argument(
        "--rabbitmq",
        type=int,
        choices=(3, 4),
        default=3,
        help="its version; 3: the one that is installed",
    )
    parser.add_argument("--queues", choices=("classic", "quorum"), default="classic")
    parser.add_argument(
        "--directory", type=Path, help="where everything lies (default: in memory, where there is)"
    )
    return parser.parse_args()


def main() -> int:
    """Run one soak and print its tables."""
    told = arguments()
    seed = secrets.randbelow(1_000_000) if told.seed is None else told.seed
    parent = told.directory or (MEMORY if MEMORY.is_dir() else None)
    directory = Path(tempfile.mkdtemp(prefix="soak-", dir=parent))
    directory.chmod(0o755)  # the broker's user must get in
    command = (
        f"python -m tests.soak --minutes {told.minutes:g} --seed {seed}"
        f" --rabbitmq {told.rabbitmq} --queues {told.queues}"
    )
    print(f"{command}\nlogs in {directory} until it has ended well", flush=True)
    outcome = soak(seed, told.minutes * 60, directory, rabbitmq=told.rabbitmq, queues=told.queues)
    print(report(outcome))
    failures = failures_of(outcome)
    if failures:
        print("\n".join(("", "FAILED", *failures)))
        print(f"\n{command}\nlogs: {directory}")
        print("(The same seed draws the same faults; what they meet is never twice the same.)")
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
