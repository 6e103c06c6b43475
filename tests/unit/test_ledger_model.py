"""The ledger against a naive model, by a Hypothesis state machine.

The model keeps, for each life of a fragment, nothing but what has happened to it, in plain sets, and re-states the promises:
nothing is acknowledged before everything that came of it is safe, nothing is stuck, nothing comes out under a second ID. Of who may
speak for a fragment that was handed out before (`fencing.py`) it keeps the whole history, and reads the answer from that.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from iterum_sidecar.entries import Admission, Entry, Output, State, Verdict
from iterum_sidecar.identity import OutputIdentity
from iterum_sidecar.ledger import Ledger

ATTEMPTS = 3
IDS = [letter * 64 for letter in "abcdef"]
TestEntry = Entry[int, None]
TestOutput = Output[int, None]
SOURCES = st.sampled_from([1, 2, 3])
HAND_OUT = 0


class History:
    """All that was heard of one ID: hand-outs, and the results of each source, with whether they counted, since its last done."""

    def __init__(self) -> None:
        self.events: list[tuple[int, bool]] = []
        """A source, or HAND_OUT; and whether it counted."""
        self.given_up = False
        """Whether a hand-out has ever ended without a done that counted, or was not the first."""

    def run_of(self, source: int) -> list[tuple[int, bool]]:
        return [event for event in self.events if event[0] in {source, HAND_OUT}]

    def has_open_run(self, source: int) -> bool:
        return any(event[0] == source for event in self.events)

    def counts(self, source: int) -> bool:
        """Whether all of the open run of this source came in the hand-out that is out, and was heard."""
        run = self.run_of(source)
        first = next(at for at, event in enumerate(run) if event[0] == source)
        return HAND_OUT not in {event[0] for event in run[first:]} and all(
            heard for each, heard in run if each == source
        )

    def speakers(self) -> set[int]:
        sources = {event[0] for event in self.events} - {HAND_OUT}
        return {source for source in sources if self.counts(source)}

    def has_dropped(self) -> bool:
        """Whether a result of an open run did not count."""
        return any(source != HAND_OUT and not heard for source, heard in self.events)

    def end_run(self, source: int) -> None:
        self.events = [event for event in self.events if event[0] != source]


@dataclass(eq=False)
class Life:
    """What has happened to one life of a fragment."""

    deliveries: list[int]
    unsafe: set[str] = field(default_factory=set)
    """Outputs that named it and are not safe."""
    own: set[str] = field(default_factory=set)
    """Outputs that came while it was handed out; others that name it are of an earlier life, or made up."""
    handed_out: bool = False
    hand_outs: int = 0
    fenced: bool = False
    void: bool = False
    owed: int = 0
    done: bool = False
    refused: bool = False
    doubted_by: set[int] = field(default_factory=set)
    """The sources of dones that did not count."""
    brought: list[int] = field(default_factory=list)
    """What each delivery said of attempts."""
    blamed: int = 0
    doubts: int = 0

    @property
    def blame(self) -> int:
        return max(self.brought) + self.blamed


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger: Ledger[int, None] = Ledger(
            OutputIdentity("pipeline", "step"), attempts_allowed=ATTEMPTS
        )
        self.lives: dict[TestEntry, Life] = {}
        self.pending: list[TestOutput] = []
        self.fallen: list[TestEntry] = []
        self.deliveries = 0
        self.acknowledged: dict[str, object] = {}
        self.newest: dict[str, TestEntry] = {}
        self.published: dict[str, tuple[object, ...]] = {}
        self.histories: defaultdict[str, History] = defaultdict(History)

    # -- what the world does

    @rule(fragment_id=st.sampled_from(IDS), other_files=st.booleans(), attempts=st.integers(0, 2))
    def deliver(self, fragment_id: str, other_files: bool, attempts: int) -> None:
        self.deliveries += 1
        current = self.newest.get(fragment_id)
        admission, entry = self.ledger.admit(
            fragment_id, other_files, self.deliveries, None, attempts=attempts
        )
        if current is None:
            if fragment_id in self.acknowledged:
                same = self.acknowledged[fragment_id] == other_files
                assert admission is (Admission.SETTLED if same else Admission.CONFLICT)
                assert entry is None
                return
        elif not (current.verdict is Verdict.STRIKE and attempts >= current.attempts):
            if current.signature == other_files:
                assert (admission, entry) == (Admission.JOINED, current)
                life = self.lives[current]
                life.deliveries.append(self.deliveries)
                if current.verdict is not Verdict.STRIKE:
                    life.brought.append(attempts)
            else:
                assert (admission, entry) == (Admission.CONFLICT, None)
            return
        assert admission is Admission.NEW
        assert entry is not None
        self.newest[fragment_id] = entry
        self.lives[entry] = Life([self.deliveries], brought=[attempts])

    @precondition(lambda self: self.having(State.WAITING))
    @rule(data=st.data())
    def ready(self, data: st.DataObject) -> None:
        self.ledger.is_ready(data.draw(st.sampled_from(self.having(State.WAITING))))

    @precondition(lambda self: self.having(State.WAITING))
    @rule(data=st.data())
    def reject(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.having(State.WAITING)))
        self.fall(self.ledger.reject(entry, "no such object"))
        assert entry.verdict is Verdict.DEAD_LETTER or self.lives[entry].unsafe

    @precondition(lambda self: self.having(State.READY))
    @rule(data=st.data())
    def hand_out(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.having(State.READY)))
        life = self.lives[entry]
        earlier = life.unsafe & life.own
        assert not earlier, "handed out again before its earlier results were finished"
        life.own.clear()
        self.begin(entry)

    def begin(self, entry: TestEntry) -> None:
        life, history = self.lives[entry], self.histories[entry.fragment_id]
        life.handed_out, life.void, life.refused = True, False, False
        life.doubted_by.clear()
        life.hand_outs += 1
        history.given_up |= life.hand_outs > 1 or life.blame > 0
        life.fenced = history.given_up
        history.events.append((HAND_OUT, True))
        self.ledger.hand_out(entry)

    # -- who may speak

    def standing(self, fragment_id: str, source: int) -> str:
        """What a result from this source is to a fragment: it counts, it may, it does not; or the fragment is not here."""
        history, entry = self.histories[fragment_id], self.newest.get(fragment_id)
        settled = entry is None or (entry.state is State.DONE and entry.verdict is not None)
        if settled:
            return "stray" if history.given_up else "not here"
        assert entry is not None
        life = self.lives[entry]
        if not life.handed_out and not (life.done and entry.verdict is None):
            return "stray"
        if history.has_open_run(source):
            return "counts" if history.counts(source) else "stray"
        if not life.fenced:
            return "counts"
        return "may count" if life.handed_out and not history.speakers() else "stray"

    def expect_result(self, predecessors: list[str], source: int) -> set[TestEntry] | None:
        """Return the entries that a result is to be waited for by, and note it; None for a result that is stray."""
        standings = {each: self.standing(each, source) for each in set(predecessors)}
        dropped = "counts" not in standings.values() and "stray" in standings.values()
        expected: set[TestEntry] = set()
        for fragment_id, standing in standings.items():
            if standing == "not here":
                continue
            heard = standing != "stray" and not dropped
            self.histories[fragment_id].events.append((source, heard))
            if heard:
                expected.add(self.newest[fragment_id])
        return None if dropped else expected

    @rule(
        predecessors=st.lists(st.sampled_from(IDS), min_size=1, max_size=3),
        name=st.sampled_from(["x", "y"]),
        channel=st.sampled_from([None, "errors"]),
        source=SOURCES,
    )
    def result(self, predecessors: list[str], name: str, channel: str | None, source: int) -> None:
        expected = self.expect_result(predecessors, source)
        output = self.ledger.take_result(predecessors, channel, [name], source)
        assert output.stray == (expected is None)
        if expected is None:
            assert not output.entries
            return
        if output.repeated:
            first = next(
                (each for each in self.pending if each.output_id == output.output_id), None
            )
            if first is None:
                assert any(output.output_id in entry.known_outputs for entry in expected)
            else:
                for entry in expected:
                    self.lives[entry].unsafe.add(output.output_id)
            return
        assert set(output.entries) == expected
        assert output.late == (not expected)
        assert all(each.output_id != output.output_id for each in self.pending)
        described = (tuple(sorted(set(predecessors))), channel, name)
        assert self.published.setdefault(output.output_id, described) == described
        for entry in expected:
            self.lives[entry].unsafe.add(output.output_id)
            if self.lives[entry].handed_out:
                self.lives[entry].own.add(output.output_id)
        self.pending.append(output)

    @rule(predecessors=st.lists(st.sampled_from(IDS), min_size=1, max_size=3), source=SOURCES)
    def refuse(self, predecessors: list[str], source: int) -> None:
        heard = self.expect_result(predecessors, source) or set()
        out = [entry for entry in heard if entry.state is State.OUT]
        refused = self.ledger.refuse_result(predecessors, "outside the volume", source=source)
        assert refused == len(out)
        for entry in out:
            self.lives[entry].refused = True

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), safe=st.booleans())
    def output_ends(self, data: st.DataObject, safe: bool) -> None:
        output = data.draw(st.sampled_from(self.pending))
        self.end_output(output, safe=safe)

    def end_output(self, output: TestOutput, *, safe: bool) -> None:
        self.pending.remove(output)
        for entry in output.entries:
            self.lives[entry].unsafe.discard(output.output_id)
            self.lives[entry].refused |= not safe
        self.fall(
            self.ledger.output_safe(output)
            if safe
            else self.ledger.output_refused(output, "cannot be stored")
        )

    @rule(fragment_id=st.sampled_from(IDS), source=SOURCES)
    def done(self, fragment_id: str, source: int) -> None:
        current = self.newest.get(fragment_id)
        history = self.histories[fragment_id]
        if history.has_open_run(source):
            counts = history.counts(source)
        else:
            fenced = current is not None and self.lives[current].fenced
            counts = not (fenced and (history.speakers() or history.has_dropped()))
            if current is not None and source in self.lives[current].doubted_by:
                counts = False
        history.end_run(source)
        entry, fallen = self.ledger.done(fragment_id, source)
        if current is None or not self.lives[current].handed_out or not counts:
            assert (entry, fallen) == (None, [])
            if current is not None and self.lives[current].handed_out:
                assert current.doubted
                self.lives[current].doubted_by.add(source)
            return
        assert entry is current
        life = self.lives[current]
        life.handed_out = False
        if life.void:
            history.given_up = True
        elif life.owed:
            life.owed -= 1
            history.given_up = True
        else:
            life.done = True
        self.fall(fallen)

    @rule()
    def breach(self) -> None:
        voided = self.ledger.breach("garbage")
        out = [e for e, life in self.lives.items() if life.handed_out and not life.void]
        assert set(voided) == set(out)
        for entry in out:
            self.lives[entry].void = True
            self.lives[entry].blamed += 1

    @precondition(lambda self: self.having(State.OUT))
    @rule(data=st.data())
    def give_up_void(self, data: st.DataObject) -> None:
        void = [entry for entry in self.having(State.OUT) if self.lives[entry].void]
        if void:
            entry = data.draw(st.sampled_from(void))
            self.leave(entry)
            self.lives[entry].owed += 1
            self.fall(self.ledger.give_up_void(entry))

    @precondition(lambda self: self.doubted())
    @rule(data=st.data())
    def give_up_doubted(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.doubted()))
        self.leave(entry)
        self.lives[entry].doubts += 1
        self.fall(self.ledger.give_up_doubted(entry))

    def doubted(self) -> list[TestEntry]:
        return [entry for entry in self.having(State.OUT) if entry.doubted]

    def leave(self, entry: TestEntry) -> None:
        """A hand-out has ended without a done."""
        self.histories[entry.fragment_id].given_up |= self.lives[entry].handed_out
        self.lives[entry].handed_out = False

    @precondition(lambda self: self.having(State.OUT))
    @rule(data=st.data(), death=st.booleans())
    def connection_closes(self, data: st.DataObject, death: bool) -> None:
        held = data.draw(
            st.lists(st.sampled_from(self.having(State.OUT)), min_size=1, max_size=3, unique=True)
        )
        # Beside others that are no suspects the only one of them does not lose its last attempt.
        suspects = [entry for entry in held if entry.suspect]
        spared = len(suspects) == 1 < len(held) and self.lives[suspects[0]].blame + 1 >= ATTEMPTS
        for entry in held:
            life = self.lives[entry]
            self.leave(entry)
            blamed = held == [entry] or (entry.suspect and not spared)
            if death and blamed and not life.void:
                life.blamed += 1
        self.fall(self.ledger.connection_closed(held, death=death))
        if death:
            assert all(entry.suspect for entry in held)

    @precondition(lambda self: self.open_without_verdict())
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.open_without_verdict()))
        was_done = self.lives[entry].done
        fallen = self.ledger.give_back(entry)
        if was_done:
            assert not fallen, "a fragment that is done is acknowledged, not given back"
        else:
            self.leave(entry)
        self.fall(fallen)

    @precondition(lambda self: self.fallen)
    @rule(data=st.data())
    def carry_out(self, data: st.DataObject) -> None:
        self.carry(data.draw(st.sampled_from(self.fallen)))

    def carry(self, entry: TestEntry) -> None:
        self.fallen.remove(entry)
        life = self.lives[entry]
        assert not life.unsafe
        if entry.verdict is Verdict.AGAIN:
            self.ledger.again(entry)
            return
        assert entry.deliveries == life.deliveries
        self.ledger.close(entry)
        del self.lives[entry]
        if self.newest.get(entry.fragment_id) is entry:
            del self.newest[entry.fragment_id]
            if not self.histories[entry.fragment_id].given_up:
                del self.histories[entry.fragment_id]
        if entry.verdict is Verdict.ACKNOWLEDGE:
            self.acknowledged[entry.fragment_id] = entry.signature

    # -- what is promised

    def fall(self, fallen: list[TestEntry]) -> None:
        for entry in fallen:
            life = self.lives[entry]
            assert entry not in self.fallen, "its verdict fell twice"
            assert not life.unsafe, "a verdict before all of its outputs are safe"
            verdict = entry.verdict
            if verdict is Verdict.ACKNOWLEDGE:
                assert life.done
                assert not life.refused
            if verdict is Verdict.STRIKE:
                assert max(life.brought) < life.blame < ATTEMPTS, (
                    "it would be taken for a delivery of it that is known"
                )
            if verdict in {Verdict.AGAIN, Verdict.STRIKE, Verdict.GIVE_BACK}:
                assert not life.done
            if life.done and (life.refused or life.blame >= ATTEMPTS > 0) and verdict is None:
                raise AssertionError("no verdict")
            self.fallen.append(entry)

    def having(self, state: State) -> list[TestEntry]:
        return [entry for entry in self.lives if entry.state is state and entry.verdict is None]

    def open_without_verdict(self) -> list[TestEntry]:
        return [entry for entry in self.lives if entry.verdict is None]

    @invariant()
    def it_knows_what_is_open(self) -> None:
        assert len(self.ledger) == len(self.lives)
        assert set(self.ledger) == set(self.lives)
        assert self.ledger.out() == sum(life.handed_out for life in self.lives.values())
        for entry, life in self.lives.items():
            assert entry.pending == len(life.unsafe)
            assert entry.attempts == life.blame

    def teardown(self) -> None:
        """Whatever has happened: when the world goes on, everything that is open is settled in a few rounds."""
        for _ in range(4 * ATTEMPTS + 20):
            for output in list(self.pending):
                self.end_output(output, safe=True)
            for entry in list(self.fallen):
                self.carry(entry)
            for entry in self.having(State.WAITING):
                self.ledger.is_ready(entry)
            for entry in self.having(State.READY):
                self.begin(entry)
            for entry in self.having(State.OUT):
                for source in (1, 2, 3):
                    self.done(entry.fragment_id, source)
            for entry in self.doubted():
                self.leave(entry)
                self.lives[entry].doubts += 1
                self.fall(self.ledger.give_up_doubted(entry))
        assert not self.lives, f"stuck: {list(self.lives)}"


LedgerMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
TestLedger = LedgerMachine.TestCase
