"""What must come of a run, worked out from its plan alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.simulation.names import OUTPUT, SIDE, Names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.simulation.plan import Fragment, Plan, Result

__all__ = ["PIPELINE", "STEP", "Output", "outputs_of"]

PIPELINE, STEP = "hash", "hash-step"


@dataclass(frozen=True, slots=True)
class Output:
    """One output: its ID, its queue, and names and contents of its files."""

    output_id: str
    queue: str
    files: tuple[tuple[str, bytes], ...]

    @property
    def name(self) -> str:
        return Names.of_id(self.output_id)

    @property
    def lineage(self) -> str:
        return f"l{self.name[1:]}"


def outputs_of(plan: Plan, fragment: Fragment) -> list[Output]:
    """Return the outputs of a fragment, in a step that does not gather; of one that it dies on late they may come out too."""
    if fragment.nature != "good" and not (fragment.nature == "poison" and fragment.is_late):
        return []
    found: list[Output] = []
    ordinals: dict[object, int] = {}
    for result in plan.results_of(fragment):
        kind = result.channel, tuple(sorted(name for name, _ in result.files))
        ordinals[kind] = ordinals.get(kind, -1) + 1
        found.append(output([fragment], result, ordinals[kind]))
    return found


def output(fragments: Sequence[Fragment], result: Result, ordinal: int = 0) -> Output:
    """Return the output that a result of some fragments becomes."""
    names = sorted(name for name, _ in result.files)
    predecessors = sorted(fragment.own_id for fragment in fragments)
    output_id = _derive(predecessors, result.channel, names, ordinal)
    return Output(output_id, OUTPUT if result.channel is None else SIDE, result.files)


def _derive(
    predecessors: Sequence[str], channel: str | None, names: Sequence[str], ordinal: int
) -> str:
    """Return an output's ID by the contract, section 3, and not by the code that is tested."""

    def number(value: int) -> bytes:
        return value.to_bytes(8, "big")

    def text(value: str) -> bytes:
        return number(len(value.encode())) + value.encode()

    def texts(values: Sequence[str]) -> bytes:
        return number(len(values)) + b"".join(text(value) for value in values)

    channels = [] if channel is None else [channel]
    parts = [text(PIPELINE), text(STEP), texts(predecessors), texts(channels), texts(names)]
    return hashlib.sha256(b"".join(parts) + number(ordinal)).hexdigest()
