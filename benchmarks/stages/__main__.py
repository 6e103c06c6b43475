"""Measure one contender in one stage, once, and print what it took as a line of JSON. See benchmarks/README.md.

python -m benchmarks.stages STAGE CONTENDER [--count N]
"""

from __future__ import annotations

import argparse
import dataclasses

import msgspec

from benchmarks.bench import clean_up_when_told_to_stop, failures_in_one_line, open_bench
from benchmarks.results import Row
from benchmarks.stages.catalogue import STAGES, stage_named
from benchmarks.stages.measuring import run_once


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    parser.add_argument("stage", choices=[stage.name for stage in STAGES])
    everybody = dict.fromkeys(each.name for stage in STAGES for each in stage.contenders)
    parser.add_argument("contender", choices=list(everybody))
    parser.add_argument("--count", type=int, help="operations (default: the stage's own number)")
    return parser.parse_args()


def main() -> None:
    """Run the one; end with 1 when something was not as it should be."""
    options = arguments()
    clean_up_when_told_to_stop()
    stage = stage_named(options.stage)
    try:
        contender = stage.contender(options.contender)
    except KeyError:
        names = ", ".join(each.name for each in stage.contenders)
        raise SystemExit(f"{options.contender} is not in {stage.name}: {names}") from None
    if contender.missing:
        raise SystemExit(f"{contender.name}: {contender.missing}")
    if options.count is not None:
        # Two messages are published for each fragment.
        stage = dataclasses.replace(stage, count=max(2, options.count + options.count % 2))
    with failures_in_one_line(), open_bench() as bench:
        figures, faults = run_once(bench, stage, contender)
    row = Row("stage", stage.name, contender.name, [figures], list(faults))
    print(msgspec.json.encode(row).decode())
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
