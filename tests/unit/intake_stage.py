"""The stage of intake alone: over a queue that does what the test says, and a ledger whose transformation is the test."""

from __future__ import annotations

import json
import math
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import trio
import trio.testing

from iterum_sidecar.brokers.port import LineLost
from iterum_sidecar.cargo import FragmentCargo
from iterum_sidecar.entries import Entry
from iterum_sidecar.identity import OutputIdentity
from iterum_sidecar.ledger import Ledger
from iterum_sidecar.stages.intake import Intake
from iterum_sidecar.telemetry.tally import Tally

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from iterum_sidecar.brokers.port import Broker, Consumer
    from iterum_sidecar.cargo import IntakeNews

TestEntry = Entry[Any, FragmentCargo]
ATTEMPTS = 3


@dataclass(eq=False)
class Message:
    """One delivery: of a fragment whose ID is of that letter and which has that file, or of something else."""

    letter: str
    headers: dict[str, Any] = field(default_factory=dict)
    redelivered: bool = False
    name: str = "x"
    unreadable: bool = False

    @property
    def body(self) -> bytes:
        if self.unreadable:
            return self.letter.encode()
        file = {"name": self.name, "path": f"iterum_data/{self.name}", "bucket": "b"}
        return json.dumps({"files": [file], "metadata": {"fragment_id": self.letter * 64}}).encode()


class Queue:
    """The queue, the place in its line and the broker of both, as the test says."""

    def __init__(self) -> None:
        self.acknowledged: list[Message] = []
        self.given_back: list[Message] = []
        self.ready = 0
        """What waits in the queue and is not delivered."""
        self.owed = False
        """Whether the broker may still hold what came over a connection that is gone."""
        self.places = 1
        self.looks = 0
        self.grown_by = 0
        self.held = 0
        self.meanwhile: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        """What happens while the place is left and the queue looked at."""
        self.held_back: list[Message] = []
        """What has arrived and is not received before the place is left."""
        self.may_take_place = trio.Event()
        self.may_take_place.set()
        self._to_receive, self._received = trio.open_memory_channel[list[Message] | LineLost](100)

    def deliver(self, *messages: Message) -> None:
        self._to_receive.send_nowait(list(messages))

    def lose(self) -> None:
        self._to_receive.send_nowait(LineLost("cut", refused=False))

    async def receive(self) -> Sequence[Message]:
        told = await self._received.receive()
        if isinstance(told, LineLost):
            raise told
        return told

    async def resume(self) -> None:
        await self.may_take_place.wait()
        self.places += 1

    async def stop(self) -> Sequence[Message]:
        await self.meanwhile()
        arrived, self.held_back = self.held_back, []
        return arrived

    async def reopen(self) -> int:
        await self.meanwhile()
        self.looks += 1
        return self.ready

    async def waiting(self) -> int:
        await trio.lowlevel.checkpoint()
        return self.ready

    async def grow(self, increment: int) -> None:
        await trio.lowlevel.checkpoint()
        self.grown_by += increment

    async def hold(self, count: int) -> None:
        await trio.lowlevel.checkpoint()
        self.held = count

    def may_get_back(self) -> bool:
        return self.owed

    def acknowledge(self, message: Message) -> None:
        self.acknowledged.append(message)

    def give_back(self, message: Message) -> None:
        self.given_back.append(message)


class Stage:
    """The stage, and what is around it."""

    def __init__(
        self, *, window: int = 4, fixed: bool = True, standstill_after: float = math.inf
    ) -> None:
        self.queue = Queue()
        self.ledger: Ledger[Any, FragmentCargo] = Ledger(
            OutputIdentity("pipeline", "step"), attempts_allowed=ATTEMPTS
        )
        self.tally = Tally()
        self.stop = trio.Event()
        self._ended = False
        self._tell, self._news = trio.open_memory_channel["IntakeNews"](100)
        self._to_download, self._downloads = trio.open_memory_channel[TestEntry](100)
        self._to_settle, self._fallen = trio.open_memory_channel[TestEntry](100)
        self._intake = Intake(
            consumer=cast("Consumer", self.queue),
            broker=cast("Broker", self.queue),
            ledger=self.ledger,
            tally=self.tally,
            window=window,
            fixed=fixed,
            attempts_allowed=ATTEMPTS,
            standstill_after=standstill_after,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run)
            await self.settle_down()
            yield
            nursery.cancel_scope.cancel()

    async def _run(self) -> None:
        await self._intake.run(
            news=self._news,
            to_download=self._to_download,
            to_settle=self._to_settle,
            stop=self.stop,
        )
        self._ended = True

    def has_ended(self) -> bool:
        return self._ended

    async def settle_down(self) -> None:
        await trio.testing.wait_all_tasks_blocked()

    async def deliver(self, *messages: Message) -> None:
        self.queue.deliver(*messages)
        await self.settle_down()

    async def tell(self, *news: IntakeNews) -> None:
        for each in news:
            self._tell.send_nowait(each)
        await self.settle_down()

    def let_in(self) -> list[TestEntry]:
        """Return what has been let in since the last call, and have it handed out."""
        entries = []
        while self._downloads.statistics().current_buffer_used:
            entries.append(self._downloads.receive_nowait())
            self.ledger.is_ready(entries[-1])
            self.ledger.hand_out(entries[-1])
        return entries

    def fallen(self) -> list[TestEntry]:
        entries = []
        while self._fallen.statistics().current_buffer_used:
            entries.append(self._fallen.receive_nowait())
        return entries

    def finish(self, *entries: TestEntry) -> None:
        for entry in entries:
            self.ledger.done(entry.fragment_id)
            self.ledger.close(entry)
