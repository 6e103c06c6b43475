"""What becomes of the fragments that an input connection held when it closed: whether that was a death, and when it is judged.

The connections of one process die together, and a pod that is deleted stops all of its containers in one moment. So a death is judged
after a moment, with all that died meanwhile. A connection that was given up because it hung is judged at once: what hung with it is
in the same parting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from iterum_sidecar.entries import DeadLetterKind, State
from iterum_sidecar.telemetry.logs import get_log

if TYPE_CHECKING:
    from iterum_sidecar.cargo import FragmentEntry, FragmentLedger, FragmentRoster, Parting
    from iterum_sidecar.telemetry.tally import Tally

__all__ = ["BLAME_AFTER", "Deaths"]

_log = get_log(__name__)

#: Seconds after a death within which a stop of the sidecar makes it none: no fragment is to blame for the end of a pod.
BLAME_AFTER = 1.0


class Deaths:
    """Judges partings; `blame_after` is for how many seconds a death waits for others, and for a stop."""

    def __init__(
        self,
        *,
        ledger: FragmentLedger,
        roster: FragmentRoster,
        tally: Tally,
        blame_after: float = BLAME_AFTER,
    ) -> None:
        self._ledger = ledger
        self._roster = roster
        self._tally = tally
        self._blame_after = blame_after
        self._dead: list[tuple[FragmentEntry, int]] = []
        """What was held by connections that died in the last moment."""

    def take(
        self,
        parting: Parting,
        to_settle: trio.MemorySendChannel[FragmentEntry],
        stop: trio.Event,
        nursery: trio.Nursery,
    ) -> None:
        """A connection has closed, and what was sent before that has been read: judge it, now or after the moment."""
        if parting.hung_for:
            reason = (
                f"the transformation did not finish it within {parting.hung_for:g} s"
                " (SIDECAR_FRAGMENT_TIMEOUT)"
            )
            fallen = self._ledger.connection_closed(
                self._unfinished(parting.held),
                death=not stop.is_set(),
                reason=reason,
                kind=DeadLetterKind.TIMED_OUT,
            )
        elif not parting.death:
            fallen = self._ledger.connection_closed(self._unfinished(parting.held), death=False)
        else:
            if parting.held and not self._dead:
                nursery.start_soon(self._judge, to_settle, stop)
            self._dead += parting.held
            return
        for entry in fallen:
            to_settle.send_nowait(entry)

    async def _judge(
        self, to_settle: trio.MemorySendChannel[FragmentEntry], stop: trio.Event
    ) -> None:
        """Judge what died in one moment as one death."""
        with trio.move_on_after(self._blame_after):
            await stop.wait()
        dead, self._dead = self._dead, []
        unfinished = self._unfinished(dead)
        is_death = not stop.is_set()
        if is_death and unfinished:
            _log.warning(
                "the transformation left with fragments in work",
                fragment_ids=[entry.fragment_id for entry in unfinished],
            )
        for entry in self._ledger.connection_closed(unfinished, death=is_death):
            to_settle.send_nowait(entry)

    def _unfinished(self, held: list[tuple[FragmentEntry, int]]) -> list[FragmentEntry]:
        """Return what is still of the hand-out that has ended by this, and has not ended otherwise since."""
        unfinished = [
            entry
            for entry, number in held
            if entry.state is State.OUT and entry.hand_outs == number
        ]
        for entry in unfinished:
            self._roster.judged(entry)
            self._tally.times.enter(entry.work, "results")
        return unfinished
