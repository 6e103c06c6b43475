"""A broker that may go away and come back, made of one connection after another.

What stages see of it never ends: whoever publishes, declares or looks waits for the next connection. A message whose confirm
had not come when its connection ended is published again on the next one, which puts the same message there twice at most
and under the same ID. A delivery belongs to the connection that it came by, so an acknowledgement of an older one is void, and the
broker delivers it again. Only the place in the line of a queue is not renewed behind the consumer's back:
`receive` raises LineLost, because what had been received comes again (`stages/intake.py` decides what that means).
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from iterum_sidecar.brokers.port import BrokerLost, BrokerRefused
from iterum_sidecar.brokers.reconnecting_line import ReconnectingConsumer
from iterum_sidecar.error_groups import leaves_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from iterum_sidecar.brokers.port import Broker, Confirmation
    from iterum_sidecar.patience import Patience

__all__ = ["ReconnectingBroker", "open_reconnecting_broker"]

T = TypeVar("T")

#: Seconds between two questions whether the broker has noticed the loss of a connection, and how many pass from its yes until all that
#: came by it is surely back in its queue.
ASK_EVERY = 0.5
RETURNED_AFTER = 1.0


async def _unknown(_present: Any, _lost: Any) -> bool:  # noqa: ANN401 - of whichever kind `connect` opens
    return False


@asynccontextmanager
async def open_reconnecting_broker(
    connect: Callable[[], AbstractAsyncContextManager[Broker]],
    *,
    patience: Patience,
    refusals: Patience,
    noticed_after: float,
    has_noticed: Callable[[Any, Any], Awaitable[bool]] = _unknown,
) -> AsyncIterator[ReconnectingBroker]:
    """Return when there is a first connection, and keep one from then on.

    `connect` opens one: entering it waits until the broker is there, and it raises BrokerLost, its body cancelled, when the connection
    is lost. `patience` is for the waits between connections, `refusals` for what a broker that is there does not let us
    do. `noticed_after` are the seconds after which a broker has surely noticed the loss of a connection too; `has_noticed` asks it
    sooner, over the present connection and of the lost one.

    Raises:
        ServiceLost: one of the two has come to its end.
    """
    async with trio.open_nursery() as nursery:
        broker = ReconnectingBroker(patience, refusals, noticed_after, has_noticed, nursery)
        await nursery.start(broker._keep_connected, connect)
        yield broker
        nursery.cancel_scope.cancel("the broker is not needed any more")


class _Pledge:
    """A message that is to be safe with the broker in the end; `brokers.port.Confirmation`."""

    __slots__ = ("_broker", "body", "connection", "headers", "promise", "queue")

    def __init__(
        self,
        broker: ReconnectingBroker,
        queue: str,
        body: bytes,
        headers: Mapping[str, Any] | None,
    ) -> None:
        self._broker = broker
        self.queue = queue
        self.body = body
        self.headers = headers
        self.connection: Broker | None = None
        """The connection that it was published on last."""
        self.promise: Confirmation | None = None

    async def wait(self) -> None:
        """Return when the message is safe, on whichever connection."""
        broker = self._broker
        try:
            while True:
                connection, promise = self.connection, self.promise
                if connection is None or promise is None:
                    raise AssertionError("it was not published")
                try:
                    await promise.wait()
                    return
                except BrokerLost as error:
                    broker.drop(connection, str(error))
                    await broker.renew(self, promise)
        finally:
            broker.unconfirmed.pop(self, None)


class ReconnectingBroker:
    """`brokers.port.Broker`; see `open_reconnecting_broker`."""

    def __init__(
        self,
        patience: Patience,
        refusals: Patience,
        noticed_after: float,
        has_noticed: Callable[[Any, Any], Awaitable[bool]],
        nursery: trio.Nursery,
    ) -> None:
        self.refusals = refusals
        self.noticed_at = -math.inf
        """When the broker has surely noticed the last loss of a connection."""
        self.unconfirmed: dict[_Pledge, None] = {}
        """What has been published and not confirmed, oldest first."""
        self.connections = 0
        """How many connections there have been."""
        self._patience = patience
        self._noticed_after = noticed_after
        self._has_noticed = has_noticed
        self._unnoticed: list[Broker] = []
        """Connections that are lost, and that the broker may not miss yet."""
        self._nursery = nursery
        self._connection: Broker | None = None
        self._arrival = trio.Event()
        self._scope = trio.CancelScope()
        self._lost_because = "it has not been reached yet"

    # -- the connection

    async def _keep_connected(
        self,
        connect: Callable[[], AbstractAsyncContextManager[Broker]],
        task_status: trio.TaskStatus[None],
    ) -> None:
        while True:
            lost: list[BrokerLost] = []
            self._scope = trio.CancelScope()
            connection: Broker | None = None
            try:
                async with connect() as connection:
                    with self._scope:
                        await self._welcome(connection)
                        if self.connections == 1:
                            task_status.started()
                        await trio.sleep_forever()
            except* BrokerLost as group:
                lost = leaves_of(group, BrokerLost)
            if lost:
                self._lost_because = str(lost[0])
            self._connection = None
            if connection is not None and not any(each.ended_by_broker for each in lost):
                self._unnoticed.append(connection)
                self.noticed_at = trio.current_time() + self._noticed_after
            await self._patience.wait(self._lost_because)

    async def _welcome(self, connection: Broker) -> None:
        """Publish again what was not confirmed, before anything else is; then let all go on that wait."""
        for pledge in list(self.unconfirmed):
            pledge.promise = await connection.publish(pledge.queue, pledge.body, pledge.headers)
            pledge.connection = connection
        self.connections += 1
        self._connection = connection
        self._patience.over()
        self._nursery.start_soon(self._ask_about_lost, connection)
        self._arrival.set()
        self._arrival = trio.Event()

    async def _ask_about_lost(self, connection: Broker) -> None:
        """Ask the broker whether it misses the lost connections by now, until it does or the time is over in which it may not."""
        try:
            while self._unnoticed and trio.current_time() < self.noticed_at:
                if await self._has_noticed(connection, self._unnoticed[0]):
                    del self._unnoticed[0]
                    if not self._unnoticed:
                        self.noticed_at = trio.current_time() + RETURNED_AFTER
                else:
                    await trio.sleep(ASK_EVERY)
        except BrokerLost:
            return  # the next connection asks
        self._unnoticed.clear()

    async def renew(self, pledge: _Pledge, broken: Confirmation) -> None:
        """See that a message whose promise is broken is published on the next connection."""
        connection = await self.present()
        # As a rule `_welcome` has done it. Not where a connection was lost while the message was being handed to it.
        if pledge.promise is broken:
            try:
                pledge.promise = await connection.publish(pledge.queue, pledge.body, pledge.headers)
                pledge.connection = connection
            except BrokerLost as error:
                self.drop(connection, str(error))

    async def present(self) -> Broker:
        """Return the connection, waiting for one if there is none."""
        while (connection := self._connection) is None:
            await self._arrival.wait()
        return connection

    def drop(self, connection: Broker, reason: str) -> None:
        """End a connection that is of no use any more, if it is still the present one."""
        if connection is self._connection:
            self._connection = None
            self._lost_because = reason
            self._scope.cancel("the connection is of no use any more")

    def trouble(self) -> str:
        """Return why nothing can be had of the broker, or be put there, at the moment."""
        if self._connection is None:
            return self._lost_because
        return self._connection.trouble()

    # -- the port

    async def ensure_queue(self, queue: str, *, durable: bool = False) -> None:
        """Use the queue as it is, or declare it if it is missing."""
        await self._persist(lambda connection: connection.ensure_queue(queue, durable=durable))

    async def look(self, queue: str) -> int:
        """Return how many messages wait in a queue."""
        return await self._persist(lambda connection: connection.look(queue))

    async def _persist(self, call: Callable[[Broker], Awaitable[T]]) -> T:
        """Make a call until it succeeds: on the next connection, or on this one when the broker lets us."""
        while True:
            connection = await self.present()
            try:
                result = await call(connection)
            except BrokerRefused as error:
                await self.refusals.wait(str(error))
            except BrokerLost as error:
                self.drop(connection, str(error))
            else:
                self.refusals.over()
                return result

    @asynccontextmanager
    async def consume(self, queue: str, window: int) -> AsyncIterator[ReconnectingConsumer]:
        """Take a place in the line of `queue`."""
        async with trio.open_nursery() as nursery:
            consumer = ReconnectingConsumer(self, queue, window, nursery)
            await consumer.resume()
            yield consumer
            nursery.cancel_scope.cancel("the place in the line is left")

    async def publish(
        self, queue: str, body: bytes, headers: Mapping[str, Any] | None = None
    ) -> _Pledge:
        """Hand a message to the broker; waits while there is none that takes it."""
        pledge = _Pledge(self, queue, body, headers)
        while pledge.promise is None:
            connection = await self.present()
            try:
                promise = await connection.publish(queue, body, headers)
            except BrokerLost as error:
                self.drop(connection, str(error))
            else:
                pledge.connection, pledge.promise = connection, promise
                self.unconfirmed[pledge] = None
        return pledge

    def acknowledge(self, delivery: Any) -> None:  # noqa: ANN401 - each broker has deliveries of its own
        """Tell the broker that a delivery is settled. Without effect where its connection is gone."""
        if self._connection is not None:
            self._connection.acknowledge(delivery)

    def give_back(self, delivery: Any) -> None:  # noqa: ANN401
        """Return a delivery to its queue. Without effect where its connection is gone."""
        if self._connection is not None:
            self._connection.give_back(delivery)

    async def flush(self) -> None:
        """Return when all that was said so far has left this process; what was said over a lost connection is void."""
        connection = self._connection
        if connection is not None:
            try:
                await connection.flush()
            except BrokerLost as error:
                self.drop(connection, str(error))
