"""What a fragment costs beside the two requests and four frames that it must: counted, not timed, so that no machine is too slow or too busy.

The row of stages runs over the embedded broker and store, with tasks started in one order, once with some fragments and once with more.
What the second run has more of is counted for each fragment that it has more. A limit that is exceeded is no fault by itself: somebody looks whether
what is new pays for it, and says so in `docs/performance.md`.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

import pytest
import trio

from tests.unit.row import FinishedOnRequest, copy_step, temporary_row

if TYPE_CHECKING:
    from types import FrameType

FEW, MANY = 100, 300
#: Turns of Trio's scheduler for each fragment: 17.9, and more than a third of them are the transformation's and the test's.
MOST_TURNS = 18.5
#: Calls of functions, Python's and C's, the transformation's too. 1,539 with Python 3.11 and Trio 0.35; versions differ.
MOST_CALLS = 1650


class Cost(NamedTuple):
    turns: int
    calls: int


class CountTurns(trio.abc.Instrument):
    def __init__(self) -> None:
        self.turns = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.turns += 1


async def cost_of(fragments: int) -> Cost:
    upstream = FinishedOnRequest()
    upstream.finished.set()
    instrument = CountTurns()
    calls: Counter[str] = Counter()

    def note(_frame: FrameType, event: str, _argument: object) -> None:
        calls[event] += 1

    async with temporary_row() as row:
        await row.put(fragments)
        sidecar = row.make_sidecar(upstream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, copy_step)
            trio.lowlevel.add_instrument(instrument)
            sys.setprofile(note)
            try:
                await sidecar.run()
            finally:
                sys.setprofile(None)
                trio.lowlevel.remove_instrument(instrument)
            nursery.cancel_scope.cancel()
        assert row.tally.fragments == fragments
    return Cost(instrument.turns, calls["call"] + calls["c_call"])


@pytest.fixture(scope="module")
def cost() -> tuple[float, float]:
    """Turns and calls for each fragment."""
    with mock.patch.object(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", new=True):
        trio._core._run._r.seed(0)
        few, many = (trio.run(cost_of, fragments) for fragments in (FEW, MANY))
    more = MANY - FEW
    return (many.turns - few.turns) / more, (many.calls - few.calls) / more


def test_a_fragment_takes_few_turns_of_the_scheduler(cost: tuple[float, float]) -> None:
    turns, _ = cost
    assert 10 < turns <= MOST_TURNS


def test_a_fragment_takes_few_calls(cost: tuple[float, float]) -> None:
    _, calls = cost
    assert 500 < calls <= MOST_CALLS
