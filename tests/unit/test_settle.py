"""Verdicts carried out: what is acknowledged, when, and with what beside it; over a broker that confirms when the test says so."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing

from iterum_sidecar.brokers.port import MessageTooLarge
from iterum_sidecar.cargo import FragmentCargo, News
from iterum_sidecar.entries import Entry, Verdict
from iterum_sidecar.identity import OutputIdentity
from iterum_sidecar.ledger import Ledger
from iterum_sidecar.messages import RemoteFile, RemoteFragment, RemoteMetadata
from iterum_sidecar.stages.settle import Settle
from iterum_sidecar.telemetry.tally import Tally

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from iterum_sidecar.brokers.port import Broker
    from iterum_sidecar.volume import Volume

A, B = "a" * 64, "b" * 64
TestEntry = Entry[Any, FragmentCargo]


@dataclass(eq=False)
class Message:
    """One delivery."""

    body: bytes
    headers: dict[str, Any] = field(default_factory=dict)


class HesitantBroker:
    """Confirms nothing before it may, and notes all that it is told."""

    def __init__(self) -> None:
        self.may_confirm = trio.Event()
        self.refusals = 0
        """How many messages it still finds too long."""
        self.published: list[tuple[str, bytes, dict[str, Any]]] = []
        self.durable: dict[str, bool] = {}
        self.acknowledged: list[Message] = []
        self.given_back: list[Message] = []

    async def ensure_queue(self, queue: str, *, durable: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        self.durable[queue] = durable

    async def publish(
        self, queue: str, body: bytes, headers: Mapping[str, Any] | None = None
    ) -> HesitantBroker:
        await trio.lowlevel.checkpoint()
        self.published.append((queue, body, dict(headers or {})))
        return self

    async def wait(self) -> None:
        if self.refusals:
            self.refusals -= 1
            raise MessageTooLarge("4 bytes are allowed")
        await self.may_confirm.wait()

    def acknowledge(self, delivery: Message) -> None:
        self.acknowledged.append(delivery)

    def give_back(self, delivery: Message) -> None:
        self.given_back.append(delivery)


class RecordingVolume:
    """Notes what is removed, in order."""

    def __init__(self) -> None:
        self.removed: list[object] = []

    def remove_results(self, results: list[object]) -> None:
        self.removed += results
        results.clear()

    def remove_workspace(self, workspace: object, names: list[str], size: int) -> None:
        self.removed.append((workspace, names, size))


class Share:
    """What a fragment's files hold of the volume's budget."""

    def __init__(self) -> None:
        self.held = 7
        self.released = 0

    def release(self) -> None:
        self.released += 1


class Stage:
    """The stage, the ledger before it, and what it says."""

    def __init__(self) -> None:
        self.broker = HesitantBroker()
        self.volume = RecordingVolume()
        self.ledger: Ledger[Any, FragmentCargo] = Ledger(
            OutputIdentity("pipeline", "step"), attempts_allowed=3
        )
        self.tally = Tally()
        self.fallen, self._fallen = trio.open_memory_channel[TestEntry](100)
        self._handout, self.handed_on = trio.open_memory_channel[TestEntry](100)
        self._news, self.news = trio.open_memory_channel[News](100)

    def out(self, *deliveries: Message, fragment_id: str = A, attempts: int = 0) -> TestEntry:
        first, *others = deliveries
        _, entry = self.ledger.admit(
            fragment_id, "files", first, FragmentCargo(None), attempts=attempts
        )
        assert entry is not None
        for each in others:
            self.ledger.admit(fragment_id, "files", each, FragmentCargo(None))
        self.ledger.is_ready(entry)
        self.ledger.hand_out(entry)
        return entry

    def die(self, entry: TestEntry, reason: str = "it died") -> None:
        for each in self.ledger.connection_closed([entry], death=True, reason=reason):
            self.fallen.send_nowait(each)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        settle = Settle(
            broker=cast("Broker", self.broker),
            volume=cast("Volume", self.volume),
            ledger=self.ledger,
            tally=self.tally,
            step="step",
            input_queue="in",
            dead_letter_queue="dead",
            attempts_header="attempts",
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: settle.run(fallen=self._fallen, to_handout=self._handout, news=self._news)
            )
            yield
            self.fallen.close()


async def test_what_is_struck_is_acknowledged_when_its_next_life_is_safe(
    autojump_clock: object,
) -> None:
    stage = Stage()
    first, copy = Message(b"a", {"theirs": 1}), Message(b"a")
    entry = stage.out(first, copy)
    stage.die(entry)
    async with stage.running():
        await trio.testing.wait_all_tasks_blocked()
        assert stage.broker.published == [("in", b"a", {"theirs": 1, "attempts": 1})]
        assert stage.broker.acknowledged == []
        assert len(stage.ledger) == 1
        stage.broker.may_confirm.set()
    assert stage.broker.acknowledged == [first, copy]
    assert stage.broker.given_back == []
    assert (len(stage.ledger), stage.tally.struck) == (0, 1)


async def test_a_dead_letter_is_acknowledged_when_it_is_safe_and_says_why(
    autojump_clock: object,
) -> None:
    stage = Stage()
    message = Message(b"a", {"theirs": 1})
    stage.die(stage.out(message, attempts=2), "ü" * 5000)
    async with stage.running():
        await trio.testing.wait_all_tasks_blocked()
        assert stage.broker.acknowledged == []
        stage.broker.may_confirm.set()
    ((queue, body, headers),) = stage.broker.published
    assert (queue, body) == ("dead", b"a")
    assert stage.broker.durable == {"dead": True}
    assert headers["x-iterum-reason"] == "ü" * 1000, "a broker's frame must hold it"
    del headers["x-iterum-reason"], headers["x-iterum-time"], headers["x-iterum-host"]
    assert headers == {
        "theirs": 1,
        "attempts": 3,
        "x-iterum-kind": "transformation_died",
        "x-iterum-step": "step",
        "x-iterum-queue": "in",
    }
    assert stage.broker.acknowledged == [message]
    assert stage.tally.dead_letters_by_kind == {"transformation_died": 1}


@pytest.mark.parametrize("attempts", [0, 2])
async def test_a_verdict_that_is_told_twice_is_carried_out_once(
    attempts: int, autojump_clock: object
) -> None:
    """It may change on its way here; two copies of a fragment would be worked, or two dead letters be there."""
    stage = Stage()
    message = Message(b"a")
    entry = stage.out(message, attempts=attempts)
    stage.die(entry)
    stage.fallen.send_nowait(entry)
    async with stage.running():
        await trio.testing.wait_all_tasks_blocked()
        stage.broker.may_confirm.set()
        await trio.testing.wait_all_tasks_blocked()
        stage.fallen.send_nowait(entry)
        await trio.testing.wait_all_tasks_blocked()
    assert len(stage.broker.published) == 1
    assert stage.broker.acknowledged == [message]


async def test_what_the_broker_finds_too_long_by_now_is_kept_and_offered_once_a_minute(
    autojump_clock: object,
) -> None:
    stage = Stage()
    message = Message(b"a")
    stage.die(stage.out(message, attempts=2))
    stage.broker.refusals = 2
    stage.broker.may_confirm.set()
    began = trio.current_time()
    async with stage.running():
        await trio.sleep(61)
        assert stage.broker.acknowledged == []
    assert trio.current_time() - began == pytest.approx(120)
    assert len(stage.broker.published) == 3
    assert stage.broker.acknowledged == [message]


async def test_what_is_given_back_is_given_back_by_each_delivery_and_never_acknowledged(
    autojump_clock: object,
) -> None:
    stage = Stage()
    first, copy = Message(b"a"), Message(b"a")
    entry = stage.out(first, copy)
    async with stage.running():
        for each in stage.ledger.give_back(entry):
            stage.fallen.send_nowait(each)
    assert stage.broker.given_back == [first, copy]
    assert (stage.broker.acknowledged, stage.broker.published) == ([], [])
    assert (len(stage.ledger), stage.tally.given_back) == (0, 1)


async def test_that_nothing_is_in_flight_is_told_when_the_last_is_settled_and_not_before(
    autojump_clock: object,
) -> None:
    stage = Stage()
    entries = [stage.out(Message(each.encode()), fragment_id=each) for each in (A, B)]
    async with stage.running():
        for entry, news in zip(entries, (0, 1), strict=True):
            stage.ledger.done(entry.fragment_id)
            assert entry.verdict is Verdict.ACKNOWLEDGE
            stage.fallen.send_nowait(entry)
            await trio.testing.wait_all_tasks_blocked()
            assert stage.news.statistics().current_buffer_used == news
    assert stage.news.receive_nowait() is News.IDLE
    assert stage.tally.fragments == 2


async def test_what_is_to_be_handed_out_again_goes_back_and_is_not_settled(
    autojump_clock: object,
) -> None:
    stage = Stage()
    entry = stage.out(Message(b"a"))
    async with stage.running():
        for each in stage.ledger.connection_closed([entry], death=False):
            stage.fallen.send_nowait(each)
    assert stage.handed_on.receive_nowait() is entry
    assert (stage.broker.acknowledged, stage.broker.given_back) == ([], [])
    assert len(stage.ledger) == 1


# -- what is left on the volume


async def test_the_results_of_a_hand_out_are_removed_before_the_next_can_write_to_their_paths(
    autojump_clock: object,
) -> None:
    stage = Stage()
    entry = stage.out(Message(b"a"))
    entry.work.results = cast("Any", ["result"])
    async with stage.running():
        for each in stage.ledger.connection_closed([entry], death=False):
            stage.fallen.send_nowait(each)
        await stage.handed_on.receive()
        assert stage.volume.removed == ["result"]


async def test_what_a_fragment_had_on_the_volume_goes_with_it_once(autojump_clock: object) -> None:
    """Or the volume fills, and its budget with it."""
    stage = Stage()
    entry, other = stage.out(Message(b"a")), stage.out(Message(b"b"), fragment_id=B)
    share = Share()
    entry.work.results = cast("Any", ["result"])
    entry.work.workspace = cast("Any", "workspace")
    entry.work.share = cast("Any", share)
    file = RemoteFile(name="x", path="iterum_data/x", bucket="b")
    entry.work.message = RemoteFragment([file], RemoteMetadata(A))
    async with stage.running():
        for each in (entry, other):
            stage.ledger.done(each.fragment_id)
            stage.fallen.send_nowait(each)
    assert stage.volume.removed == ["result", ("workspace", ["x"], 7)]
    assert share.released == 1
