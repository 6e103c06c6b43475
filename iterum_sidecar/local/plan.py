"""What of earlier runs still holds, and what is to be done.

A fragment is *of this run* when it is a first fragment of the present input, or was made, by a step as it is now, of
fragments that are of this run. IDs are derived from what a fragment was made of, so a changed file or step has other IDs behind it, and
what depends on it is found missing; nothing else is. What is found to be of this run is in the table `found` (`journal_file.py`).

A result of several predecessors depends on more than those: a contact sheet of all pictures is another one when a picture is
added. So it holds only as long as everything before its step is the same (`fingerprints.ancestry`), and is made again, of all
its predecessors, when its step had got all of its input in an earlier run and gets more now.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iterum_sidecar.local.fingerprints import ancestry
from iterum_sidecar.local.journal import JournalState, StepRecord

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from iterum_sidecar.local.journal import Delivered, Journal
    from iterum_sidecar.pipeline.model import Pipeline, Step

__all__ = ["COMBINED", "Plan", "PlannedStep", "make_plan"]

#: Who finishes the fragments of the combiner's channel.
COMBINED = "combiner"


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step as this run will find it."""

    step: Step
    fingerprint: str
    ancestry: str
    waiting: int
    """Fragments that wait for it already."""
    done_before: int
    """Fragments that it has finished in earlier runs."""
    gathers: bool
    """Whether it is known to make results of several fragments."""
    must_run: bool
    """Whether anything waits for it, or may come."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run has to do; `steps` are in order, each after those that feed it."""

    steps: tuple[PlannedStep, ...]
    to_deliver: int
    """Fragments that wait for the combiner already."""
    results_before: int
    """Files of this run that are in the output folder already."""

    @property
    def is_empty(self) -> bool:
        """Whether everything has been done before."""
        return not self.to_deliver and not any(step.must_run for step in self.steps)


def make_plan(
    journal: Journal,
    pipeline: Pipeline,
    prints: Mapping[str, str],
    output: Path,
    first_fragments: str,
) -> Plan:
    """Mark what is of this run, and return what is to be done. It takes some seconds for a million fragments, best in a thread.

    The first fragments have been told to the journal before, since it was opened; `first_fragments` is a digest of the set of their
    IDs. `prints` are the fingerprints of the steps, by their names.

    Raises:
        JournalRefused, VolumeUnusable: the journal cannot be read, or not be written.
    """
    planned: dict[str, PlannedStep] = {}
    for step in pipeline.in_order:
        upstream = _all_upstream(pipeline, step)
        own = prints[step.name]
        others = [prints[name] for name in upstream]
        more_comes = any(planned[name].must_run for name in upstream)
        planned[step.name] = _plan_step(
            journal, step, own, ancestry(own, others, first_fragments), more_comes=more_comes
        )
    journal.change("UPDATE fragment SET live = NOT live WHERE live <> (key IN found)")
    channel = journal.combined = pipeline.combiner.input_channel
    _void(journal, channel, COMBINED)
    results_before = _look_at_deliveries(journal, output)
    to_deliver = journal.count(channel, JournalState.WAITING)
    return Plan(tuple(planned.values()), to_deliver, results_before)


def _plan_step(
    journal: Journal, step: Step, own: str, lineage: str, *, more_comes: bool
) -> PlannedStep:
    channel = step.input_channel
    _void(journal, channel, own)
    record = journal.step(own)
    if record.ancestry != lineage:
        _void_gathered(journal, step, "gathered <> ?", lineage, gathers=record.gathers)
    _void_half_finished(journal, step, own)
    waiting = _count(journal, channel, JournalState.WAITING)
    if record.complete and (waiting or more_comes):
        _void_gathered(journal, step, "gathered = ?", lineage, gathers=record.gathers)
        waiting = _count(journal, channel, JournalState.WAITING)
    must_run = waiting > 0 or more_comes
    complete = record.complete and not must_run
    journal.note_step(own, StepRecord(complete, record.gathers, lineage))
    _find_outputs(journal, step, own, lineage)
    return PlannedStep(
        step,
        own,
        lineage,
        waiting,
        _count(journal, channel, JournalState.FINISHED),
        gathers=record.gathers,
        must_run=must_run,
    )


def _count(journal: Journal, channel: str, state: JournalState) -> int:
    """Return how many fragments that were found a channel has in a state."""
    return journal.number(
        "SELECT count(*) FROM fragment WHERE channel = ? AND key IN found AND state = ?",
        (channel, int(state)),
    )


def _void(journal: Journal, channel: str, consumer: str) -> None:
    """Let wait again what failed, and what another consumer than this one has finished."""
    journal.change(
        "UPDATE fragment SET state = 0 WHERE channel = ? AND (state = 2 OR state = 1 AND done_by <> ?)",
        (channel, consumer),
    )


def _void_gathered(
    journal: Journal, step: Step, which: str, lineage: str, *, gathers: bool
) -> None:
    """Let all predecessors wait again of those gathered results that `which` says, and with them what came to nothing.

    Of a fragment without a result nobody knows whether it was looked at beside others.
    """
    journal.change(
        "UPDATE fragment SET state = 0 WHERE channel = ? AND key IN (SELECT o.predecessor FROM origin o"
        f" JOIN fragment f ON f.key = o.fragment WHERE f.producer = ? AND f.gathered <> '' AND f.{which})",
        (step.input_channel, step.name, lineage),
    )
    if gathers:
        journal.change(
            "UPDATE fragment SET state = 0 WHERE channel = ? AND key IN found AND state = 1"
            " AND NOT EXISTS (SELECT 1 FROM origin o WHERE o.predecessor = fragment.key)",
            (step.input_channel,),
        )


def _void_half_finished(journal: Journal, step: Step, own: str) -> None:
    """Let all predecessors wait again of a result of several, if one of them does: the run was cut off between them.

    It may be gathered otherwise the second time; and those that are in another result with one of these wait too.
    """
    while journal.change(
        "UPDATE fragment SET state = 0 WHERE channel = ? AND key IN found AND state = 1 AND key IN"
        " (SELECT o.predecessor FROM origin o JOIN fragment f ON f.key = o.fragment"
        "  WHERE f.producer = ? AND f.made_by = ? AND f.gathered <> '' AND EXISTS"
        "  (SELECT 1 FROM origin o2 JOIN fragment p ON p.key = o2.predecessor"
        "   WHERE o2.fragment = f.key AND NOT (p.key IN found AND p.state = 1)))",
        (step.input_channel, step.name, own),
    ):
        pass


def _find_outputs(journal: Journal, step: Step, own: str, lineage: str) -> None:
    """Find what the step, as it is now, has made of fragments that are of this run."""
    journal.change(
        "INSERT INTO found SELECT key FROM fragment WHERE producer = ? AND made_by = ? AND gathered IS NULL AND key IN"
        " (SELECT o.fragment FROM origin o JOIN fragment p ON p.key = o.predecessor WHERE p.key IN found AND p.channel = ?)",
        (step.name, own, step.input_channel),
    )
    # A gathering that was cut off may be made otherwise the second time, so it must have been finished.
    journal.change(
        "INSERT INTO found SELECT key FROM fragment WHERE producer = ? AND made_by = ? AND gathered = ?"
        " AND EXISTS (SELECT 1 FROM origin o WHERE o.fragment = fragment.key) AND NOT EXISTS"
        " (SELECT 1 FROM origin o JOIN fragment p ON p.key = o.predecessor"
        "  WHERE o.fragment = fragment.key AND NOT (p.key IN found AND p.state = 1 AND p.channel = ?))",
        (step.name, own, lineage, step.input_channel),
    )
    _disown_gathered(journal, step)


def _disown_gathered(journal: Journal, step: Step) -> None:
    """See that a gathered result that was not found does not come back, and that all of its predecessors wait.

    They may be finished again in a later run, in other results. And they may lie in another channel than the step reads now, to
    which a later run comes back.
    """
    journal.change(
        "UPDATE fragment SET state = 0 WHERE state = 1 AND key IN (SELECT p.key FROM fragment f"
        " JOIN origin o ON o.fragment = f.key JOIN fragment p ON p.key = o.predecessor"
        " WHERE f.producer = ? AND f.gathered <> '' AND f.key NOT IN found AND p.done_by = f.made_by)",
        (step.name,),
    )
    journal.change(
        "UPDATE fragment SET gathered = '' WHERE producer = ? AND gathered IS NOT NULL AND key NOT IN found",
        (step.name,),
    )


def _look_at_deliveries(journal: Journal, output: Path) -> int:
    """Let wait again what was delivered and is no longer there; returns how many files are."""
    there = 0
    gone: list[Delivered] = []
    for delivered in journal.deliveries(live=True):
        if os.path.lexists(os.path.join(output, delivered.name)):
            there += 1
        else:
            gone.append(delivered)
    for delivered in gone:
        journal.forget_delivery(delivered.name)
    journal.change(
        "UPDATE fragment SET state = 0 WHERE channel = ? AND live AND state = 1"
        " AND NOT EXISTS (SELECT 1 FROM delivered d WHERE d.fragment = fragment.id)",
        (journal.combined,),
    )
    for delivered in gone:
        journal.change("UPDATE fragment SET state = 0 WHERE id = ?", (delivered.fragment_id,))
    return there


def _all_upstream(pipeline: Pipeline, step: Step) -> list[str]:
    """Return every step whose results may come to this one, directly or not, in a fixed order."""
    found: dict[str, None] = {}
    left = list(pipeline.upstream_steps(step))
    while left:
        name = left.pop()
        if name not in found:
            found[name] = None
            left += pipeline.upstream_steps(pipeline.step(name))
    return sorted(found)
