"""Connections to the embedded broker that are lost when a test says so, and the broker that goes on over them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from iterum_sidecar.brokers.memory import MemoryBroker, MemoryConsumer, MemoryDelivery
from iterum_sidecar.brokers.port import (
    BrokerLost,
    BrokerRefused,
    Confirmation,
    MessageTooLarge,
)
from iterum_sidecar.brokers.reconnecting import ReconnectingBroker, open_reconnecting_broker
from iterum_sidecar.patience import Patience

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

NOTICED_AFTER = 35.0


class Connection:
    """One connection to a `World`: it keeps the port's promises until it is lost."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.deaf = False
        """Whether acknowledgements that are said do not arrive."""
        self.lost: BrokerLost | None = None
        self.confirming = True
        self.line_ended: Callable[[BrokerLost], None] | None = None
        self._loss = trio.Event()

    def lose(self, *, by_broker: bool = False) -> None:
        if self.lost is not None:
            return
        self.lost = BrokerLost("cut")
        self.lost.ended_by_broker = by_broker
        self._loss.set()

    def check(self) -> None:
        if self.lost is not None:
            raise BrokerLost("cut")

    def trouble(self) -> str:
        return self.world.trouble

    async def ensure_queue(self, queue: str, *, durable: bool = False) -> None:
        self.check()
        if self.world.refuses:
            raise BrokerRefused("403 ACCESS_REFUSED")
        self.world.ensured.append(queue)
        await self.world.broker.ensure_queue(queue)

    async def look(self, queue: str) -> int:
        self.check()
        return await self.world.broker.look(queue)

    @asynccontextmanager
    async def consume(self, queue: str, window: int) -> AsyncIterator[MemoryConsumer]:
        self.check()
        self.world.windows.append(window)
        ended: list[BrokerLost] = []
        async with self.world.broker.consume(queue, window) as consumer:
            with trio.CancelScope() as scope:

                def end(error: BrokerLost) -> None:
                    ended.append(error)
                    scope.cancel()

                self.line_ended = end
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._end_with_the_connection, end)
                    yield consumer
                    nursery.cancel_scope.cancel()
        if ended:
            raise ended[0]

    async def _end_with_the_connection(self, end: Callable[[BrokerLost], None]) -> None:
        await self._loss.wait()
        end(BrokerLost("cut"))

    async def publish(
        self, queue: str, body: bytes, headers: Mapping[str, Any] | None = None
    ) -> Confirmation:
        self.check()
        await trio.lowlevel.checkpoint()
        self.world.published.append(body)
        promise = Promise(self, body)
        if promise.can_arrive:
            promise.inner = await self.world.broker.publish(queue, body, headers)
        return promise

    def acknowledge(self, delivery: MemoryDelivery) -> None:
        if not self.deaf and self.lost is None:
            self.world.broker.acknowledge(delivery)

    def give_back(self, delivery: MemoryDelivery) -> None:
        self.world.broker.give_back(delivery)

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        self.check()

    async def wait_lost(self) -> None:
        await self._loss.wait()


class Promise:
    def __init__(self, connection: Connection, body: bytes) -> None:
        self._connection = connection
        self._body = body
        self.can_arrive = len(body) <= connection.world.largest
        self.inner: Confirmation | None = None

    async def wait(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.inner is None:
            raise MessageTooLarge(f"{len(self._body)} bytes")
        if not self._connection.confirming:
            await self._connection.wait_lost()
        self._connection.check()
        await self.inner.wait()
        self._connection.world.confirmed.append(self._body)


class World:
    """Queues that outlive connections."""

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        self.broker = broker or MemoryBroker()
        self.connections: list[Connection] = []
        self.published: list[bytes] = []
        self.confirmed: list[bytes] = []
        self.ensured: list[str] = []
        self.windows: list[int] = []
        self.refuses = False
        self.trouble = ""
        self.away_until = 0.0
        self.next_confirm = True
        self.noticed: list[Connection] = []
        """The lost connections that the broker misses."""
        self.largest = 1_000

    @property
    def connection(self) -> Connection:
        return self.connections[-1]

    async def has_noticed(self, present: Connection, lost: Connection) -> bool:
        await trio.lowlevel.checkpoint()
        present.check()
        return lost in self.noticed

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        await trio.sleep_until(self.away_until)
        connection = Connection(self)
        connection.confirming = self.next_confirm
        self.connections.append(connection)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    await connection.wait_lost()
                    scope.cancel()

                nursery.start_soon(watch)
                yield connection
                nursery.cancel_scope.cancel()
        if connection.lost is not None:
            raise connection.lost


@asynccontextmanager
async def open_world(
    world: World, *, timeout: float = 0, refusal_timeout: float = 0
) -> AsyncIterator[ReconnectingBroker]:
    async with open_reconnecting_broker(
        world.connect,
        patience=Patience("the broker", timeout),
        refusals=Patience("the broker's leave", refusal_timeout),
        noticed_after=NOTICED_AFTER,
        has_noticed=world.has_noticed,
    ) as broker:
        yield broker
