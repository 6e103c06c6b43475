"""What the events of a run explain: deaths that can be blamed on a fragment, work that had to be done again, ends that were no fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.names import INPUT
from tests.simulation.transformation import UNREAD_KILL

if TYPE_CHECKING:
    from tests.simulation.history import History
    from tests.simulation.plan import Plan

__all__ = ["Evidence"]

#: What may make work be done again, or published again.
_EXCUSES = frozenset({"lost", "back", "killed", "died", "left", "breach"})


class Evidence:
    """The events of one run, read for what they explain."""

    def __init__(self, plan: Plan, history: History) -> None:
        self._plan = plan
        self._events = history.events
        self._struck = history.struck
        self.excused_from = next(
            (
                moment
                for moment, event in enumerate(self._events, 1)
                if event.kind in _EXCUSES or (event.kind == "ends" and event.what != "done")
            ),
            len(self._events) + 1,
        )
        """From which event on work may be done again, or published again."""

    def was_confused(self) -> bool:
        """Tell whether a step that gathers may have had a fragment twice: after a breach it is handed out again, and it has it still."""
        struck = self._struck
        return self._plan.shape == "gather" and bool(struck["breach"] or struck["half a frame"])

    def blames(self, name: str) -> int:
        """Return how many deaths and breaches can be blamed on a fragment."""
        several = self._plan.depth > 1 or self._plan.shape == "gather"
        delivered = False
        count = 0
        last_said: dict[str, str] = {}
        for event in self._events:
            if event.what == name and event.kind == "delivered":
                delivered = True
            elif event.kind in {"done", "failed"}:
                last_said[event.who] = event.what
            elif event.kind == "left" and last_said.get(event.who) == name:
                count += 1  # it left because it could not say that
            elif event.kind in {"died", "left", "breach"}:
                # What was in a connection and not read is not held, and is out all the same.
                unseen = delivered and (several or event.kind == "breach")
                count += unseen or name in event.what.split()
        return count

    def was_in_safe_hands(self, name: str, moment: int) -> bool:
        """Tell whether a sidecar had handed it out by a moment, and ended with all done after that."""
        having: set[str] = set()
        for event in self._events[:moment]:
            if event.kind == "took" and event.what == name:
                having.add(event.who[0])
            elif event.kind == "ends" or (
                # What was struck is in the queue again.
                event.what == name and (event.kind == "give back" or event.detail == INPUT)
            ):
                having.discard(event.who[0])
        for event in self._events[moment:]:
            if event.kind == "ends" and event.who[0] in having:
                if event.what == "done":
                    return True
                having.discard(event.who[0])
        return False

    def was_beside_one_that_escaped(self, name: str) -> bool:
        """Tell whether a result of it, and of others with it, led out of the volume."""
        return any(
            event.kind == "result" and event.detail and name in event.what.split()
            for event in self._events
        )

    def was_left_after_kill(self, who: str) -> bool:
        """Tell whether a process left after one of its pod had been told that nothing more comes."""
        alive = told = False
        for event in self._events:
            if event.who == who and event.kind in {"starts", "ends"}:
                alive = event.kind == "starts"
            elif alive and event.who.startswith(f"{who[0]}p"):
                told |= event.kind == "reads kill"
                left = event.kind in {"died", "left", "breach"}
                if left and (told or event.detail == UNREAD_KILL):
                    return True
        return False
