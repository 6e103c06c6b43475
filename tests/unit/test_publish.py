"""Outputs are safe when description and lineage are confirmed, and not before; over a broker that confirms when the test says so."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing

from iterum_sidecar.brokers.port import MessageTooLarge, MessageUnroutable
from iterum_sidecar.cargo import FragmentCargo, Parcel
from iterum_sidecar.entries import DeadLetterKind, Entry, Verdict
from iterum_sidecar.identity import OutputIdentity
from iterum_sidecar.ledger import Ledger
from iterum_sidecar.stages.publish import Publish
from iterum_sidecar.telemetry.tally import Tally

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from iterum_sidecar.brokers.port import Broker
    from iterum_sidecar.freight import Freight

A, B = "a" * 64, "b" * 64
OUTPUT, LINEAGE = "out", "lineage"
TestEntry = Entry[Any, FragmentCargo]


class Promise:
    """The confirm of one message."""

    def __init__(self) -> None:
        self.kept = trio.Event()
        self.error: Exception | None = None

    def keep(self, error: Exception | None = None) -> None:
        self.error = error
        self.kept.set()

    async def wait(self) -> None:
        await self.kept.wait()
        if self.error is not None:
            raise self.error


class HesitantBroker:
    """Confirms nothing by itself."""

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []
        self.promises: list[Promise] = []
        self.ensured: list[str] = []

    async def ensure_queue(self, queue: str, *, durable: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        self.ensured.append(queue)

    async def publish(
        self, queue: str, body: bytes, headers: Mapping[str, Any] | None = None
    ) -> Promise:
        await trio.lowlevel.checkpoint()
        self.published.append((queue, body))
        self.promises.append(Promise())
        return self.promises[-1]


class Arrivals:
    """Stands for the freight: which outputs have arrived."""

    def __init__(self) -> None:
        self.outputs: list[object] = []

    def arrived(self, output: object) -> None:
        self.outputs.append(output)


class Stage:
    """The stage, the ledger before it, and what it says."""

    def __init__(self, lineage_queue: str | None = LINEAGE) -> None:
        self.broker = HesitantBroker()
        self.ledger: Ledger[Any, FragmentCargo] = Ledger(
            OutputIdentity("pipeline", "step"), attempts_allowed=3
        )
        self.tally = Tally()
        self.freight = Arrivals()
        self._lineage_queue = lineage_queue
        self._uploaded, self._from_upload = trio.open_memory_channel[Parcel](100)
        self._to_settle, self.fallen = trio.open_memory_channel[TestEntry](100)

    def upload(self, fragment_id: str = A) -> TestEntry:
        """Have the one output of a fragment come, which is done then."""
        _, entry = self.ledger.admit(fragment_id, "files", None, FragmentCargo(None))
        assert entry is not None
        self.ledger.is_ready(entry)
        self.ledger.hand_out(entry)
        output = self.ledger.take_result([fragment_id], None, ["x"])
        self.ledger.done(fragment_id)
        body = json.dumps(fragment_id[0]).encode()
        self._uploaded.send_nowait(Parcel(output, OUTPUT, body, 0.0))
        return entry

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run it; all that was uploaded is published when no more comes."""
        publish = Publish(
            broker=cast("Broker", self.broker),
            ledger=self.ledger,
            tally=self.tally,
            freight=cast("Freight", self.freight),
            step="step",
            lineage_queue=self._lineage_queue,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: publish.run(from_upload=self._from_upload, to_settle=self._to_settle)
            )
            await trio.testing.wait_all_tasks_blocked()
            yield
            self._uploaded.close()


async def test_an_output_is_safe_when_its_description_and_its_lineage_are_confirmed(
    autojump_clock: object,
) -> None:
    stage = Stage()
    entry = stage.upload()
    async with stage.running():
        assert [queue for queue, _ in stage.broker.published] == [OUTPUT, LINEAGE]
        lineage = json.loads(stage.broker.published[1][1])
        assert lineage == {"transformation_step": "step", "description": "a"}
        for promise in stage.broker.promises:
            assert (entry.pending, entry.verdict, stage.freight.outputs) == (1, None, [])
            promise.keep()
            await trio.testing.wait_all_tasks_blocked()
        assert entry.verdict is Verdict.ACKNOWLEDGE
    assert stage.fallen.receive_nowait() is entry
    assert stage.tally.outputs == 1
    assert len(stage.freight.outputs) == 1


async def test_where_lineage_is_off_the_description_is_enough(autojump_clock: object) -> None:
    stage = Stage(lineage_queue=None)
    entry = stage.upload()
    async with stage.running():
        (promise,) = stage.broker.promises
        promise.keep()
    assert entry.verdict is Verdict.ACKNOWLEDGE
    assert stage.broker.published == [(OUTPUT, b'"a"')]


async def test_it_ends_when_all_is_confirmed_and_not_before(autojump_clock: object) -> None:
    stage = Stage()
    entries = [stage.upload(A), stage.upload(B)]
    with trio.move_on_after(60) as scope:
        async with stage.running():
            for promise in stage.broker.promises[:3]:
                promise.keep()
    assert scope.cancelled_caught
    assert [entry.verdict for entry in entries] == [Verdict.ACKNOWLEDGE, None]


@pytest.mark.parametrize("which", [0, 1], ids=["description", "lineage"])
async def test_what_has_no_queue_is_offered_again_until_it_is_safe(
    which: int, autojump_clock: object
) -> None:
    stage = Stage()
    entry = stage.upload()
    async with stage.running():
        promises = stage.broker.promises
        promises[1 - which].keep()
        promises[which].keep(MessageUnroutable("no queue"))
        await trio.testing.wait_all_tasks_blocked()
        queue, body = stage.broker.published[which]
        assert stage.broker.ensured == [queue]
        assert stage.broker.published[2:] == [(queue, body)], "at once, as others may have room"
        promises[2].keep(MessageUnroutable("no queue yet"))
        await trio.testing.wait_all_tasks_blocked()
        assert len(stage.broker.published) == 3, "not at once again"
        await trio.sleep(1.5)
        assert stage.broker.published[3:] == [(queue, body)]
        assert (entry.pending, entry.verdict) == (1, None)
        promises[3].keep()
    assert entry.verdict is Verdict.ACKNOWLEDGE
    assert stage.fallen.receive_nowait() is entry


@pytest.mark.parametrize("which", [0, 1], ids=["description", "lineage"])
async def test_what_is_too_long_makes_a_dead_letter_of_its_fragment_and_of_no_other(
    which: int, autojump_clock: object
) -> None:
    stage = Stage()
    first, second = stage.upload(A), stage.upload(B)
    async with stage.running():
        for number, promise in enumerate(stage.broker.promises):
            promise.keep(MessageTooLarge("4 bytes are allowed") if number == which else None)
    assert (first.verdict, first.kind) == (Verdict.DEAD_LETTER, DeadLetterKind.RESULT_REFUSED)
    assert "4 bytes are allowed" in first.reason
    assert second.verdict is Verdict.ACKNOWLEDGE
    assert [stage.fallen.receive_nowait() for _ in range(2)] == [first, second]
    assert (stage.tally.outputs, stage.tally.refused_results) == (1, 1)
    assert len(stage.freight.outputs) == 2


async def test_of_all_that_is_refused_in_a_minute_one_is_told(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage()
    stage.upload(A)
    stage.upload(B)

    async def refuse(promise: int) -> None:
        stage.broker.promises[promise].keep(MessageUnroutable("full"))
        await trio.testing.wait_all_tasks_blocked()
        if promise == 0:
            stage.broker.promises[-1].keep(MessageUnroutable("still full"))
            await trio.sleep(1.5)
        stage.broker.promises[-1].keep()
        await trio.testing.wait_all_tasks_blocked()

    async with stage.running():
        for promise in (0, 1):
            await refuse(promise)
        assert caplog.messages == ["the broker did not take a message; offering it again"]
        await trio.sleep(57.5)
        await refuse(2)
        assert len(caplog.messages) == 1
        await trio.sleep(1)
        await refuse(3)
        assert len(caplog.messages) == 2
