from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iterum_sidecar.local.fingerprints import fingerprints
from iterum_sidecar.local.journal import Delivered, Journal, StepRecord
from iterum_sidecar.local.plan import COMBINED, make_plan
from iterum_sidecar.pipeline.model import Combiner, Fragmenter, Pipeline, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from iterum_sidecar.local.plan import Plan

# -- a pipeline that is all in memory but for its journal
#
# A fragment is a list of elements, and an element is a text. What a step makes of an element is the element with the
# step's word behind it, so a result says where it came from, and a gathered one says of what. The result of a whole run is
# every element that reaches the combiner, in whatever fragments: how a step groups is its own affair.

Value: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Shape:
    """A step: how many fragments it takes at a time (None: each one alone), and what it makes of them."""

    name: str
    reads: str
    writes: str
    also_writes: str = ""
    word: str = "a"
    gathers: int | None = None
    drops: str = ""
    """Elements with this letter give no output."""

    def step(self) -> Step:
        mapping = {"also": self.also_writes} if self.also_writes else {}
        return Step(
            name=self.name,
            input_channel=self.reads,
            output_channel=self.writes,
            version=f"{self.word} {self.gathers} {self.drops}",
            config={"queue_mapping": mapping} if mapping else {},
        )

    def outputs(self, values: Sequence[Value]) -> Iterator[tuple[str, Value]]:
        whole = tuple(
            f"{element}{self.word}"
            for value in values
            for element in value
            if not (self.drops and self.drops in element)
        )
        if whole:
            yield self.writes, whole
            if self.also_writes:
                yield self.also_writes, tuple(f"{element}+" for element in whole)


@dataclass(frozen=True)
class World:
    """All that a user may change between two runs."""

    shapes: tuple[Shape, ...]
    inputs: dict[str, str]
    end: str

    def pipeline(self) -> Pipeline:
        return Pipeline(
            name="p",
            fragmenter=Fragmenter(output_channel="c0"),
            steps=tuple(shape.step() for shape in self.shapes),
            combiner=Combiner(input_channel=self.end),
        )

    @property
    def gathers_all_only(self) -> bool:
        return all(shape.gathers is None or shape.gathers > 100 for shape in self.shapes)


class Cut(Exception):
    """The run was killed."""


@dataclass
class Simulation:
    """Runs over one journal. `values` is the store: what was put there stays, however the run ended."""

    folder: Path
    values: dict[str, Value] = field(default_factory=dict)
    begun: list[tuple[str, str]] = field(default_factory=list)
    """The step and the ID of whatever the last run worked on."""
    after_gathering: set[str] = field(default_factory=set)
    """IDs of what came of a step that gathers, of a batch of one too: the journal calls all of that gathered."""

    def run(
        self,
        world: World,
        random: Random,
        *,
        cut_after: int | None = None,
        fails: Callable[[Value], bool] = lambda value: False,
    ) -> Plan:
        """Run, until it is cut off after so many events; what was not committed by then is lost."""
        self.begun = []
        journal = Journal(self.folder / "journal.sqlite")
        try:
            plan = self._plan(journal, world)
            journal.commit()
            _Running(self, world, plan, journal, random, cut_after, fails).run()
            journal.commit()
        except Cut:
            plan = plan
        finally:
            journal._database.close()
        return plan

    def _plan(self, journal: Journal, world: World) -> Plan:
        ids = []
        for name, content in world.inputs.items():
            fragment_id = _digest(name, content)
            ids.append(fragment_id)
            self.values[fragment_id] = (content,)
            journal.add_first(fragment_id, "c0", _body(fragment_id))
        pipeline = world.pipeline()
        prints = fingerprints(pipeline, self.folder)
        return make_plan(journal, pipeline, prints, self.folder, _digest(*sorted(ids)))

    def results(self, world: World) -> list[Value]:
        """Return what has reached the combiner and is of the last run."""
        with Journal(self.folder / "journal.sqlite") as journal:
            rows = journal._read(
                "SELECT id FROM fragment WHERE channel = ? AND live AND state = 1", (world.end,)
            )
            return sorted(tuple(sorted(self.values[row[0]])) for row in rows)

    def finished(self) -> set[tuple[str, str]]:
        """Return what the journal has as finished: by whom, and which."""
        with Journal(self.folder / "journal.sqlite") as journal:
            return {
                (row[0], row[1])
                for row in journal._read("SELECT done_by, id FROM fragment WHERE state = 1")
            }


class _Running:
    """One run after its plan."""

    def __init__(
        self,
        simulation: Simulation,
        world: World,
        plan: Plan,
        journal: Journal,
        random: Random,
        cut_after: int | None,
        fails: Callable[[Value], bool],
    ) -> None:
        self.simulation = simulation
        self.journal = journal
        self.random = random
        self.left = cut_after
        self.fails = fails
        self.world = world
        self.planned = {planned.step.name: planned for planned in plan.steps}
        self.over: set[str] = set()

    def run(self) -> None:
        pipeline = self.world.pipeline()
        shapes = {shape.name: shape for shape in self.world.shapes}
        for name, planned in self.planned.items():
            if not planned.must_run:
                self.over.add(name)
        while left := [name for name in shapes if name not in self.over]:
            shape = shapes[self.random.choice(left)]
            upstream = pipeline.upstream_steps(pipeline.step(shape.name))
            self.work(shape, upstream_over=all(name in self.over for name in upstream))
        for waiting in self.journal.waiting(self.world.end, 0, 10_000):
            self.event()
            own = _id(waiting.body)
            self.journal.deliver(Delivered(own, own, own))
            (self.simulation.folder / own).touch()
            self.journal.finish(own, COMBINED)

    def event(self) -> None:
        """Something is about to be told to the journal."""
        if self.left is not None:
            if not self.left:
                raise Cut
            self.left -= 1
        if self.random.random() < 0.3:
            self.journal.commit()

    def work(self, shape: Shape, *, upstream_over: bool) -> None:
        at_a_time = shape.gathers or 1
        waiting = self.journal.waiting(shape.reads, 0, at_a_time)
        if not waiting and upstream_over:
            self.event()
            own = self.planned[shape.name]
            gathers = shape.gathers is not None or own.gathers
            self.journal.note_step(own.fingerprint, StepRecord(True, gathers, own.ancestry))
            self.over.add(shape.name)
        if not waiting or (len(waiting) < at_a_time and not upstream_over):
            return
        ids = [_id(each.body) for each in waiting]
        self.simulation.begun += [(shape.name, each) for each in ids]
        own = self.planned[shape.name]
        values = [self.simulation.values[each] for each in ids]
        if any(map(self.fails, values)):
            for each in ids:
                self.event()
                self.journal.fail(each, own.fingerprint, "it cannot")
            return
        for channel, value in shape.outputs(values):
            fragment_id = _digest(shape.name, own.fingerprint, channel, *sorted(ids))
            self.simulation.values[fragment_id] = value
            if shape.gathers or self.simulation.after_gathering.intersection(ids):
                self.simulation.after_gathering.add(fragment_id)
            self.event()
            self.journal.publish(
                fragment_id,
                producer=shape.name,
                made_by=own.fingerprint,
                channel=channel,
                body=_body(fragment_id, ids),
                predecessors=ids,
                gathered=own.ancestry if shape.gathers or own.gathers else None,
            )
        for each in ids:
            self.event()
            self.journal.finish(each, own.fingerprint)


def _digest(*parts: str) -> str:
    return sha256("\0".join(parts).encode()).hexdigest()


def _body(fragment_id: str, predecessors: Iterable[str] = ()) -> bytes:
    metadata = {"fragment_id": fragment_id, "predecessors": list(predecessors)}
    return json.dumps({"files": [], "metadata": metadata}).encode()


def _id(body: bytes) -> str:
    found: str = json.loads(body)["metadata"]["fragment_id"]
    return found


def fresh(world: World, random: Random) -> list[Value]:
    with tempfile.TemporaryDirectory() as folder:
        simulation = Simulation(Path(folder))
        simulation.run(world, random)
        return simulation.results(world)


def _with_letter(letter: str) -> Callable[[Value], bool]:
    return lambda value: bool(letter) and any(letter in element for element in value)


def elements(results: Iterable[Value]) -> Counter[str]:
    return Counter(element for value in results for element in value)


def assert_as_fresh(simulation: Simulation, world: World, random: Random) -> None:
    ours, theirs = simulation.results(world), fresh(world, random)
    assert elements(ours) == elements(theirs)
    if world.gathers_all_only:
        assert ours == theirs


# -- worlds, and what may happen to them

ALL = 1000
LETTERS = "abc"


@st.composite
def worlds(draw: st.DrawFn) -> World:
    count = draw(st.integers(1, 3))
    channels = [f"c{number}" for number in range(count + 1)]
    shapes = []
    for number in range(count):
        later = channels[number + 1 :]
        # A channel is read by the step of its number, so each step but the first needs somebody before it.
        writes = channels[number + 1]
        also = draw(st.sampled_from(["", *later[1:]]))
        shapes.append(draw_shape(draw, f"s{number}", channels[number], writes, also))
    return World(tuple(shapes), draw_inputs(draw), channels[-1])


def draw_shape(draw: st.DrawFn, name: str, reads: str, writes: str, also: str) -> Shape:
    return Shape(
        name,
        reads,
        writes,
        also,
        word=draw(st.sampled_from("pqr")),
        gathers=draw(st.sampled_from([None, None, 2, 3, ALL])),
        drops=draw(st.sampled_from(["", "", "a"])),
    )


def draw_inputs(draw: st.DrawFn) -> dict[str, str]:
    names = draw(st.sets(st.integers(0, 5), min_size=1))
    return {str(name): f"{name}{draw(st.sampled_from(LETTERS))}" for name in sorted(names)}


@st.composite
def changed(draw: st.DrawFn, world: World) -> World:
    """Change something, or nothing."""
    match draw(st.sampled_from(["nothing", "inputs", "step", "end", "removed", "channel"])):
        case "inputs":
            inputs = dict(world.inputs)
            for name in draw(st.sets(st.integers(0, 5), min_size=1, max_size=2)):
                if draw(st.booleans()) and len(inputs) > 1:
                    inputs.pop(str(name), None)
                else:
                    inputs[str(name)] = f"{name}{draw(st.sampled_from(LETTERS))}"
            return replace(world, inputs=inputs)
        case "step":
            at = draw(st.integers(0, len(world.shapes) - 1))
            old = world.shapes[at]
            new = draw_shape(draw, old.name, old.reads, old.writes, old.also_writes)
            return replace(world, shapes=(*world.shapes[:at], new, *world.shapes[at + 1 :]))
        case "channel" if len(world.shapes) > 1:
            # To one of two names, so that it may come back.
            channel = draw(st.sampled_from(world.shapes[1:])).reads
            other = channel.swapcase()
            return replace(
                world, shapes=tuple(_renamed(each, channel, other) for each in world.shapes)
            )
        case "end":
            # One more step at the end.
            number = len(world.shapes)
            more = draw_shape(draw, f"s{number}", world.end, f"c{number + 1}", "")
            return replace(world, shapes=(*world.shapes, more), end=more.writes)
        case "removed" if len(world.shapes) > 1:
            last = world.shapes[-1]
            shapes = tuple(
                replace(shape, also_writes="") if shape.also_writes == last.writes else shape
                for shape in world.shapes[:-1]
            )
            return replace(world, shapes=shapes, end=last.reads)
    return world


def _renamed(shape: Shape, old: str, new: str) -> Shape:
    """Return a step in whose pipeline a channel has another name."""
    names = {old: new}
    return replace(
        shape,
        reads=names.get(shape.reads, shape.reads),
        writes=names.get(shape.writes, shape.writes),
        also_writes=names.get(shape.also_writes, shape.also_writes),
    )


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), random=st.randoms(use_true_random=False))
def test_however_runs_are_cut_off_and_what_is_changed_the_results_are_those_of_a_fresh_run(
    data: st.DataObject, random: Random
) -> None:
    world = data.draw(worlds())
    with tempfile.TemporaryDirectory() as folder:
        simulation = Simulation(Path(folder))
        for _ in range(data.draw(st.integers(1, 4))):
            cut_after = data.draw(st.none() | st.integers(0, 30))
            failing = data.draw(st.sampled_from(["", "", *LETTERS]))
            simulation.run(
                world,
                random,
                cut_after=cut_after,
                fails=_with_letter(failing),
            )
            if cut_after is None and not failing:
                assert_as_fresh(simulation, world, random)
            world = data.draw(changed(world))
        before = simulation.finished()
        plan = simulation.run(world, random)
        assert_as_fresh(simulation, world, random)
        prints = {planned.step.name: planned.fingerprint for planned in plan.steps}
        again = {
            (step, each)
            for step, each in simulation.begun
            if (prints[step], each) in before
            and each not in simulation.after_gathering
            and (world.pipeline().step(step).version or "").split()[1] == "None"
        }
        assert not again, "what the journal had as finished is done again"
        assert simulation.run(world, random).is_empty
        assert simulation.begun == []


# -- what was found to go wrong, each by itself

ONE_STEP = World((Shape("s0", "c0", "c1", gathers=ALL),), {"0": "0", "1": "1"}, "c1")


@pytest.fixture
def simulation(tmp_path: Path) -> Simulation:
    return Simulation(tmp_path)


class Calm(Random):
    """Nothing is committed but at the end of a run, or after the events of those numbers."""

    def __init__(self, *commits: int) -> None:
        super().__init__(0)
        self._commits = commits
        self._events = 0

    def random(self) -> float:
        self._events += 1
        return 0.0 if self._events in self._commits else 1.0

    def choice(self, seq: Any) -> Any:  # noqa: ANN401 - as Random.choice has it
        return seq[0]


@pytest.mark.parametrize("finished", [1, 2])
def test_a_batch_of_which_a_part_was_finished_when_the_run_was_killed_is_gathered_whole(
    simulation: Simulation, finished: int
) -> None:
    world = replace(ONE_STEP, inputs={"0": "0", "1": "1", "2": "2"})
    # The output, then so many of the dones; the commit is at the beginning of the event that is the last.
    simulation.run(world, Calm(2 + finished), cut_after=2 + finished)
    assert len(simulation.finished()) == finished
    simulation.run(world, Calm())
    assert simulation.results(world) == [("0a", "1a", "2a")]


@pytest.mark.parametrize(
    "inputs", [{"0": "0", "1": "1", "2": "2"}, {"0": "0"}, {"0": "0", "1": "changed"}]
)
def test_what_is_gathered_anew_because_the_input_has_changed_is_gathered_once(
    simulation: Simulation, inputs: dict[str, str]
) -> None:
    simulation.run(ONE_STEP, Calm())
    world = replace(ONE_STEP, inputs=inputs)
    simulation.run(world, Calm())
    assert_as_fresh(simulation, world, Calm())
    assert simulation.run(world, Calm()).is_empty


def test_what_was_gathered_of_one_fragment_alone_is_gathered_again_when_another_comes(
    simulation: Simulation,
) -> None:
    simulation.run(replace(ONE_STEP, inputs={"0": "0"}), Calm())
    simulation.run(ONE_STEP, Calm())
    assert simulation.results(ONE_STEP) == [("0a", "1a")]


def test_a_last_batch_of_one_is_gathered_again_when_more_come(simulation: Simulation) -> None:
    world = World((Shape("s0", "c0", "c1", gathers=2),), {"0": "0", "1": "1", "2": "2"}, "c1")
    simulation.run(world, Calm())
    world = replace(world, inputs={**world.inputs, "3": "3"})
    simulation.run(world, Calm())
    assert simulation.results(world) == [("0a", "1a"), ("2a", "3a")]


def test_what_failed_before_a_gathering_step_joins_what_was_gathered_of_one(
    simulation: Simulation,
) -> None:
    world = World(
        (Shape("s0", "c0", "c1"), Shape("s1", "c1", "c2", gathers=ALL)), ONE_STEP.inputs, "c2"
    )
    simulation.run(world, Calm(), fails=lambda value: value == ("1",))
    simulation.run(world, Calm())
    assert simulation.results(world) == [("0aa", "1aa")]


def test_what_a_step_made_for_another_channel_does_not_wait_in_it_for_its_old_reader(
    simulation: Simulation,
) -> None:
    first, second = Shape("s0", "c0", "c1"), Shape("s1", "c1", "c2")
    simulation.run(World((first, second), ONE_STEP.inputs, "c2"), Calm())
    # The second becomes the first, so what it has made lies in a channel that is read before it is planned.
    world = World((Shape("s1", "c0", "c1"), Shape("s0", "c1", "c2")), ONE_STEP.inputs, "c2")
    simulation.run(world, Calm())
    assert_as_fresh(simulation, world, Calm())


def test_what_was_gathered_of_a_channel_is_not_of_a_run_in_which_its_step_reads_another(
    simulation: Simulation,
) -> None:
    # The input's fragments come to both; what is gathered of them differs.
    splits = Shape("s0", "c0", "c1", "c2")
    one, two = Shape("s1", "c1", "c3", gathers=ALL), Shape("s2", "c2", "c3", gathers=ALL)
    world = World((splits, one, two), ONE_STEP.inputs, "c3")
    simulation.run(world, Calm())
    swapped = replace(world, shapes=(splits, replace(one, reads="c2"), replace(two, reads="c1")))
    for each in (swapped, world):
        simulation.run(each, Calm())
        assert len(simulation.results(each)) == 2
        assert_as_fresh(simulation, each, Calm())


def test_what_was_gathered_of_a_channel_that_was_not_read_meanwhile_is_gathered_again(
    simulation: Simulation,
) -> None:
    by_one = World(
        (Shape("s0", "c0", "c1"), Shape("s1", "c1", "c3", gathers=ALL)), ONE_STEP.inputs, "c3"
    )
    by_two = replace(by_one, shapes=(Shape("s0", "c0", "c2"), Shape("s1", "c2", "c3", gathers=ALL)))
    for each in (by_one, by_two, by_one, by_two):
        simulation.run(each, Calm())
        assert simulation.results(each) == [("0aa", "1aa")]
        assert simulation.run(each, Calm()).is_empty


def test_a_step_that_gathers_no_longer_works_what_is_added_alone(simulation: Simulation) -> None:
    simulation.run(ONE_STEP, Calm())
    world = replace(ONE_STEP, shapes=(Shape("s0", "c0", "c1"),))
    simulation.run(world, Calm())
    assert len(simulation.begun) == 2
    simulation.run(replace(world, inputs={**world.inputs, "2": "2"}), Calm())
    assert len(simulation.begun) == 1


def test_a_plan_that_finds_everything_done_writes_next_to_nothing(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path)
    world = replace(ONE_STEP, shapes=(Shape("s0", "c0", "c1"),))
    world = replace(world, inputs={str(number): str(number) for number in range(300)})
    simulation.run(world, Calm())
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        assert simulation._plan(journal, world).is_empty
        journal.commit()
        written = path.with_name("journal.sqlite-wal").stat().st_size
    assert written < path.stat().st_size / 10
