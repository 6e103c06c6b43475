"""The ledger beside processes that go on sending after they were given up: thousands of random walks through a small world.

Each process of this world keeps the contract: it works what it is handed one after the other, always in the same way, and sends results and done by
one output connection. But its input connection may be closed at any moment, and it may hear of that or go on, hang and wake, leave its work where it is,
or die. Whatever comes of that: a fragment is acknowledged when each of its outputs is safe, and no other output ever comes of it.

Walks are seeded, so one that fails fails again; `test_ledger_model.py` has the rules one by one, and finds the shortest way to break one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.entries import Admission, Entry, Output, State, Verdict
from iterum_sidecar.identity import OutputIdentity
from iterum_sidecar.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Sequence

ATTEMPTS = 4
IDENTITY = OutputIdentity("pipeline", "step")
WALKS = 2000
STEPS = 80
TestEntry = Entry[int, None]
TestOutput = Output[int, None]


@dataclass(eq=False)
class Run:
    """What a process has still to send of one hand-out: names of results, and None for each done."""

    entries: list[TestEntry]
    hand_outs: list[int]
    left: list[str | None]
    lost: bool = False
    """Whether its hand-out has been ended from outside."""
    begun: bool = False


@dataclass(eq=False)
class Process:
    """A process with one output connection, and an input connection that is opened again when it has closed."""

    source: int
    runs: list[Run] = field(default_factory=list)


class World:
    """A queue, a ledger, and processes. `work` are the names of the results of each fragment, in the order in which they are made."""

    def __init__(self, work: dict[str, list[str]], seed: int) -> None:
        self.work = work
        self.random = Random(seed)
        self.ledger: Ledger[int, None] = Ledger(IDENTITY, attempts_allowed=ATTEMPTS)
        self.sources = count()
        self.processes = [Process(next(self.sources)) for _ in range(2)]
        self.entries: list[TestEntry] = []
        self.pending: list[tuple[TestOutput, tuple[str, ...]]] = []
        self.fallen: list[TestEntry] = []
        self.queue: list[tuple[str, int]] = []
        """What is in the queue: fragments with their attempts."""
        self.safe: dict[str, set[str]] = {each: set() for each in work}
        self.acknowledged: set[str] = set()
        self.dead: set[str] = set()

    def walk(self) -> None:
        """Do something at random, again and again, and then let the world go on until all is settled."""
        self.queue = [(each, 0) for each in self.work]
        acts = [
            *[self.deliver, self.hand_out, self.send, self.send, self.send],
            *[self.carry_out, self.make_outputs_safe, self.close_input, self.close_input],
            *[self.leave_work, self.die, self.give_up_doubted, self.breach, self.give_up_void],
        ]
        for _ in range(STEPS):
            self.random.choice(acts)()
        for _ in range(20 * ATTEMPTS):
            for process in self.processes:
                while process.runs:
                    self.send_next(process)
            self.make_outputs_safe()
            self.carry_out()
            self.give_up_doubted()
            while self.queue:
                self.deliver()
            self.hand_out()
        assert not self.entries, f"stuck: {self.entries}"
        assert self.acknowledged | self.dead == set(self.work)

    # -- the queue

    def deliver(self) -> None:
        if self.queue:
            fragment_id, attempts = self.queue.pop(self.random.randrange(len(self.queue)))
            admission, entry = self.ledger.admit(fragment_id, None, 0, None, attempts=attempts)
            assert admission is Admission.NEW
            assert entry is not None
            self.entries.append(entry)

    def hand_out(self) -> None:
        for entry in self.having(State.WAITING):
            self.ledger.is_ready(entry)
        for entry in self.having(State.READY):
            self.hand(self.random.choice(self.processes), [entry])

    def hand(self, process: Process, entries: list[TestEntry]) -> None:
        for entry in entries:
            self.ledger.hand_out(entry)
        names = self.work[entries[0].fragment_id]
        hand_outs = [entry.hand_outs for entry in entries]
        process.runs.append(Run(entries, hand_outs, [*names, *[None] * len(entries)]))

    # -- the processes

    def send(self) -> None:
        process = self.random.choice(self.processes)
        if process.runs:
            self.send_next(process)

    def send_next(self, process: Process) -> None:
        run = process.runs[0]
        message = run.left.pop(0)
        run.begun = True
        ids = [entry.fragment_id for entry in run.entries]
        if message is None:
            own = ids[-len(run.left) - 1]
            _, fallen = self.ledger.done(own, process.source)
            self.fallen += fallen
        else:
            self.take(self.ledger.take_result(ids, None, [message], process.source), ids)
        if not run.left:
            process.runs.remove(run)

    def take(self, output: TestOutput, ids: Sequence[str]) -> None:
        if not output.repeated and not output.stray:
            assert output.output_id not in {each.output_id for each, _ in self.pending}
            self.check_output(output, ids)
            self.pending.append((output, tuple(ids)))

    def check_output(self, output: TestOutput, ids: Sequence[str]) -> None:
        assert output.output_id in self.outputs_of(ids[0]), "it comes out under a second ID"

    def outputs_of(self, fragment_id: str) -> set[str]:
        names = self.work[fragment_id]
        return {
            IDENTITY.derive([fragment_id], None, [name], names[:at].count(name))
            for at, name in enumerate(names)
        }

    def close_input(self) -> None:
        """A process that hangs is given up, or only its input has gone; what it was sent it may still read and work."""
        self.close(self.random.choice(self.processes), death=self.random.random() < 0.3)

    def close(self, process: Process, *, death: bool) -> None:
        held = [
            entry
            for run in process.runs
            if not run.lost
            for entry, number in zip(run.entries, run.hand_outs, strict=True)
            if entry.state is State.OUT and entry.hand_outs == number
        ]
        for run in process.runs:
            run.lost = True
        self.fallen += self.ledger.connection_closed(held, death=death)

    def leave_work(self) -> None:
        """A process notices that its input has gone and begins anew: after half a run with a new output connection too."""
        process = self.random.choice(self.processes)
        if process.runs and process.runs[0].lost and process.runs[0].begun:
            process.source = next(self.sources)
        process.runs = [run for run in process.runs if not run.lost]

    def die(self) -> None:
        process = self.random.choice(self.processes)
        self.close(process, death=True)
        self.processes[self.processes.index(process)] = Process(next(self.sources))

    def breach(self) -> None:
        """An output connection of somebody's else breaks in the middle of a frame."""
        if self.random.random() < 0.3:
            self.ledger.breach("garbage")

    def give_up_void(self) -> None:
        """One fragment that a breach has made void is given up, maybe out of the middle of a batch."""
        void = [entry for entry in self.having(State.OUT) if entry.void]
        if void:
            self.fallen += self.ledger.give_up_void(self.random.choice(void))

    def give_up_doubted(self) -> None:
        """What is doubted is given up when its holder has read all that it was sent, and waits for input."""
        at_work = {
            entry for process in self.processes for run in process.runs for entry in run.entries
        }
        for entry in self.having(State.OUT):
            if entry not in at_work:
                assert entry.doubted or entry.void, "stuck: its done has not ended its hand-out"
                self.fallen += self.ledger.give_up_doubted(entry)

    # -- the rest of the row

    def make_outputs_safe(self) -> None:
        while self.pending:
            output, ids = self.pending.pop()
            for each in ids:
                self.safe[each].add(output.output_id)
            self.fallen += self.ledger.output_safe(output)

    def carry_out(self) -> None:
        for entry in self.fallen:
            if entry.verdict is Verdict.AGAIN:
                self.ledger.again(entry)
                continue
            if entry.verdict is Verdict.ACKNOWLEDGE:
                self.check_acknowledged(entry.fragment_id)
                self.acknowledged.add(entry.fragment_id)
            elif entry.verdict is Verdict.STRIKE:
                self.queue.append((entry.fragment_id, entry.attempts))
            else:
                assert entry.verdict is Verdict.DEAD_LETTER
                assert max(entry.attempts, entry.doubts - 1) >= ATTEMPTS
                self.dead.add(entry.fragment_id)
            self.ledger.close(entry)
            self.entries.remove(entry)
        self.fallen.clear()

    def check_acknowledged(self, fragment_id: str) -> None:
        assert self.safe[fragment_id] == self.outputs_of(fragment_id), "some of it is lost"

    def having(self, state: State) -> list[TestEntry]:
        return [entry for entry in self.entries if entry.state is state and entry.verdict is None]


class GatheringWorld(World):
    """A world whose processes gather all that is ready into one result; what is grouped otherwise makes other outputs."""

    def hand_out(self) -> None:
        for entry in self.having(State.WAITING):
            self.ledger.is_ready(entry)
        if batch := self.having(State.READY):
            self.hand(self.random.choice(self.processes), batch)

    def check_output(self, output: TestOutput, ids: Sequence[str]) -> None:
        expected = {IDENTITY.derive(sorted(ids), None, ["x"], 0)}
        assert {output.output_id} == expected, "it comes out under a second ID"

    def check_acknowledged(self, fragment_id: str) -> None:
        assert self.safe[fragment_id], "nothing that came of it is safe"


@pytest.mark.parametrize(
    "work",
    [
        {"a": ["x"]},
        {"a": ["x", "x"]},
        {"a": ["x", "y", "x"]},
        {"a": ["x", "x"], "b": ["y"], "c": []},
    ],
    ids=str,
)
def test_nothing_is_lost_or_comes_out_twice_whatever_goes_on_sending(
    work: dict[str, list[str]],
) -> None:
    for seed in range(WALKS):
        try:
            World({each * 64: names for each, names in work.items()}, seed).walk()
        except AssertionError as error:
            raise AssertionError(f"walk {seed}: {error}") from error


def test_nothing_is_lost_of_what_is_gathered_whatever_goes_on_sending() -> None:
    for seed in range(WALKS):
        try:
            GatheringWorld({each * 64: ["x"] for each in "abc"}, seed).walk()
        except AssertionError as error:
            raise AssertionError(f"walk {seed}: {error}") from error
