"""The bookkeeping of a fragment from its delivery to its acknowledgement, with one result, a hundred fragments in flight."""

from __future__ import annotations

import dataclasses
from hashlib import sha256
from typing import TYPE_CHECKING

from benchmarks.stages.task import Meter, Task, fragment_id
from iterum_sidecar.entries import Verdict
from iterum_sidecar.identity import OutputIdentity
from iterum_sidecar.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_FLIGHT = 100
NAMES = ("file.bin",)


def _windows(task: Task) -> Iterator[list[str]]:
    ids = [fragment_id(number) for number in range(task.count)]
    return iter([ids[start : start + IN_FLIGHT] for start in range(0, task.count, IN_FLIGHT)])


def ours(task: Task, meter: Meter) -> None:
    """By `iterum_sidecar.ledger`."""
    ledger: Ledger[str, str] = Ledger(OutputIdentity("a-pipeline", "a-step"), attempts_allowed=3)
    windows = _windows(task)
    outputs = set()
    acknowledged = 0
    with meter:
        for window in windows:
            for each in window:
                _, entry = ledger.admit(each, (NAMES, each), each, each, edition=each)
                assert entry is not None
                ledger.is_ready(entry)
                ledger.hand_out(entry)
            made = []
            for each in window:
                made.append(ledger.take_result([each], None, NAMES, 1))
                ledger.done(each, 1)
            for output in made:
                outputs.add(output.output_id)
                for entry in ledger.output_safe(output):
                    acknowledged += entry.verdict is Verdict.ACKNOWLEDGE
                    ledger.close(entry)
    _look(task, meter, len(outputs), acknowledged, len(ledger))


@dataclasses.dataclass(slots=True)
class _Kept:
    """What the least that can be kept of a fragment is: results that are not safe, and whether it is done."""

    pending: int = 0
    done: bool = False
    results: int = 0


def floor(task: Task, meter: Meter) -> None:
    """By a dict and two counters; whatever may go wrong is not thought of."""
    kept: dict[str, _Kept] = {}
    windows = _windows(task)
    outputs = set()
    acknowledged = 0
    with meter:
        for window in windows:
            for each in window:
                kept[each] = _Kept()
            made = []
            for each in window:
                fragment = kept[each]
                output_id = sha256(f"{each}{fragment.results}".encode()).hexdigest()
                fragment.results += 1
                fragment.pending += 1
                made.append((output_id, each))
                fragment.done = True
            for output_id, each in made:
                outputs.add(output_id)
                fragment = kept[each]
                fragment.pending -= 1
                if fragment.done and not fragment.pending:
                    acknowledged += 1
                    del kept[each]
    _look(task, meter, len(outputs), acknowledged, len(kept))


def _look(task: Task, meter: Meter, outputs: int, acknowledged: int, left: int) -> None:
    meter.expect(outputs == task.count, f"{outputs} different outputs")
    meter.expect(acknowledged == task.count, f"{acknowledged} acknowledged")
    meter.expect(left == 0, f"{left} left in flight")
