"""The broker of a simulation: queues that survive everything but their own end, and what it remembers for the checker.

The queues are those of the embedded broker. Connections to them are in `connection.py`.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from iterum_sidecar.brokers.memory import MemoryBroker, _Queue
from iterum_sidecar.brokers.port import BrokerLost
from tests.simulation.connection import Connection, Line
from tests.simulation.names import INPUT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from random import Random

    from iterum_sidecar.patience import Patience
    from tests.simulation.connection import Confirmation
    from tests.simulation.history import History
    from tests.simulation.names import Names

__all__ = ["Arrival", "Server"]


class Arrival(NamedTuple):
    """A message that has arrived at the broker: after how many events, on which queue, and what it was."""

    moment: int
    queue: str
    body: bytes
    headers: Mapping[str, Any]


class Server:
    """The broker itself. It remembers every message that a connection has brought."""

    def __init__(
        self, history: History, names: Names, random: Random, nursery: trio.Nursery
    ) -> None:
        self.history = history
        self.names = names
        self.random = random
        self.queues = MemoryBroker()
        self.arrivals: list[Arrival] = []
        self.connections: list[Connection] = []
        """Those that may owe something."""
        self.closed_until = 0.0
        """When connections are accepted again."""
        self.lag = 0.0
        """The longest time that anything takes on its way, in seconds."""
        self.return_after = 0.0
        """The longest time, in seconds, from when a lost connection is missed until what it owed is back in its queue."""
        self.nacks = 0
        """How many of the next messages are not taken."""
        self.taking = trio.Event()
        """Set while the broker takes messages (`connection.blocked`)."""
        self.taking.set()
        self._nursery = nursery

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something after so many seconds, or at once."""
        if seconds <= 0:
            action()
        else:
            self._nursery.start_soon(_later, seconds, action)

    def put(self, queue: str, body: bytes) -> None:
        """A producer puts a message on a queue."""
        self.queues.put(queue, body)

    def queue(self, name: str) -> _Queue:
        """Return a queue, which is made if it is not there."""
        return self.queues._queue(name)

    def declare(self, name: str) -> None:
        """Make a queue if it is not there."""
        self.queue(name)

    def has(self, queue: str) -> bool:
        """Whether there is a queue of that name."""
        return queue in self.queues._queues

    def unacknowledged(self) -> int:
        """How many messages are delivered, by what the broker knows, and not settled."""
        return sum(len(each.owed()) for each in self.connections)

    def block(self, seconds: float) -> None:
        """Take no messages for so many seconds."""
        if self.taking.is_set():
            self.taking = trio.Event()
            self.later(seconds, self.taking.set)

    def delete(self, queue: str) -> None:
        """Delete a queue with all that is in it; its consumers are told."""
        found = self.queues._queues.pop(queue, None)
        if found is not None:
            for line in list(found.consumers):
                if isinstance(line, Line):
                    line.take_away(f"the queue {queue} was deleted")

    def forget_queues(self) -> set[str]:
        """Lose every queue with all that is in it, and all connections; return the names of what was in the input queue."""
        waiting = [message.body for message in self.queues.messages(INPUT)]
        owed = [delivery.body for each in self.connections for delivery in each.owed()]
        for name in list(self.queues._queues):
            del self.queues._queues[name]
        for connection in list(self.connections):
            connection.cut("the broker is restarted", by_broker=True)
        return {self.names.of(body) for body in (*waiting, *owed)}

    def take(
        self,
        connection: Connection,
        queue: str,
        body: bytes,
        headers: Mapping[str, Any] | None,
        confirmation: Confirmation,
    ) -> None:
        """A message has come over a connection: put it on its queue, and promise that it is safe."""
        label = self.names.of(body)
        if not self.has(queue):
            self.history.record("returned", connection.name, label, queue)
            connection.answer(partial(confirmation.resolve, f"there is no queue {queue}"))
            return
        if self.nacks:
            self.nacks -= 1
            self.history.record("nacked", connection.name, label, queue)
            connection.answer(partial(confirmation.resolve, "it was refused"))
            return
        self.arrivals.append(Arrival(len(self.history.events) + 1, queue, body, headers or {}))
        self.queues.put(queue, body, headers)
        self.history.record("published", connection.name, label, queue)
        connection.answer(partial(self._confirm, connection, label, queue, confirmation))

    def _confirm(
        self, connection: Connection, label: str, queue: str, confirmation: Confirmation
    ) -> None:
        confirmation.resolve("")
        self.history.record("confirmed", connection.name, label, queue)

    @asynccontextmanager
    async def connect(
        self,
        name: str,
        queues: Sequence[str],
        patience: Patience,
        on_open: Callable[[Connection], None],
    ) -> AsyncIterator[Connection]:
        """Open one connection, as often as it takes; the body is cancelled when it is lost.

        Raises:
            BrokerLost: it was lost.
        """
        await trio.lowlevel.checkpoint()
        while trio.current_time() < self.closed_until:
            await patience.wait("connection refused")
        patience.over()
        connection = Connection(self, name, self.lag)
        self.connections.append(connection)
        on_open(connection)
        self.history.record("connected", name)
        if connection.lag:
            self._nursery.start_soon(connection.carry)
        try:
            with connection.scope:
                try:
                    for queue in dict.fromkeys(queues):
                        await connection.ensure_queue(queue)
                    yield connection
                except BrokerLost:
                    if not connection.lost_because:
                        raise
        finally:
            connection.close()
        if connection.lost_because:
            lost = BrokerLost(connection.lost_because)
            lost.ended_by_broker = connection.ended_by_broker
            raise lost


async def _later(seconds: float, action: Callable[[], None]) -> None:
    await trio.sleep(seconds)
    action()
