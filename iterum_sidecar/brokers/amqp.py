"""The broker's port over our AMQP client.

One connection carries a channel for publishing, one for each place in the line of a queue, and a passing one for each look at a
queue, because a look at a missing queue closes its channel. A lost connection ends everything that stands on it with BrokerLost.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from iterum_sidecar import amqp
from iterum_sidecar.amqp.properties import encode_properties
from iterum_sidecar.brokers.port import BrokerLost, MessageUnroutable
from iterum_sidecar.telemetry.logs import get_log
from iterum_sidecar.tls import CLIENT_CERTIFICATE_ADVICE, tls_advice

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from iterum_sidecar.patience import Patience

__all__ = ["AmqpBroker", "QueuePolicy", "open_amqp_broker"]

_log = get_log(__name__)

#: Seconds between two lines about the same wait.
SAY_EVERY = 60.0
#: Seconds that a few calls together may take; one alone has 30 s in the AMQP client.
CALLS_DEADLINE = 40.0
#: Bytes of headers that are kept where not all can be: no broker agrees on frames of less than 8 KiB, RabbitMQ's 4.1 neither.
MOST_HEADERS = 7 * 1024
#: Reply codes of AMQP 0-9-1 ("Reply codes" in its reference).
_NOT_FOUND = 404
_INTERNAL_ERROR = 541


@dataclass(slots=True)
class QueuePolicy:
    """How a queue is declared that is not there. A queue that is there is used as it is."""

    durable: bool = False
    """As the peers declare them, or durable: asked for, or because the broker takes no transient ones (RabbitMQ 4)."""
    quorum: bool = False

    def arguments(self) -> dict[str, Any] | None:
        """Return the arguments of a declaration; a quorum queue of ours never drops a message for having been delivered often."""
        return {"x-queue-type": "quorum", "x-delivery-limit": -1} if self.quorum else None


@asynccontextmanager
async def open_amqp_broker(
    where: Callable[[], amqp.ConnectionParameters],
    *,
    ssl_context: ssl.SSLContext | None,
    queues: Sequence[str],
    policy: QueuePolicy,
    patience: Patience,
    name: str,
) -> AsyncIterator[AmqpBroker]:
    """Connect, as often as `patience` allows, and see to it that `queues` are there.

    `where` gives the broker's address and our login as they are now. It is asked at each attempt, and once more when the
    login is refused: if it is another by then, that is tried at once.

    Raises:
        ServiceLost: no connection came in time.
        BrokerLost: the connection was lost later.
    """
    while True:
        opened = False
        parameters = where()
        try:
            async with (
                amqp.open_connection(
                    parameters,
                    ssl_context=ssl_context if parameters.tls else None,
                    connection_name=name,
                ) as connection,
                connection.open_channel(confirms=True) as publishing,
            ):
                broker = AmqpBroker(connection, publishing, policy)
                for queue in dict.fromkeys(queues):
                    await broker.declare_if_missing(queue)
                opened = True
                patience.over()
                yield broker
            return
        except amqp.ConnectionClosedByBroker as error:
            if opened:
                raise BrokerLost(str(error)) from error
            if error.code == _INTERNAL_ERROR and not policy.durable:
                # RabbitMQ 4 where transient queues are not permitted (its feature `transient_nonexcl_queues`).
                _log.info(
                    "the broker takes no transient queues; declaring durable ones",
                    reason=str(error),
                )
                policy.durable = True
                continue
            await patience.wait(str(error))
        except amqp.AccessRefused as error:
            if where() == parameters:
                await patience.wait(str(error))
        except amqp.AmqpError as error:
            if opened:
                raise BrokerLost(str(error)) from error
            await patience.wait(f"{error}{_advice(error)}")
        except BrokerLost as error:
            if opened:
                raise
            await patience.wait(str(error))


def _advice(error: amqp.AmqpError) -> str:
    """Return what mends a failure of TLS, to be put behind its text; empty where it was none."""
    advice = tls_advice(error, "SIDECAR_BROKER_SERVER_NAME")
    if not advice and isinstance(error, amqp.EndedAfterTls):
        return CLIENT_CERTIFICATE_ADVICE
    return advice


class _Confirmation:
    """A confirmation whose errors are the port's."""

    __slots__ = ("_confirmation", "_queue")

    def __init__(self, confirmation: amqp.Confirmation, queue: str) -> None:
        self._confirmation = confirmation
        self._queue = queue

    async def wait(self) -> None:
        """Return when the message is safe with the broker."""
        try:
            await self._confirmation.wait()
        except (amqp.MessageReturned, amqp.PublishNacked) as error:
            raise MessageUnroutable(f"{self._queue}: {error}") from None
        except amqp.AmqpError as error:
            raise BrokerLost(f"publishing to {self._queue}: {error}") from error


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let a few calls come to their end although the caller is cancelled.

    A call that is cancelled in its middle costs its channel (nobody knows whose the next answer is), and with it the
    acknowledgements of everything that is in work.
    """
    try:
        with trio.fail_after(CALLS_DEADLINE, shield=True):
            yield
    except trio.TooSlowError:
        raise BrokerLost(f"the broker did not answer within {CALLS_DEADLINE:.0f} s") from None


class AmqpConsumer:
    """A place in the line of one queue; `brokers.port.Consumer`. The window grows by further consumers on one channel."""

    def __init__(self, broker: AmqpBroker, queue: str, window: int, nursery: trio.Nursery) -> None:
        self._broker = broker
        self._queue = queue
        self._windows = [window]
        self._nursery = nursery
        self._arrived: list[amqp.Delivery] = []
        self._wakeup = trio.Event()
        self._consumers: list[amqp.Consumer] = []
        self._consumers_ended: list[trio.Event] = []
        self._channel: amqp.Channel | None = None
        self._leave = trio.Event()
        self._left = trio.Event()

    async def open(self) -> None:
        """Open the channel, without taking a place in the line."""
        await self._nursery.start(self._run_channel)

    async def receive(self) -> Sequence[amqp.Delivery]:
        """Return what has been delivered since the last call, at least one."""
        await trio.lowlevel.checkpoint()
        while not self._arrived:
            self._wakeup = trio.Event()
            await self._wakeup.wait()
        arrived, self._arrived = self._arrived, []
        return arrived

    async def grow(self, increment: int) -> None:
        """Add a consumer with the increment: a cancel and a new consume would count what is in flight on top."""
        with _uninterrupted():
            await self._nursery.start(self._run_consumer, increment)
            self._windows.append(increment)

    async def hold(self, count: int) -> None:
        """Nothing: the broker gives out the whole window."""

    async def stop(self) -> Sequence[amqp.Delivery]:
        """Take no more; returns what had arrived and was not received."""
        consumers, self._consumers = self._consumers, []
        ended, self._consumers_ended = self._consumers_ended, []
        try:
            with _uninterrupted():
                for consumer in consumers:
                    await consumer.cancel()
                for event in ended:
                    await event.wait()
        except amqp.AmqpError as error:
            raise BrokerLost(f"leaving the line of {self._queue}: {error}") from error
        arrived, self._arrived = self._arrived, []
        return arrived

    async def reopen(self) -> int:
        """Close the channel, which settles what was acknowledged and puts back what was not, and count on another."""
        with _uninterrupted():
            await self.stop()
            self._leave.set()
            await self._left.wait()
            waiting = await self.waiting()
            self._leave, self._left = trio.Event(), trio.Event()
            await self.open()
            return waiting

    async def resume(self) -> None:
        """Take a place in the line again, with the window as it had grown."""
        with _uninterrupted():
            for window in self._windows:
                await self._nursery.start(self._run_consumer, window)

    async def waiting(self) -> int:
        """Return how many messages are ready in the queue."""
        try:
            async with self._broker.connection.open_channel() as channel:
                return (await channel.declare_queue(self._queue, passive=True)).messages
        except amqp.AmqpError as error:
            raise BrokerLost(f"looking at {self._queue}: {error}") from error

    async def _run_channel(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with self._broker.connection.open_channel() as channel:
                self._channel = channel
                self._broker.channels[channel.identity] = channel
                task_status.started()
                await self._leave.wait()
                del self._broker.channels[channel.identity]
        except amqp.AmqpError as error:
            raise BrokerLost(f"consuming {self._queue}: {error}") from error
        self._left.set()

    async def _run_consumer(self, window: int, task_status: trio.TaskStatus[None]) -> None:
        if self._channel is None:
            raise AssertionError("the channel is not open")
        ended = trio.Event()
        try:
            async with self._channel.consume(self._queue, prefetch=window) as consumer:
                self._consumers.append(consumer)
                self._consumers_ended.append(ended)
                task_status.started()
                while True:
                    batch = await consumer.receive_batch()
                    self._arrived.extend(batch)
                    self._wakeup.set()
        except trio.EndOfChannel:
            ended.set()
        except amqp.AmqpError as error:
            raise BrokerLost(f"consuming {self._queue}: {error}") from error


def carriable(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return as many of the headers as can be published, the sidecar's own first."""
    kept: dict[str, Any] = {}
    size = 0
    for name, value in sorted(
        headers.items(), key=lambda item: not item[0].startswith("x-iterum-")
    ):
        try:
            encoded = encode_properties(None, {name: value}, True, None, None, None)
        except ValueError:
            continue
        if size + len(encoded) <= MOST_HEADERS:
            size += len(encoded)
            kept[name] = value
    return kept


class AmqpBroker:
    """`brokers.port.Broker` over one AMQP connection; see `open_amqp_broker`."""

    def __init__(
        self, connection: amqp.Connection, publishing: amqp.Channel, policy: QueuePolicy
    ) -> None:
        self.connection = connection
        self.channels: dict[int, amqp.Channel] = {}
        """The consuming channels that are open, by their identity."""
        self._publishing = publishing
        self._policy = policy

    async def ensure_queue(self, queue: str, *, durable: bool = False) -> None:
        """Use the queue as it is, or declare it if it is missing."""
        try:
            await self.declare_if_missing(queue, durable=durable)
        except amqp.AmqpError as error:
            raise BrokerLost(f"declaring {queue}: {error}") from error

    async def declare_if_missing(self, queue: str, *, durable: bool = False) -> None:
        """Do what `ensure_queue` does, with the errors of the AMQP client."""
        if await self._exists(queue):
            return
        policy = self._policy
        async with self.connection.open_channel() as channel:
            await channel.declare_queue(
                queue,
                durable=durable or policy.durable or policy.quorum,
                arguments=policy.arguments(),
            )

    @asynccontextmanager
    async def consume(self, queue: str, window: int) -> AsyncIterator[AmqpConsumer]:
        """Take a place in the line of `queue`; `window` 0 is no bound."""
        async with trio.open_nursery() as nursery:
            consumer = AmqpConsumer(self, queue, window, nursery)
            nursery.start_soon(self._tell_of_blocking)
            await consumer.open()
            await consumer.resume()
            try:
                yield consumer
            finally:
                nursery.cancel_scope.cancel("the place in the line is left")

    async def publish(
        self, queue: str, body: bytes, headers: Mapping[str, Any] | None = None
    ) -> _Confirmation:
        """Buffer a message; waits only while the broker takes none."""
        try:
            try:
                confirmation = await self._publish_soon(queue, body, headers)
            except ValueError as error:
                # Headers of a message that is put back; other publishers' clients carry what ours cannot.
                _log.warning("headers are left out", queue=queue, reason=str(error))
                confirmation = await self._publish_soon(queue, body, carriable(headers or {}))
        except amqp.AmqpError as error:
            raise BrokerLost(f"publishing to {queue}: {error}") from error
        return _Confirmation(confirmation, queue)

    async def _publish_soon(
        self, queue: str, body: bytes, headers: Mapping[str, Any] | None
    ) -> amqp.Confirmation:
        return await self._publishing.publish_soon(
            body, routing_key=queue, headers=headers, content_type="application/json"
        )

    def acknowledge(self, delivery: amqp.Delivery) -> None:
        """Acknowledge on the channel that it came on, if that is open."""
        channel = self.channels.get(delivery.channel_identity)
        if channel is not None:
            channel.acknowledge(delivery)

    def give_back(self, delivery: amqp.Delivery) -> None:
        """Return to the queue what came on a channel that is open; what came on another has returned already."""
        channel = self.channels.get(delivery.channel_identity)
        if channel is not None:
            channel.give_back(delivery)

    async def flush(self) -> None:
        """Return when everything buffered is with the kernel."""
        try:
            await self._publishing.flush()
        except amqp.AmqpError as error:
            raise BrokerLost(str(error)) from error

    async def _tell_of_blocking(self) -> None:
        """Say when the broker takes no messages (`connection.blocked`: it is short of memory or disk), and once a minute that it still does not."""
        while True:
            reason = await self.connection.wait_blocked()
            since = trio.current_time()
            unblocked = False
            while not unblocked:
                _log.warning(
                    "the broker takes no messages; publishing waits",
                    reason=reason,
                    waited_seconds=round(trio.current_time() - since),
                )
                with trio.move_on_after(SAY_EVERY):
                    await self.connection.wait_unblocked()
                    unblocked = True
            _log.info("the broker takes messages again")

    async def _exists(self, queue: str) -> bool:
        try:
            async with self.connection.open_channel() as channel:
                await channel.declare_queue(queue, passive=True)
        except amqp.ChannelClosed as error:
            if error.code == _NOT_FOUND:
                return False
            raise
        return True
