"""Many seeds, in several processes, and what came of them in one table."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.simulation.run import run_seed

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Summary", "run_campaign", "run_some"]

#: Seconds of a processor that one seed may take: it takes hundredths of one.
SEED_LIMIT = 60
#: Seeds that a process is given at a time.
PORTION = 50
#: Seeds between two looks of Python's garbage collector.
SEEDS_A_COLLECTION = 10
#: Of so many seeds that failed all is shown; of the rest, the numbers.
MOST_SHOWN = 3


@dataclass
class Summary:
    """What came of some seeds."""

    seeds: int = 0
    events: int = 0
    simulated: float = 0.0
    struck: Counter[str] = field(default_factory=Counter)
    calm: int = 0
    """Runs in which nothing went wrong."""
    ends: Counter[str] = field(default_factory=Counter)
    """How the sidecars ended."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """What became of the messages."""
    failures: list[tuple[int, str]] = field(default_factory=list)
    """The seeds that failed, and what is to be told of each."""

    def add(self, other: Summary) -> None:
        """Count another in."""
        self.seeds += other.seeds
        self.events += other.events
        self.simulated += other.simulated
        self.calm += other.calm
        self.struck += other.struck
        self.ends += other.ends
        self.outcomes += other.outcomes
        self.failures += other.failures

    def table(self, seconds: float) -> str:
        """Return all of it as a table."""
        lines = [
            f"{self.seeds} seeds, {self.events} events, {self.simulated / 3600:.1f} simulated hours,"
            f" in {seconds:.0f} s ({1000 * seconds / max(self.seeds, 1):.1f} ms each)"
        ]
        for title, counts in (
            (f"faults ({self.calm} runs without any)", self.struck),
            ("ends of sidecars", self.ends),
            ("what became of messages", self.outcomes),
        ):
            lines.append(f"  {title}")
            lines += [f"    {number:8}  {name}" for name, number in counts.most_common()]
        return "\n".join(lines)


class _TooLong(BaseException):
    """A seed takes far too long: something turns in a circle without any event."""


def run_some(first: int, count: int) -> Summary:
    """Run some seeds."""
    summary = Summary()
    for number, seed in enumerate(range(first, first + count), 1):
        summary.add(_run_one(seed))
        if number % SEEDS_A_COLLECTION == 0 and not gc.isenabled():
            gc.collect()
    return summary


def _run_one(seed: int) -> Summary:
    def ring(_signal: int, _frame: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, SEED_LIMIT)
    try:
        outcome = run_seed(seed)
    except (Exception, _TooLong) as error:
        return Summary(seeds=1, failures=[(seed, f"seed {seed}: {error!r}")])
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    history = outcome.history
    return Summary(
        seeds=1,
        events=len(history.events),
        simulated=outcome.simulated,
        struck=history.struck,
        calm=not history.struck,
        ends=Counter(event.what for event in history.events if event.kind == "ends"),
        outcomes=outcome.fates,
        failures=[(seed, outcome.describe())] if outcome.violations else [],
    )


def run_campaign(first: int, seeds: int, processes: int) -> int:
    """Run many seeds, show how far it is, and print the table. Returns 1 if any failed."""
    began = time.monotonic()
    total = Summary()
    portions = [
        (start, min(PORTION, first + seeds - start))
        for start in range(first, first + seeds, PORTION)
    ]
    for summary in _run_all(portions, processes):
        for seed, told in summary.failures:
            if len(total.failures) < MOST_SHOWN:
                print(f"\n{told}")
            print(f"seed {seed} failed: python -m tests.simulation {seed}")
        total.add(summary)
        if sys.stderr.isatty() or total.seeds % 1000 == 0:
            end = "\r" if sys.stderr.isatty() else "\n"
            print(f"{total.seeds} of {seeds}", end=end, file=sys.stderr, flush=True)
    print(total.table(time.monotonic() - began))
    if total.failures:
        print(f"{len(total.failures)} failed: {' '.join(str(seed) for seed, _ in total.failures)}")
    return bool(total.failures)


def _run_all(portions: list[tuple[int, int]], processes: int) -> Iterator[Summary]:
    if processes <= 1:
        _prepare()
        yield from (run_some(*portion) for portion in portions)
        return
    with multiprocessing.get_context("forkserver").Pool(processes, _prepare) as pool:
        yield from pool.imap(_run_portion, portions)


def _prepare() -> None:
    # What has been imported by now lives for ever, and a run leaves a few megabytes: the collector looks when it is told to.
    gc.collect()
    gc.freeze()
    gc.disable()


def _run_portion(portion: tuple[int, int]) -> Summary:
    return run_some(*portion)
