"""What a mutant of each module must get past: its fast tests, the ledger's model, some seeds of the simulation."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CHECKS", "WALKS", "Checks", "run_model", "run_simulation"]

#: As much of each as finds in a second or two what there is to find.
EXAMPLES = 30
SEEDS = 40
#: Random walks of each test of `test_ledger_stragglers.py`.
WALKS = 300


@dataclass(frozen=True)
class Checks:
    """The tests come first, then the ledger's `model`, then so many `seeds` of the simulation."""

    files: tuple[str, ...]
    model: bool = False
    seeds: int = SEEDS


def _unit(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/unit/test_{name}.py" for name in names)


_LEDGER = Checks(
    _unit("ledger", "ledger_verdicts", "fencing", "ledger_struck", "ledger_stragglers"),
    model=True,
    seeds=20,
)
_LINE = Checks(_unit("reconnecting", "row_broker"))
#: The most important module first.
CHECKS = {
    "ledger": _LEDGER,
    "fencing": _LEDGER,
    "editions": Checks(_unit("editions", "row_broker")),
    "stages/settle": Checks(_unit("settle", "row", "row_broker")),
    "stages/publish": Checks(_unit("publish", "row", "row_broker")),
    "stages/intake": Checks(_unit("intake", "intake_ends", "row", "row_broker", "row_starvation")),
    "brokers/reconnecting": _LINE,
    "brokers/reconnecting_line": _LINE,
    "ordinals": _LEDGER,
    "last_look": Checks(_unit("last_look", "row_broker", "row_ends")),
    "entries": _LEDGER,
}


def run_model() -> str:
    """Hold the ledger against its model; returns what is wrong, or nothing."""
    from hypothesis import Phase, settings
    from hypothesis.stateful import run_state_machine_as_test

    from tests.unit.test_ledger_model import LedgerMachine

    quick = settings(
        max_examples=EXAMPLES,
        stateful_step_count=60,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
    )
    try:
        run_state_machine_as_test(LedgerMachine, settings=quick)
    except Exception as error:
        return f"tests/unit/test_ledger_model.py::{error!r:.200}"
    return ""


def run_simulation(seeds: int) -> str:
    """Run the first seeds of the simulation until one goes wrong; returns what does, or nothing."""
    from tests.simulation.campaign import run_some

    for seed in range(seeds):
        if failures := run_some(seed, 1).failures:
            return f"tests/simulation::{failures[0][1]:.200}"
    return ""
