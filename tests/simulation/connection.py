"""Connections to the broker of a simulation, which end at any moment.

A `Connection` is the port over one, as `brokers/amqp.py` is over a real one: what is said over it takes its time (`lag`), arrives in
order, and from the moment of a cut not at all. Either side may notice the cut later than the other. What was said and had not
arrived is lost but for a beginning of it, so a message may be there without its confirm, and an acknowledgement be gone that was made.
"""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from iterum_sidecar.brokers.memory import MemoryConsumer, MemoryDelivery
from iterum_sidecar.brokers.port import BrokerLost, BrokerRefused, MessageUnroutable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from iterum_sidecar.brokers.memory import Message
    from tests.simulation.server import Server

__all__ = ["Confirmation", "Connection", "Line"]


class Confirmation:
    """The broker's promise; `brokers.port.Confirmation`."""

    __slots__ = ("_connection", "_event", "_refusal")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._event = trio.Event()
        self._refusal: str | None = None

    def resolve(self, refusal: str) -> None:
        """The promise is given, or refused for a reason."""
        self._refusal = refusal
        self._connection.settled(self)
        self._event.set()

    def lose(self) -> None:
        """The connection is lost."""
        self._event.set()

    async def wait(self) -> None:
        """Return when the message is safe."""
        await self._event.wait()
        if self._refusal is None:
            raise BrokerLost(self._connection.lost_because)
        if self._refusal:
            raise MessageUnroutable(self._refusal)


class Line(MemoryConsumer):
    """A place in the line of a queue, over one connection; `brokers.port.Consumer`."""

    def __init__(self, connection: Connection, queue: str, window: int) -> None:
        super().__init__(connection.server.queue(queue), window)
        self.connection = connection
        self.scope = trio.CancelScope()
        self.taken_away = ""
        """Why the broker has ended it, if it has."""
        self.owing: set[MemoryDelivery] = set()
        """What has arrived at this end of the connection and is not answered."""
        self.answered: set[MemoryDelivery] = set()
        self._name = queue

    # -- at the broker

    def take(self, message: Message) -> None:
        """The broker gives out a message."""
        delivery = MemoryDelivery(message, self, trio.current_time())
        self._unsettled[delivery] = None
        self.connection.answer(partial(self._arrive, delivery))

    def take_away(self, reason: str) -> None:
        """The broker ends the consumer, and leaves the connection."""
        self._leave()
        self.connection.answer(partial(self._be_told, reason))

    def put_back(self, delivery: MemoryDelivery) -> None:
        """Return a delivery to its queue."""
        owed = delivery in self._unsettled
        super().put_back(delivery)
        if owed:
            server = self.connection.server
            server.history.record("back", self.connection.name, server.names.of(delivery.body))

    # -- at the sidecar

    def _arrive(self, delivery: MemoryDelivery) -> None:
        self._arrived.append(delivery)
        self.owing.add(delivery)
        self._wakeup.set()
        server = self.connection.server
        detail = "again" if delivery.redelivered else ""
        server.history.record(
            "delivered", self.connection.name, server.names.of(delivery.body), detail
        )

    def _be_told(self, reason: str) -> None:
        if not self.taken_away:
            self.taken_away = reason
            self.scope.cancel(reason)

    async def grow(self, increment: int) -> None:
        """Allow `increment` more messages to be unacknowledged."""
        await self.connection.round_trip()
        await super().grow(increment)

    async def stop(self) -> list[MemoryDelivery]:
        """Take no more; returns what had arrived and was not received."""
        await self.connection.round_trip(self._leave)
        return await super().stop()

    async def reopen(self) -> int:
        """Leave the line, put back what is owed, and count what waits."""
        await self.connection.round_trip(self.close)
        self.owing.clear()
        self.answered.clear()
        self._arrived.clear()
        return await self.waiting()

    async def resume(self) -> None:
        """Take a place in the line again."""
        await self.connection.round_trip()
        if not self.connection.forgotten.is_set():
            await super().resume()

    async def waiting(self) -> int:
        """Return how many messages wait in the queue."""
        return await self.connection.look(self._name)


class Connection:
    """`brokers.port.Broker` over one connection."""

    def __init__(self, server: Server, name: str, lag: float) -> None:
        self.server = server
        self.name = name
        self.lag = lag
        self.scope = trio.CancelScope()
        self.lost_because = ""
        """Why it is lost, once this end knows that it is."""
        self.ended_by_broker = False
        self.is_dead = False
        self.is_cut = False
        """Whether nothing arrives any more, on either side."""
        self.is_missed = False
        """Whether the broker knows that it is gone."""
        self.forgotten = trio.Event()
        """Set when all that was not acknowledged over it is back in its queue."""
        self._lines: list[Line] = []
        """The places in lines that the broker knows of."""
        self._standing: list[Line] = []
        """Those that somebody stands in at this end."""
        self._unconfirmed: dict[Confirmation, None] = {}
        self._to_broker: deque[Callable[[], None]] = deque()
        self._from_broker: deque[Callable[[], None]] = deque()
        self._something = trio.Event()

    def owed(self) -> list[MemoryDelivery]:
        """Return what was delivered over it and is not settled, by what the broker knows."""
        return [delivery for line in self._lines for delivery in line._unsettled]

    # -- the wire

    def send(self, action: Callable[[], None]) -> None:
        """Say something to the broker, which arrives later, or never."""
        if not self.is_cut:
            if self.lag:
                self._to_broker.append(action)
                self._something.set()
            else:
                action()

    def answer(self, action: Callable[[], None]) -> None:
        """The broker says something."""
        if not self.is_cut:
            if self.lag:
                self._from_broker.append(action)
                self._something.set()
            else:
                action()

    async def carry(self) -> None:
        """Let arrive what is on its way, in order, after its time, until nothing arrives any more."""
        while not self.is_cut:
            await self._something.wait()
            self._something = trio.Event()
            going, coming = len(self._to_broker), len(self._from_broker)
            await trio.sleep(self.lag * self.server.random.random())
            for queue, number in ((self._to_broker, going), (self._from_broker, coming)):
                for _ in range(number):
                    if queue:  # a cut on the way empties it
                        queue.popleft()()
            if self._to_broker or self._from_broker:
                self._something.set()

    async def round_trip(self, action: Callable[[], None] = lambda: None) -> None:
        """Let the broker do something after all that was said before, and wait for its answer.

        Raises:
            BrokerLost.
        """
        await trio.lowlevel.checkpoint()
        self._check()
        answered = self._promise()

        def do() -> None:
            action()
            self.answer(partial(answered.resolve, ""))

        self.send(do)
        await answered.wait()

    def _promise(self) -> Confirmation:
        confirmation = Confirmation(self)
        self._unconfirmed[confirmation] = None
        return confirmation

    def settled(self, confirmation: Confirmation) -> None:
        """A promise is not waited for any more."""
        self._unconfirmed.pop(confirmation, None)

    def _check(self) -> None:
        if self.lost_because:
            raise BrokerLost(self.lost_because)

    # -- its end

    def lose_line(self, reason: str) -> bool:
        """Let the broker end a consumer; the connection stands. False if there is none."""
        for line in self._lines:
            line.take_away(reason)
        return bool(self._lines)

    def cut(
        self,
        reason: str,
        *,
        by_broker: bool = False,
        broker_after: float = 0.0,
        here_after: float = 0.0,
    ) -> None:
        """Let nothing arrive any more. Each side notices after so many seconds; a beginning of what was said still arrives."""
        if self.is_cut:
            return
        self._end(self.server.random.randint(0, len(self._to_broker)))
        self.ended_by_broker = by_broker
        self.server.later(broker_after, partial(self._be_missed, slowly=not by_broker))
        self.server.later(here_after, partial(self._be_lost, reason))

    def _be_missed(self, *, slowly: bool = False) -> None:
        """The broker notices: what was not acknowledged goes back, at once or after a moment."""
        if not self.is_missed:
            self.is_missed = True
            seconds = self.server.return_after * self.server.random.random() if slowly else 0.0
            self.server.later(seconds, self._be_forgotten)

    def _be_forgotten(self) -> None:
        """All that was not acknowledged goes back."""
        for line in list(self._lines):
            self._close_line(line)
        if self in self.server.connections:
            self.server.connections.remove(self)
        self.forgotten.set()

    def _close_line(self, line: Line) -> None:
        if line in self._lines:
            line.close()
            if line in self._lines:  # not if a fault in the middle of it has come first
                self._lines.remove(line)

    def _be_lost(self, reason: str) -> None:
        """This end notices."""
        if not self.lost_because and not self.is_dead:
            self.lost_because = reason
            self.server.history.record("lost", self.name)
            for confirmation in list(self._unconfirmed):
                confirmation.lose()
            for line in self._standing:
                line.scope.cancel(reason)
            self.scope.cancel(reason)

    def die(self) -> None:
        """The process at this end is killed: its kernel closes the connection, and nobody is told here."""
        self.is_dead = True
        if not self.is_cut:
            self._end(self.server.random.randint(0, len(self._to_broker)))
            self._be_missed()

    def close(self) -> None:
        """Say goodbye: all that was said before has arrived."""
        if not self.is_cut:
            self._end(len(self._to_broker))
            self._be_missed()

    def _end(self, arriving: int) -> None:
        for _ in range(arriving):
            if self._to_broker:  # a fault that one of them brings about may end it first
                self._to_broker.popleft()()
        self.is_cut = True
        self._to_broker.clear()
        self._from_broker.clear()
        self._something.set()

    # -- the port

    def trouble(self) -> str:
        """Return why the broker takes no messages; empty while it does."""
        return "" if self.server.taking.is_set() else "it takes no messages"

    async def ensure_queue(self, queue: str, *, durable: bool = False) -> None:
        """Use the queue as it is, or declare it if it is missing."""
        await self.round_trip(partial(self.server.declare, queue))

    async def look(self, queue: str) -> int:
        """Return how many messages wait in a queue."""
        found: list[int] = []
        await self.round_trip(
            lambda: found.append(self.server.queues.waiting(queue) if self.server.has(queue) else 0)
        )
        return found[0]

    @asynccontextmanager
    async def consume(self, queue: str, window: int) -> AsyncIterator[Line]:
        """Take a place in the line of `queue`."""
        await self.round_trip()
        if not self.server.has(queue):
            raise BrokerRefused(f"there is no queue {queue}")
        line = Line(self, queue, window)
        self._lines.append(line)
        self._standing.append(line)
        try:
            with line.scope:
                await line.resume()
                yield line
        finally:
            self._standing.remove(line)
            self.send(partial(self._close_line, line))
        self._check()
        if line.taken_away:
            raise BrokerRefused(line.taken_away)

    async def publish(
        self, queue: str, body: bytes, headers: Mapping[str, Any] | None = None
    ) -> Confirmation:
        """Say a message; waits only while the broker takes none."""
        await trio.lowlevel.checkpoint()
        while not self.server.taking.is_set():
            await self.server.taking.wait()
        self._check()
        confirmation = self._promise()
        self.send(partial(self.server.take, self, queue, body, headers, confirmation))
        return confirmation

    def acknowledge(self, delivery: MemoryDelivery) -> None:
        """Acknowledge what came over this connection; anything else is void."""
        self._settle(delivery, "acknowledge")

    def give_back(self, delivery: MemoryDelivery) -> None:
        """Return what came over this connection; anything else has returned already."""
        self._settle(delivery, "give back")

    def _settle(self, delivery: MemoryDelivery, what: str) -> None:
        line = delivery.consumer
        label = self.server.names.of(delivery.body)
        if not isinstance(line, Line) or line.connection is not self:
            return
        if delivery in line.answered:
            self.server.history.record("answered twice", self.name, label)
        if delivery not in line.owing:
            return
        line.owing.discard(delivery)
        line.answered.add(delivery)
        self.server.history.record(what, self.name, label)
        if what == "acknowledge":
            self.send(partial(self._take_acknowledgement, line, delivery, label))
        else:
            self.send(partial(self._take_back, line, delivery))

    def _take_acknowledgement(self, line: Line, delivery: MemoryDelivery, label: str) -> None:
        if line.settle(delivery):
            self.server.history.record("settled", self.name, label)
            line.deliver()

    @staticmethod
    def _take_back(line: Line, delivery: MemoryDelivery) -> None:
        line.put_back(delivery)
        line.deliver()

    async def flush(self) -> None:
        """Return when all that was said has left this process."""
        await trio.lowlevel.checkpoint()
        self._check()
