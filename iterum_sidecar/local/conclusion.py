"""The end of a local run: its lineage is written, what is out of date is told or removed, and a summary says how it went."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.exit_codes import ExitCode, VolumeUnusable
from iterum_sidecar.local.combiner import RESERVED
from iterum_sidecar.local.state import remove_result, synchronise
from iterum_sidecar.local.step_run import StepBroken
from iterum_sidecar.local.store import INPUT_BUCKET
from iterum_sidecar.local.summary import Outcome, Places, Renamed, StepSummary, Summary
from iterum_sidecar.local.wording import in_words_of_a_pipeline
from iterum_sidecar.messages import decode_remote_fragment, encode_lineage
from iterum_sidecar.pipeline.model import FRAGMENTER, step_name
from iterum_sidecar.stores.directory import DirectoryStore
from iterum_sidecar.telemetry.logs import get_log

if TYPE_CHECKING:
    from pathlib import Path

    from iterum_sidecar.exit_codes import SidecarError
    from iterum_sidecar.local.display import Display
    from iterum_sidecar.local.journal import Delivered, Journal
    from iterum_sidecar.local.run import Run
    from iterum_sidecar.local.state import OutputFolder

__all__ = ["conclude"]

_log = get_log(__name__)

#: Seconds that the disk is given to take everything. A run that ends without it is as good, unless the machine goes down.
SYNCHRONISE_SECONDS = 60.0
#: Seconds that counting what is kept may take; longer, and it is not told.
COUNT_SECONDS = 2.0
#: Inputs by which someone recognises a result.
MOST_INPUTS = 3


async def conclude(
    run: Run,
    *,
    pipeline: str,
    pipeline_hash: str,
    output: OutputFolder,
    shown_as: Path,
    journal: Journal,
    display: Display,
    seconds: float,
    prune: bool,
    interrupted: ExitCode | None,
) -> ExitCode:
    """Put everything in order, tell the summary, and return the exit code.

    Raises:
        VolumeUnusable: there is no room for the lineage.
    """
    outcome, code = _outcome(run, interrupted)
    pruned: list[str] = []
    if prune and outcome in {"done", "nothing to do", "done with failures"}:
        pruned = await _prune(journal, output)
    stale = [
        delivered.name
        for delivered in journal.deliveries(live=False)
        if os.path.lexists(output.root / delivered.name)
    ]
    made: Counter[str] = Counter()
    try:
        made = _write_lineage(journal, output, pipeline_hash)
    except OSError as error:
        # It follows from the journal, so the next run writes it; what ended the run is to be told first.
        if run.error is None:
            raise VolumeUnusable(
                f"the lineage cannot be written to {output.lineage}: {error.strerror}; make room, and run again"
            ) from None
    journal.commit()
    with trio.move_on_after(SYNCHRONISE_SECONDS):
        await trio.to_thread.run_sync(synchronise, output.root, abandon_on_cancel=True)
        journal.was_synchronised()
    kept = 0
    with trio.move_on_after(COUNT_SECONDS):
        kept = await trio.to_thread.run_sync(output.kept_bytes, abandon_on_cancel=True)
    progress = run.progress()
    summary = Summary(
        pipeline=pipeline,
        outcome=outcome,
        seconds=seconds,
        first_fragments=progress.first_fragments,
        results_new=progress.results,
        results_before=progress.results_before,
        places=Places(
            output=str(shown_as),
            logs=str(shown_as / output.logs.name),
            lineage=str(shown_as / output.lineage.name),
            failed=str(shown_as / output.failed.name) if run.failures else "",
        ),
        exit_code=int(code),
        steps=[
            StepSummary(step.name, step.done, step.done_before, step.failed, made[step.name])
            for step in progress.steps
        ],
        failures=[
            failure._replace(place=str(shown_as / os.path.relpath(failure.place, output.root)))
            for failure in run.failures
        ],
        renamed=[_renamed(each, journal) for each in run.combiner.renamed],
        stale=stale,
        pruned=pruned,
        state_bytes=kept,
        how_to_go_on=_how_to_go_on(outcome),
        reason=None if run.error is None else _reason(run.error),
    )
    _log.info(
        "end", outcome=outcome, exit_code=int(code), seconds=seconds, results=progress.results
    )
    display.conclude(summary)
    return code


def _outcome(run: Run, interrupted: ExitCode | None) -> tuple[Outcome, ExitCode]:
    if run.error is not None:
        return "failed", run.error.exit_code
    if interrupted is not None and not run.is_done:
        return "interrupted", interrupted
    if run.failures:
        return "done with failures", ExitCode.DEAD_LETTERS
    return ("nothing to do" if run.has_nothing_to_do else "done"), ExitCode.DONE


def _reason(error: SidecarError) -> str:
    told = error.what if isinstance(error, StepBroken) else str(error)
    return in_words_of_a_pipeline(told.split("\n", 1)[0])


def _how_to_go_on(outcome: Outcome) -> str | None:
    if outcome == "done with failures":
        return "The same command tries what failed again."
    if outcome in {"interrupted", "failed"}:
        return "The same command goes on where this one stopped."
    return None


async def _prune(journal: Journal, output: OutputFolder) -> list[str]:
    """Remove the results that are not of this run, and the objects that they were."""
    removed = []
    for delivered in list(journal.deliveries(live=False)):
        if os.path.lexists(output.root / delivered.name):
            removed.append(delivered.name)
        remove_result(output.root, delivered.name)
        journal.forget_delivery(delivered.name)
    store = DirectoryStore(output.objects)
    keys = [
        (file.bucket, file.path)
        for _, description in journal.left_behind()
        for file in decode_remote_fragment(description).files
        if file.bucket != INPUT_BUCKET
    ]
    # Forgotten first: an object that is left over costs room, one that is missing fails what relies on it.
    journal.forget_left_behind()
    journal.commit()
    for bucket, key in keys:
        await store.delete_object(bucket, key)
    return removed


def _renamed(delivered: Delivered, journal: Journal) -> Renamed:
    wanted = delivered.wanted
    owner = journal.owner(wanted)
    if owner is not None:
        taken_by = f"that of {', '.join(_inputs_of(owner[0], journal))}"
    elif wanted.split("/", 1)[0] in RESERVED:
        taken_by = "what a run keeps itself"
    else:
        taken_by = "a file or folder that was there"
    return Renamed(wanted, delivered.name, _inputs_of(delivered.fragment_id, journal), taken_by)


def _inputs_of(fragment_id: str, journal: Journal) -> list[str]:
    """Return the names of input files that a fragment came of, as many as one wants to read."""
    first = journal.first_of(fragment_id, MOST_INPUTS)
    names = [file.name for each in first for file in decode_remote_fragment(each).files]
    return names[:MOST_INPUTS]


def _write_lineage(journal: Journal, output: OutputFolder, pipeline_hash: str) -> Counter[str]:
    """Write the lineage message of every fragment of this run, whole or not at all, and count them by who made them."""
    made: Counter[str] = Counter()
    temporary = output.state / "lineage.partial"
    try:
        with open(temporary, "wb", buffering=1 << 20) as file:
            for producer, description in journal.lineage():
                made[producer] += 1
                name = step_name(pipeline_hash, producer or FRAGMENTER)
                file.write(encode_lineage(name, description) + b"\n")
        os.replace(temporary, output.lineage)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return made
