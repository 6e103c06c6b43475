"""Everything that is to be measured, in rounds: in each, everybody once, in turn, so that all of them see the same machine."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.measure import POLL_SECONDS, measure
from benchmarks.results import Figures, Row
from benchmarks.stages.measuring import run_once
from testbed.process import ProcessFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.bench import Bench
    from benchmarks.measure import Load
    from benchmarks.stages.catalogue import Contender, Stage

__all__ = ["Turn", "journey_turns", "run_rounds", "stage_turns"]


@dataclasses.dataclass
class Turn:
    """One row's part of a round: `run` returns what it took, and what was not as it should be; it raises ProcessFailed."""

    row: Row
    run: Callable[[], tuple[Figures, Sequence[str]]]
    has_failed: bool = False


def journey_turns(bench: Bench, loads: Sequence[Load], commands: Mapping[str, str]) -> list[Turn]:
    """Return the turns of commands, by their labels, under each load."""
    return [
        Turn(Row("journey", load.name, label, []), _journey(bench, load, command))
        for load in loads
        for label, command in commands.items()
    ]


def _journey(bench: Bench, load: Load, command: str) -> Callable[[], tuple[Figures, Sequence[str]]]:
    def run() -> tuple[Figures, Sequence[str]]:
        taken = measure(load, command, bench.peers)
        figures = Figures(
            operations=load.fragments,
            cpu=taken.cpu * load.fragments,
            wall=max(load.fragments / taken.rate, POLL_SECONDS),
            memory=taken.memory,
        )
        return figures, taken.faults

    return run


def stage_turns(bench: Bench, stages: Sequence[tuple[Stage, Sequence[Contender]]]) -> list[Turn]:
    """Return the turns of contenders in each stage."""
    return [
        Turn(Row("stage", stage.name, contender.name, []), _stage(bench, stage, contender))
        for stage, contenders in stages
        for contender in contenders
    ]


def _stage(
    bench: Bench, stage: Stage, contender: Contender
) -> Callable[[], tuple[Figures, Sequence[str]]]:
    return lambda: run_once(bench, stage, contender)


def run_rounds(turns: Sequence[Turn], rounds: int, seconds: float) -> list[Row]:
    """Run every turn in each round; what would not end within `seconds`, as long as it has taken before, is left out of all but the first.

    Whatever a load or a stage consists of is run or left out together. Who fails is not asked again. Says on standard error
    how far it is.
    """
    began = time.monotonic()
    groups: dict[tuple[str, str], list[Turn]] = {}
    for turn in turns:
        groups.setdefault((turn.row.part, turn.row.name), []).append(turn)
    longest = dict.fromkeys(groups, 0.0)
    for number in range(1, rounds + 1):
        # What is quick first, so that as much as possible has as many runs as possible.
        for group in sorted(groups, key=longest.__getitem__):
            start = time.monotonic()
            if number > 1 and start - began + longest[group] > seconds:
                print(f"no time for run {number} of {group[1]}", file=sys.stderr, flush=True)
                continue
            for turn in groups[group]:
                if not turn.has_failed:
                    _take(turn)
            longest[group] = max(longest[group], time.monotonic() - start)
        took = time.monotonic() - began
        print(f"{number} of {rounds} rounds: {took:.0f} s", file=sys.stderr, flush=True)
    return [turn.row for turn in turns]


def _take(turn: Turn) -> None:
    row = turn.row
    try:
        figures, faults = turn.run()
    except ProcessFailed as error:
        print(f"{row.name} {row.contender}: {error}", file=sys.stderr, flush=True)
        turn.has_failed = True
        faults = [str(error).splitlines()[0]]
    else:
        row.runs.append(figures)
    row.faults += [fault for fault in faults if fault not in row.faults]
