from __future__ import annotations

import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from iterum_sidecar.editions import ATTEMPTS_HEADER
from iterum_sidecar.local.broker import PAGE, JournalBroker, SetAside, StepBroker, fragment_id_of
from iterum_sidecar.local.journal import Journal, JournalState
from iterum_sidecar.messages import RemoteFragment, RemoteMetadata, encode_message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from iterum_sidecar.brokers.memory import MemoryConsumer, MemoryDelivery

QUEUES = {"q0": "c0", "q1": "c1"}
WINDOW = 32


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite") as opened:
        yield opened


def id_of(number: int) -> str:
    return f"{number:064}"


def body_of(fragment_id: str, *predecessors: str) -> bytes:
    return encode_message(RemoteFragment([], RemoteMetadata(fragment_id, list(predecessors))))


def add_first(journal: Journal, numbers: Sequence[int]) -> list[str]:
    ids = [id_of(number) for number in numbers]
    for each in ids:
        journal.add_first(each, "c0", body_of(each))
    return ids


async def received(consumer: MemoryConsumer) -> list[MemoryDelivery]:
    """Return what has arrived; nothing, if nothing has."""
    found: list[MemoryDelivery] = []

    async def receive() -> None:
        found.extend(await consumer.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel("nothing more comes")
    return found


def ids(deliveries: Sequence[MemoryDelivery]) -> list[str]:
    return [fragment_id_of(each.body) for each in deliveries]


# -- the queues


@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE + 7])
async def test_all_that_the_journal_has_comes_once_and_in_order(
    journal: Journal, count: int
) -> None:
    expected = add_first(journal, range(count, 0, -1))
    broker = JournalBroker(journal, QUEUES)
    assert broker.waiting("q0") == count
    found: list[str] = []
    async with broker.consume("q0", WINDOW) as consumer:
        while deliveries := await received(consumer):
            assert len(deliveries) <= WINDOW
            assert len(broker.messages("q0")) <= PAGE
            found += ids(deliveries)
            for delivery in deliveries:
                broker.acknowledge(delivery)
    assert found == expected
    assert broker.waiting("q0") == broker.in_work("q0") == 0


async def test_what_a_consumer_leaves_behind_comes_again_before_what_comes_after_it(
    journal: Journal,
) -> None:
    expected = add_first(journal, range(2 * PAGE))
    broker = JournalBroker(journal, QUEUES)
    async with broker.consume("q0", WINDOW) as consumer:
        first, *_ = await consumer.receive()
        broker.acknowledge(first)
    assert broker.waiting("q0") == 2 * PAGE - 1
    async with broker.consume("q0", WINDOW) as consumer:
        assert ids(await consumer.receive()) == expected[1 : WINDOW + 1]


@settings(max_examples=60, deadline=None)
@given(actions=st.lists(st.sampled_from(["add", "take", "settle", "back", "leave"]), max_size=60))
def test_whatever_happens_nothing_is_lost_and_nothing_is_there_twice(actions: list[str]) -> None:
    async def play() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            Journal(Path(folder) / "journal.sqlite") as journal,
        ):
            await _play(journal, actions)

    trio.run(play)


async def _play(journal: Journal, actions: Sequence[str]) -> None:
    """Add a third of a page at a time, and take, settle, give back and leave between."""
    expected = add_first(journal, range(PAGE + 10))
    broker = JournalBroker(journal, QUEUES)
    settled: list[str] = []
    left = list(actions)
    over = False
    while not over:
        async with broker.consume("q0", WINDOW) as consumer:
            held: list[MemoryDelivery] = []
            while True:
                action = left.pop(0) if left else "take" if not held else "settle"
                if action == "add":
                    expected += _enqueue(journal, broker, len(expected), PAGE // 3)
                elif action == "take":
                    held += await received(consumer)
                    if not left and not held:
                        over = True
                        break
                elif action == "settle":
                    for delivery in held:
                        settled += ids([delivery])
                        journal.finish(settled[-1], "print")
                        broker.acknowledge(delivery)
                    held.clear()
                elif action == "back" and held:
                    broker.give_back(held.pop(len(held) // 2))
                elif action == "leave":
                    break
    assert sorted(settled) == sorted(expected)
    assert len(set(settled)) == len(settled)
    assert broker.waiting("q0") == broker.in_work("q0") == 0


def _enqueue(journal: Journal, broker: JournalBroker, start: int, count: int) -> list[str]:
    added = [id_of(number) for number in range(start, start + count)]
    for each in added:
        published = journal.publish(
            each,
            producer="s",
            made_by="print",
            channel="c0",
            body=body_of(each),
            predecessors=[],
            gathered=None,
        )
        assert published.number is not None
        broker.enqueue("q0", published.number, body_of(each))
    return added


# -- a step's view of them


class Bench:
    """One sidecar's broker, with three fragments in its input queue."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.inputs = add_first(journal, range(3))
        self.shared = JournalBroker(journal, QUEUES)
        self.set_aside: list[SetAside] = []
        self.premature = False
        self.gathers = False
        self.broker = StepBroker(
            self.shared,
            journal,
            step="s",
            made_by="print",
            ancestry="ancestry",
            input_queue="q0",
            dead_letter_queue="dead",
            set_aside=self.set_aside.append,
            gathers=False,
            says_gathers=lambda: self.gathers,
            is_premature=lambda _predecessors: self.premature,
        )

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[list[MemoryDelivery]]:
        async with self.broker.consume("q0", WINDOW) as consumer:
            yield await consumer.receive()

    def states(self) -> list[int]:
        return [self.journal.count("c0", state) for state in JournalState]


@pytest.fixture
def bench(journal: Journal) -> Bench:
    return Bench(journal)


async def test_an_output_is_in_the_journal_and_in_the_next_queue_once(bench: Bench) -> None:
    output = body_of("f" * 64, bench.inputs[0])
    async with bench.taken() as (first, *_):
        for _ in range(2):
            await (await bench.broker.publish("q1", output)).wait()
        bench.broker.acknowledge(first)
    assert [row.body for row in bench.journal.waiting("c1", 0, 10)] == [output]
    assert bench.shared.waiting("q1") == 1
    assert bench.states() == [2, 1, 0]


async def test_a_fragment_that_was_struck_is_not_finished_by_its_acknowledgement(
    bench: Bench,
) -> None:
    async with bench.taken() as (first, *_):
        await bench.broker.publish("q0", first.body, {ATTEMPTS_HEADER: 1})
        bench.broker.acknowledge(first)
        assert bench.states() == [3, 0, 0]
    async with bench.taken() as deliveries:
        (again,) = (each for each in deliveries if each.headers)
        assert ids([again]) == bench.inputs[:1]
        assert again.headers[ATTEMPTS_HEADER] == 1
        bench.broker.acknowledge(again)
    assert bench.states() == [2, 1, 0]
    # Attempts that the next run would find.
    assert [row.attempts for row in bench.journal.waiting("c0", 0, 10)] == [0, 0]


async def test_attempts_of_an_earlier_run_come_with_the_fragment(journal: Journal) -> None:
    bench = Bench(journal)
    journal.strike(bench.inputs[1], 2)
    async with JournalBroker(journal, QUEUES).consume("q0", WINDOW) as consumer:
        headers = [dict(each.headers) for each in await consumer.receive()]
    assert headers == [{}, {ATTEMPTS_HEADER: 2}, {}]


async def test_a_dead_letter_is_set_aside_with_its_reason(bench: Bench) -> None:
    async with bench.taken() as (first, *_):
        await bench.broker.publish("dead", first.body, {"x-iterum-reason": "no picture"})
        bench.broker.acknowledge(first)
    assert bench.set_aside == [SetAside("s", first.body, "no picture")]
    assert bench.states() == [2, 0, 1]
    assert list(bench.journal.failed()) == bench.inputs[:1]


async def test_a_batch_that_was_cut_short_is_not_delivered_and_waits_for_the_next_run(
    bench: Bench,
) -> None:
    bench.premature = True
    async with bench.taken() as (first, second, _):
        await bench.broker.publish("q1", body_of("f" * 64, *bench.inputs[:2]))
        bench.broker.acknowledge(first)
        bench.broker.acknowledge(second)
    assert bench.states() == [3, 0, 0]
    assert bench.shared.waiting("q1") == 0


@pytest.mark.parametrize(
    ("predecessors", "says", "gathers"), [(1, False, False), (2, False, True), (1, True, True)]
)
async def test_a_step_is_noted_as_gathering_with_its_first_such_result(
    bench: Bench, predecessors: int, says: bool, gathers: bool
) -> None:
    bench.gathers = says
    await bench.broker.publish("q1", body_of("f" * 64, *bench.inputs[:predecessors]))
    record = bench.journal.step("print")
    assert record.gathers == gathers
    assert record.ancestry == ("ancestry" if gathers else "")
