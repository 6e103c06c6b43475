"""The whole state of a sidecar as one JSON object, for a person who wants to know what it is doing."""

from __future__ import annotations

from heapq import nsmallest
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from iterum_sidecar import __version__

if TYPE_CHECKING:
    from iterum_sidecar.cargo import FragmentEntry
    from iterum_sidecar.telemetry.subject import Subject

__all__ = ["MOST_FRAGMENTS", "status_of"]

#: Fragments that are told of one by one, the oldest first.
MOST_FRAGMENTS = 1000


def status_of(subject: Subject, uptime: float) -> bytes:
    """Return the JSON; `uptime` is in seconds, as all times in it are."""
    sidecar, settings = subject.sidecar, subject.settings
    health = sidecar.health()
    fragments = sidecar.in_flight()
    oldest = nsmallest(MOST_FRAGMENTS, fragments, key=lambda entry: entry.work.began)
    now = subject.tally.times.clock()
    return (
        msgspec.json.format(
            msgspec.json.encode(
                {
                    "version": __version__,
                    "step": settings.step,
                    "pipeline_hash": settings.pipeline_hash,
                    "state": health.state.word,
                    "missing": health.missing,
                    "health": health,
                    "uptime_seconds": round(uptime, 3),
                    "window": sidecar.window,
                    "volume_held_bytes": sidecar.volume_held,
                    # JSON has no infinity; null is no bound.
                    "volume_budget_bytes": sidecar.volume_budget,
                    "connections": sidecar.connections,
                    "tasks": trio.lowlevel.current_statistics().tasks_living,
                    "channels": sidecar.channel_depths(),
                    "fragments_in_flight": len(fragments),
                    "fragments": [_fragment(entry, now) for entry in oldest],
                }
            ),
            indent=1,
        )
        + b"\n"
    )


def _fragment(entry: FragmentEntry, now: float) -> dict[str, Any]:
    work = entry.work
    return {
        # What cannot be read has none.
        "id": entry.fragment_id or None,
        "stage": work.stage,
        "seconds_in_stage": round(now - work.since, 3),
        "seconds": round(now - work.began, 3),
        "attempts": entry.attempts,
        "files": len(work.message.files) if work.message else 0,
    }
