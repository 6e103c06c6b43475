"""Holds a run that is over against what was promised, and says what was not kept.

It knows the plan, every event in its order, what arrived at the broker and what is in the store. It looks into nothing of the sidecar's
own. Where a promise has exceptions (work is done again after a kill), the history must hold what excuses each.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from tests.simulation.evidence import Evidence
from tests.simulation.expected import Output, output, outputs_of
from tests.simulation.names import DEAD, INPUT, LINEAGE, OUTPUT, SIDE
from tests.simulation.plan import ATTEMPTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.simulation.plan import Fragment, Nature
    from tests.simulation.server import Arrival
    from tests.simulation.world import World

__all__ = ["check", "fates_of"]

#: What more is not kept is of no use to anyone.
MOST_VIOLATIONS = 12
#: Kinds of dead letters that say that the transformation died too often, or could not be understood too often.
_BLAMES = frozenset({"transformation_died", "breach", "timed_out"})
_DEAD_LETTER_OF: dict[Nature, str] = {
    "poison": "transformation_died",
    "hanging": "timed_out",
    "failing": "transformation_failed",
    "escaping": "result_refused",
    "missing": "input_missing",
}
#: Ends of a sidecar that need a fault of that kind. Any other end that is no success is itself a fault.
_NEED: dict[str, frozenset[str]] = {
    "stopped": frozenset({"drain", "abort"}),
    "killed": frozenset({"sidecar killed", "pod killed"}),
    "DrainDeadlinePassed": frozenset({"drain"}),
}


def check(world: World) -> list[str]:
    """Return what was not kept, one line each."""
    return _Checker(world).run()


def fates_of(world: World) -> Counter[str]:
    """Return what became of the messages: how many outputs came out, once and again, and how many dead letters of each kind."""
    fates: Counter[str] = Counter()
    seen = set()
    for arrival in world.server.arrivals:
        if arrival.queue in {OUTPUT, SIDE}:
            fates["outputs again" if arrival.body in seen else "outputs"] += 1
            seen.add(arrival.body)
        elif arrival.queue == DEAD:
            fates[f"dead letters: {arrival.headers['x-iterum-kind']}"] += 1
        elif arrival.queue == INPUT:
            fates["struck"] += 1
    return fates


def _is_several(editions: list[Fragment]) -> bool:
    return len(editions) > 1


class _Checker:
    def __init__(self, world: World) -> None:
        self._world = world
        self._plan = world.plan
        self._events = world.history.events
        self._violations = list(world.violations)
        self._fragments: dict[str, list[Fragment]] = defaultdict(list)
        for fragment in self._plan.fragments():
            self._fragments[fragment.name].append(fragment)
        self._expected: dict[str, Output] = {}
        if self._plan.shape != "gather":
            for fragment in self._plan.fragments():
                self._expected |= {
                    each.output_id: each for each in outputs_of(self._plan, fragment)
                }
        self._of_queue: dict[str, list[Arrival]] = defaultdict(list)
        for arrival in world.server.arrivals:
            self._of_queue[arrival.queue].append(arrival)
        self._outputs: dict[str, Output] = {}
        """What has come out, by its ID."""
        self._groups: dict[str, list[Fragment]] = {}
        """What each output of a gathering step came of."""
        self._evidence = Evidence(self._plan, self._world.history)

    def run(self) -> list[str]:
        self._check_outputs()
        self._check_lineage()
        self._check_dead_letters()
        self._check_acknowledgements()
        self._check_ends()
        if self._world.is_over:
            self._check_each_fragment()
        return self._violations[:MOST_VIOLATIONS]

    def _say(self, violation: str) -> None:
        self._violations.append(violation)

    # -- what came out

    def _check_outputs(self) -> None:
        stored: dict[str, int] = {}
        for moment, event in enumerate(self._events, 1):
            if event.kind == "stored":
                stored.setdefault(event.what, moment)
        seen: Counter[str] = Counter()
        for queue in (OUTPUT, SIDE):
            for arrival in self._of_queue[queue]:
                message = msgspec.json.decode(arrival.body)
                expected = self._expect(message)
                if expected is None:
                    self._say(f"an output that nothing can have made: {message}")
                    continue
                self._outputs[expected.output_id] = expected
                self._check_output(message, expected, queue)
                for file in message["files"]:
                    key = f"{expected.name[1:]}/{file['name']}"
                    if stored.get(key, arrival.moment) >= arrival.moment:
                        self._say(f"{expected.name} was published before its file {key} was stored")
                seen[expected.output_id] += 1
                if seen[expected.output_id] > 1:
                    self._excuse_repeat(expected.name, arrival, message["metadata"]["predecessors"])
        self._check_groups()

    def _expect(self, message: Any) -> Output | None:  # noqa: ANN401 - JSON
        metadata = message.get("metadata", {"fragment_id": ""})
        if self._plan.shape != "gather":
            return self._expected.get(metadata["fragment_id"])
        names = [each.rstrip("-") for each in metadata["predecessors"]]
        if any(name not in self._fragments for name in names):
            return None
        group = [self._fragments[name][0] for name in names]
        expected = output(group, self._plan.gathered(group))
        if expected.output_id != metadata["fragment_id"]:
            return None
        self._groups[expected.output_id] = group
        return expected

    def _check_output(self, message: Any, expected: Output, queue: str) -> None:  # noqa: ANN401
        if queue != expected.queue:
            self._say(f"{expected.name} is on the queue {queue}, and belongs on {expected.queue}")
        target = message["metadata"].get("target_queue")
        if target != (SIDE if expected.queue == SIDE else None):
            self._say(f"{expected.name} has the target queue {target}")
        found = tuple(
            (
                file["name"],
                self._world.objects.buckets.get(file["bucket"], {}).get(file["path"]),
            )
            for file in message["files"]
        )
        if found != expected.files and not self._evidence.was_confused():
            self._say(f"{expected.name} should hold {expected.files}, and holds {found}")

    def _excuse_repeat(self, name: str, arrival: Arrival, predecessors: list[str]) -> None:
        if arrival.moment > self._evidence.excused_from:
            return
        copies = max(self._copies(each.rstrip("-")) for each in predecessors)
        if self._plan.pods == 1 or copies == 1:
            self._say(f"{name} was published twice, and nothing had gone wrong")

    def _copies(self, name: str) -> int:
        return sum(message.name == name for message in self._plan.messages)

    def _check_groups(self) -> None:
        """See that what was gathered was gathered once, unless it had to be done again."""
        if self._evidence.excused_from <= len(self._events):
            return
        counts = Counter(each.name for group in self._groups.values() for each in group)
        for name, count in counts.items():
            if count > 1 and (self._plan.pods == 1 or self._copies(name) == 1):
                self._say(f"{name} is in {count} outputs, and nothing had gone wrong")

    def _check_lineage(self) -> None:
        described = set()
        for arrival in self._of_queue[LINEAGE]:
            message = msgspec.json.decode(arrival.body)
            described.add(message["description"]["metadata"]["fragment_id"])
            if message["transformation_step"] != "hash-step":
                self._say(f"a lineage message names the step {message['transformation_step']}")
        # What was published and not made safe stays as it is, if it is gathered otherwise the next time, is a conflict by then, or is
        # lost by the broker.
        otherwise = self._plan.shape == "gather" or any(map(_is_several, self._fragments.values()))
        excused = bool(self._world.erased) or (
            otherwise and self._evidence.excused_from <= len(self._events)
        )
        for output_id, found in self._outputs.items():
            if output_id not in described and not excused:
                self._say(f"{found.name} has no lineage")
        for output_id in () if excused else sorted(described - set(self._outputs)):
            self._say(f"there is lineage of {output_id}, which did not come out")

    # -- dead letters

    def _check_dead_letters(self) -> None:
        known = Counter(message.body for message in self._plan.messages)
        seen: Counter[bytes] = Counter()
        for arrival in self._of_queue[DEAD]:
            seen[arrival.body] += 1
            if arrival.body not in known:
                self._say(f"a dead letter that nobody put on the queue: {arrival.body!r}")
            elif (
                seen[arrival.body] > known[arrival.body]
                and arrival.moment < self._evidence.excused_from
            ):
                self._say(
                    f"{self._world.names.of(arrival.body)} is a dead letter twice, and nothing had gone wrong"
                )
        for arrival in self._of_queue[INPUT]:
            if arrival.body not in known:
                self._say(f"something else was put back to the input queue: {arrival.body!r}")

    def _dead_letters(self, bodies: Iterable[bytes]) -> list[str]:
        wanted = set(bodies)
        return [
            str(arrival.headers["x-iterum-kind"])
            for arrival in self._of_queue[DEAD]
            if arrival.body in wanted
        ]

    # -- every fragment has one fate

    def _check_each_fragment(self) -> None:
        for message in self._plan.messages:
            if message.fragment is None:
                kinds = self._dead_letters([message.body])
                erased = not kinds and self._was_erased(message.name)
                if set(kinds) != {"unreadable"} and not erased:
                    self._say(f"{message.name} is lost: its dead letters are {kinds}")
        for name, editions in self._fragments.items():
            for fragment in editions:
                self._check_fragment(name, fragment, alone=len(editions) == 1)

    def _check_fragment(self, name: str, fragment: Fragment, *, alone: bool) -> None:
        kinds = self._dead_letters([fragment.body()])
        complete = self._is_complete(fragment)
        if not kinds:
            if not complete and not self._was_erased(name):
                self._say(
                    f"{name} is lost: a {fragment.nature} one, neither worked nor a dead letter"
                )
            return
        allowed = {_DEAD_LETTER_OF.get(fragment.nature)}
        if self._evidence.blames(name) >= ATTEMPTS:
            allowed |= _BLAMES
        if not alone:
            allowed.add("conflict")
        if self._evidence.was_beside_one_that_escaped(name):
            allowed.add("result_refused")
        if not set(kinds) <= allowed:
            self._say(
                f"{name}, a {fragment.nature} one, is a dead letter for {kinds}, after {self._evidence.blames(name)} deaths"
            )

    def _was_erased(self, name: str) -> bool:
        """Tell whether the broker lost it with a queue while no sidecar had it that went on to its end."""
        # Of two fragments of one ID nobody knows here which one it was.
        several = _is_several(self._fragments[name])
        return any(
            name in names and (several or not self._evidence.was_in_safe_hands(name, moment))
            for moment, names in self._world.erased
        )

    def _is_complete(self, fragment: Fragment) -> bool:
        if fragment.nature not in {"good", "escaping"}:
            return False
        if self._plan.shape == "gather":
            return any(fragment in group for group in self._groups.values())
        if fragment.nature == "escaping" and self._plan.results_of(fragment):
            return False
        if not all(each.output_id in self._outputs for each in outputs_of(self._plan, fragment)):
            return False
        return any(event.kind == "done" and event.what == fragment.name for event in self._events)

    # -- acknowledgements

    def _check_acknowledgements(self) -> None:
        """See that nothing was acknowledged before all that came of it was confirmed."""
        confirmed: set[tuple[str, str]] = set()
        done: set[str] = set()
        for moment, event in enumerate(self._events, 1):
            if event.kind == "confirmed":
                confirmed.add((event.what, event.detail))
            elif event.kind == "done":
                done.add(event.what)
            elif event.kind == "acknowledge" and not self._may_go(event.what, confirmed, done):
                self._say(
                    f"{event.what} was acknowledged at {event.time:.3f} before all that came of it was safe"
                )
            elif event.kind == "answered twice":
                self._say(f"{event.what} was acknowledged or given back twice on one channel")
            elif event.kind == "input gone" and moment < self._evidence.excused_from:
                self._say(f"the files of {event.what} were gone while the step had it")

    def _may_go(self, name: str, confirmed: set[tuple[str, str]], done: set[str]) -> bool:
        if (name, DEAD) in confirmed or (name, INPUT) in confirmed:
            return True
        if name not in done:
            return False
        if self._plan.shape == "gather":
            return any(
                self._is_confirmed(self._outputs[output_id], confirmed)
                for output_id, group in self._groups.items()
                if any(each.name == name for each in group)
            )
        return any(
            all(self._is_confirmed(each, confirmed) for each in outputs_of(self._plan, fragment))
            for fragment in self._fragments[name]
        )

    @staticmethod
    def _is_confirmed(expected: Output, confirmed: set[tuple[str, str]]) -> bool:
        return (expected.name, expected.queue) in confirmed and (
            expected.lineage,
            LINEAGE,
        ) in confirmed

    # -- the ends

    def _check_ends(self) -> None:
        for event in self._events:
            if event.kind == "ends" and event.what != "done":
                self._check_end(event.who, event.what, event.detail)
        for _, line in self._world.history.said:
            if "TRACEBACK" in line:
                self._say(f"a traceback in the log: {line}")
        for name, error in self._world.faults:
            self._say(f"sidecar {name} ended by a fault of its own: {error!r}")

    def _check_end(self, who: str, end: str, detail: str) -> None:
        struck = self._world.history.struck
        if end == "WorkLeft" and (self._plan.pods > 1 or self._of_queue[INPUT]):
            return  # the other one gave something back, or something was struck at the very end
        if end == "TransformationLost" and (
            self._evidence.was_left_after_kill(who) or self._evidence.was_confused()
        ):
            return
        if not any(struck[fault] for fault in _NEED.get(end, ())):
            self._say(f"sidecar {who} ended with {end} ({detail}), and nothing explains that")
