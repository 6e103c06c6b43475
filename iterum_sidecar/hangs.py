"""Input connections whose fragments are not finished in time: which of them hang, and how they are given up.

What one fragment hangs may hang a whole process, with all of its connections. So a connection that is late is not judged before each of the
others that hold something has finished one since, or is late too: then those that are late are given up together, as one death.
A connection that waits for input does not hang, it gathers. That is found out as handout does it: it is sent the length of its next
frame, long before it is late, and has read that or has not. The time of what has not been read yet has not begun.
Where nobody can end the process, its idle connections stay, and hang with the next fragment that they are handed. That one is not to
blame: a connection that was there when another hung is doubtful until it has finished something.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from iterum_sidecar.cargo import Parting
from iterum_sidecar.telemetry.logs import get_log

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from iterum_sidecar.cargo import FragmentEntry, FragmentRoster
    from iterum_sidecar.input_connection import InputConnection
    from iterum_sidecar.roster import Seat

__all__ = ["EndTransformation", "Hangs"]

_log = get_log(__name__)

#: Seconds that a connection has to read what it was handed, if a fragment has not more: pyterum waits 5 s after it has connected again.
READING_PATIENCE = 30.0

#: Ends the transformation with all of its processes, and returns when nothing of it is left. It is told whether what hung had read what
#: it was handed, so that a fragment may be to blame.
EndTransformation: TypeAlias = Callable[[bool], Awaitable[None]]


class Hangs:
    """Gives up connections that hang, and tells of them by a `Parting`. `timeout` is in seconds, 0 for never.

    `end_transformation` is for where there is somebody who can.
    """

    def __init__(
        self,
        timeout: float,
        roster: FragmentRoster,
        tell: Callable[[Parting], None],
        end_transformation: EndTransformation | None = None,
    ) -> None:
        self._timeout = timeout
        self._roster = roster
        self._tell = tell
        self._end_transformation = end_transformation
        self.is_ending = False
        """Whether the transformation is being ended, so that nothing may be handed out."""

    @property
    def tick(self) -> float:
        """Seconds between two looks, at the most."""
        return self._timeout / 4 or math.inf

    async def look(self, connections: Mapping[Seat[Any, Any], InputConnection], now: float) -> None:
        """Give up what hangs now; where the transformation can be ended, return when it has been."""
        late = self._late(connections.values(), now) if self._timeout else []
        if not late:
            return
        have_read = [each for each in late if each.read_at is not None or len(each.seat.held) > 1]
        _log.warning(
            "fragments are not finished in time; their connection is closed, and they are tried again",
            fragment_ids=[entry.fragment_id for each in late for entry in each.seat.held],
            seconds=round(max(now - each.seat.moved_at for each in late), 1),
            have_been_read=bool(have_read),
        )
        # What was never read hangs nothing, and what went to a process that hung already neither.
        to_blame = [each for each in have_read if not each.seat.is_doubtful]
        self._part_from([each for each in late if each not in to_blame])
        self._part_from(to_blame, hung_for=self._timeout)
        if self._end_transformation is None:
            self._roster.given_up += len(late)
            if to_blame:  # or a process that connects again each time would hang, and nothing ever be to blame
                self._roster.doubt(now)
            return
        self.is_ending = True
        try:
            self._part_from(connections.values())
            await self._end_transformation(bool(have_read))
            self._part_from(connections.values())  # those that came meanwhile
        finally:
            self.is_ending = False

    def _late(self, connections: Iterable[InputConnection], now: float) -> list[InputConnection]:
        """Return the connections that are to be given up now, and ask those that may be one day."""
        at_work = [each for each in connections if each.seat.held and not each.waits_for_input()]
        late: list[InputConnection] = []
        late_since = math.inf
        for each in at_work:
            each.look(now)
            due = self._due(each)
            # It is late when it was asked before, and has had the time to answer.
            if now >= due and (each.read_at is None or each.is_announced):
                late.append(each)
                late_since = min(late_since, due)
            elif each.read_at is not None and now >= due - self._timeout / 2:
                each.announce()
        others = [each for each in at_work if each not in late]
        return [] if any(each.seat.finished_at <= late_since for each in others) else late

    def _due(self, connection: InputConnection) -> float:
        """Return the time after which a connection is late."""
        moved_at, read_at = connection.seat.moved_at, connection.read_at
        if read_at is None:
            return moved_at + max(self._timeout, READING_PATIENCE)
        return max(moved_at, read_at) + self._timeout

    def _part_from(self, connections: Iterable[InputConnection], *, hung_for: float = 0.0) -> None:
        """Close connections, and tell of them as of one."""
        held: list[FragmentEntry] = []
        for each in connections:
            if not each.given_up:
                each.given_up = True
                each.peer.close()
                held += self._roster.leave(each.seat)
        if not held:
            return
        self._tell(
            Parting(
                [(entry, entry.hand_outs) for entry in held],
                death=hung_for > 0,
                hung_for=hung_for,
            )
        )
