"""The tables of a soak: what was done, what was lost by it, and what the sidecars used meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .faults import Kind
from .inputs import Nature
from .samples import MEASURES, rises, thirds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .pod import Life
    from .samples import Third
    from .soak import Outcome

__all__ = ["failures_of", "report"]

#: Of each kind of failure so many are told one by one.
TOLD: Final = 5


def report(outcome: Outcome) -> str:
    """Return the tables."""
    parts = (_faults(outcome), _accounts(outcome), _lives(outcome), _uses(outcome))
    return "\n\n".join("\n".join(part) for part in parts)


def failures_of(outcome: Outcome) -> list[str]:
    """Return everything that is not as promised, in words; nothing where all is."""
    account = outcome.account
    failures: list[str] = []
    for what, found in (
        ("lost", account.lost),
        ("out under a second ID", account.second),
        ("innocent and in the dead letters", account.innocent),
        ("wrong", account.wrong),
        ("left on a volume", outcome.left),
    ):
        failures += _told(what, found)
    if outcome.stuck:
        failures.append(f"stuck in the input queue: {outcome.stuck}")
    failures += [
        f"life {life.name} grows: {name} {first} -> {last}"
        for life in outcome.lives
        for name, first, last in _measured(life)
        if rises(name, first, last)
    ]
    return failures + outcome.problems


def _told(what: str, found: list[str]) -> Iterable[str]:
    yield from (f"{what}: {each}" for each in found[:TOLD])
    if len(found) > TOLD:
        yield f"{what}: {len(found) - TOLD} more"


def _faults(outcome: Outcome) -> Iterable[str]:
    yield "| fault | times |"
    yield "|---|---|"
    for kind in Kind:
        yield f"| {kind.label} | {outcome.injected[kind]} |"
    yield f"| all | {outcome.injected.total()} |"


def _accounts(outcome: Outcome) -> Iterable[str]:
    account = outcome.account
    yield "| what became of it | |"
    yield "|---|---|"
    for nature in Nature:
        yield f"| inputs: {nature.value} | {account.inputs[nature]} |"
    yield f"| outputs | {account.outputs} |"
    for where in ("outputs", "lineage", "dead letters"):
        yield f"| came again with the same ID: {where} | {account.repeats[where]} |"
    yield f"| lost | {len(account.lost)} |"
    yield f"| out under a second ID | {len(account.second)} |"
    yield f"| stuck in the input queue | {outcome.stuck} |"
    yield f"| innocent and in the dead letters | {len(account.innocent)} |"
    yield f"| otherwise wrong | {len(account.wrong)} |"
    yield f"| left on the volumes | {len(outcome.left)} |"
    yield f"| results of steps that died, left where they put them | {outcome.results_left} |"
    yield f"| seconds to the end after the last fault | {outcome.end_seconds:.0f} |"
    for stage, seconds in sorted(outcome.longest.items()):
        yield f"| the most seconds of a fragment in {stage} | {seconds:.0f} |"


def _lives(outcome: Outcome) -> Iterable[str]:
    codes = sorted({life.code for life in outcome.lives}, key=str)
    yield f"lives of sidecars: {len(outcome.lives)}, ended with " + ", ".join(
        f"{code} ({sum(life.code == code for life in outcome.lives)})" for code in codes
    )
    yield f"lives of steps: {outcome.steps}; memory of the observer: {outcome.observer_bytes / 1e6:.0f} MB"


def _uses(outcome: Outcome) -> Iterable[str]:
    yield "Of each life that was long enough, the first and the last third of its work: least/median/most (memory in MB)"
    yield ""
    yield f"| life | seconds | {' | '.join(MEASURES)} |"
    yield f"|---|---|{'---|' * len(MEASURES)}"
    for life in outcome.lives:
        cells = {name: f"{first} → {last}" for name, first, last in _measured(life)}
        if cells:
            row = " | ".join(cells.get(name, "") for name in MEASURES)
            yield f"| {life.name} | {life.samples[-1].at:.0f} | {row} |"


def _measured(life: Life) -> Iterable[tuple[str, Third, Third]]:
    # One that waits for a service has not opened what it works with.
    at_work = [each for each in life.samples if each.status.get("state") == "ready"]
    for name in MEASURES:
        both = thirds([(each.at, getattr(each, name)) for each in at_work])
        if both is not None:
            yield name, *both
