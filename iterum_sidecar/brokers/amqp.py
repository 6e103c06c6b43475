"""The broker's port over our AMQP client, as long as one connection lasts; `brokers.reconnecting` goes on with the next.

One connection carries a channel for publishing, one for each place in the line of a queue, and a passing one for each look at a
queue, because a look at a missing queue closes its channel. A lost connection ends everything that stands on it with
BrokerLost, a channel that the broker closes what stands on that with BrokerRefused.
"""

from __future__ import annotations

import re
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from iterum_sidecar import amqp
from iterum_sidecar.amqp.properties import encode_properties
from iterum_sidecar.brokers.amqp_line import AmqpConsumer, lost_by
from iterum_sidecar.brokers.port import BrokerLost, MessageTooLarge, MessageUnroutable
from iterum_sidecar.telemetry.logs import get_log
from iterum_sidecar.tls import CLIENT_CERTIFICATE_ADVICE, tls_advice

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from iterum_sidecar.patience import Patience

__all__ = [
    "HEARTBEAT",
    "NOTICED_AFTER",
    "AmqpBroker",
    "QueuePolicy",
    "has_noticed",
    "open_amqp_broker",
]

_log = get_log(__name__)

#: Seconds between heartbeats, both ways; two missed end a connection. RabbitMQ's guide has 5 to 20 s for the best values.
HEARTBEAT = 15
#: Seconds after which the broker has missed two of ours, with some for a timer that is late.
NOTICED_AFTER = 2 * HEARTBEAT + 5.0
#: Seconds between the last acknowledgement and the end of its channel. Without them a quorum queue forgot up to 467 of 500 acknowledgements
#: (RabbitMQ 3.10.8 and 4.3.6, seen); with 0.05 s none was lost.
SETTLING_SECONDS = 0.2
#: Seconds between two lines about the same wait.
SAY_EVERY = 60.0
#: Bytes of headers that are kept where not all can be: no broker agrees on frames of less than 8 KiB, RabbitMQ's 4.1 neither.
MOST_HEADERS = 7 * 1024
#: Reply codes of AMQP 0-9-1 ("Reply codes" in its reference).
_NOT_FOUND = 404
_PRECONDITION_FAILED = 406
_INTERNAL_ERROR = 541
#: How RabbitMQ says that a message is larger than its `max_message_size`, when it closes the channel for it.
_TOO_LARGE = re.compile(r"message size \d+ .*larger than .*max size (\d+)")


@dataclass(slots=True)
class QueuePolicy:
    """How a queue is declared that is not there. A queue that is there is used as it is."""

    durable: bool = False
    """As the peers declare them, or durable: asked for, or because the broker takes no transient ones (RabbitMQ 4)."""
    quorum: bool = False
    largest_message: int | None = None
    """Bytes that the broker takes in one message, once it has refused one for its size."""

    def learn(self, error: amqp.AmqpError) -> None:
        """Note what a closed channel says of the size of messages."""
        if isinstance(error, amqp.ChannelClosed) and error.code == _PRECONDITION_FAILED:
            found = _TOO_LARGE.search(error.text)
            if found:
                self.largest_message = int(found[1])

    def check_size(self, body: bytes) -> None:
        """Raise MessageTooLarge for a message that the broker does not take, as far as is known."""
        if self.largest_message is not None and len(body) > self.largest_message:
            raise MessageTooLarge(
                f"a message of {len(body):,} bytes; the broker takes {self.largest_message:,} (its max_message_size)"
            )

    def arguments(self, version: str) -> dict[str, Any] | None:
        """Return the arguments of a declaration; a quorum queue of ours never drops a message for having been delivered often.

        RabbitMQ has a limit of its own from 4.0 on, and -1 lifts it. Before, it has none, and takes -1 for "drop at the first return" (seen
        on 3.10.8: all of 2,000 messages were gone). A broker that does not tell its `version` gets no argument.
        """
        if not self.quorum:
            return None
        major = version.partition(".")[0]
        limit = {"x-delivery-limit": -1} if major.isdigit() and int(major) >= 4 else {}
        return {"x-queue-type": "quorum", **limit}


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
    """Connect once, after as many attempts as `patience` allows, and see to it that `queues` are there.

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
                    heartbeat=HEARTBEAT,
                ) as connection,
                connection.open_channel(confirms=True) as publishing,
            ):
                broker = AmqpBroker(connection, publishing, policy)
                await broker.leave_mark()
                for queue in dict.fromkeys(queues):
                    await broker.declare_if_missing(queue)
                opened = True
                patience.over()
                yield broker
            return
        except amqp.ConnectionClosedByBroker as error:
            if opened:
                ended = BrokerLost(str(error))
                ended.ended_by_broker = True
                raise ended from error
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


async def has_noticed(present: AmqpBroker, lost: AmqpBroker) -> bool:
    """Tell, by asking over one connection, whether the broker knows that another one is gone.

    Raises:
        BrokerLost: the one that is asked over is gone too.
    """
    if not lost.mark:
        return False
    try:
        return not await present.exists(lost.mark)
    except amqp.ChannelClosed:
        return False  # 405: it is that connection's alone, so that connection lives, for the broker
    except amqp.AmqpError as error:
        raise lost_by(error, "asking for a lost connection") from error


def _advice(error: amqp.AmqpError) -> str:
    """Return what mends a failure of TLS, to be put behind its text; empty where it was none."""
    advice = tls_advice(error, "SIDECAR_BROKER_SERVER_NAME")
    if not advice and isinstance(error, amqp.EndedAfterTls):
        return CLIENT_CERTIFICATE_ADVICE
    return advice


class _Confirmation:
    """A confirmation whose errors are the port's."""

    __slots__ = ("_body", "_confirmation", "_policy", "_queue")

    def __init__(
        self, confirmation: amqp.Confirmation, queue: str, body: bytes, policy: QueuePolicy
    ) -> None:
        self._confirmation = confirmation
        self._queue = queue
        self._body = body
        self._policy = policy

    async def wait(self) -> None:
        """Return when the message is safe with the broker."""
        try:
            await self._confirmation.wait()
        except (amqp.MessageReturned, amqp.PublishNacked) as error:
            raise MessageUnroutable(f"{self._queue}: {error}") from None
        except amqp.AmqpError as error:
            self._policy.learn(error)
            self._policy.check_size(self._body)
            raise lost_by(error, f"publishing to {self._queue}") from error


class _TooLarge:
    """The confirmation of a message that was not sent at all, because the broker would close the channel for it."""

    __slots__ = ("_error",)

    def __init__(self, error: MessageTooLarge) -> None:
        self._error = error

    async def wait(self) -> None:
        """Raise MessageTooLarge."""
        await trio.lowlevel.checkpoint()
        raise self._error


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
        self.mark = ""
        """The name of a queue that is this connection's alone, and that the broker deletes when it notices its end; none if it may not be."""
        self._publishing = publishing
        self._policy = policy
        self._has_acknowledged = False
        """Whether there were acknowledgements since `let_settle`."""

    async def leave_mark(self) -> None:
        """Make the `mark`, if the broker lets us."""
        with suppress(amqp.ChannelClosed):
            async with self.connection.open_channel() as channel:
                self.mark = (await channel.declare_queue("", exclusive=True)).name

    async def ensure_queue(self, queue: str, *, durable: bool = False) -> None:
        """Use the queue as it is, or declare it if it is missing."""
        try:
            await self.declare_if_missing(queue, durable=durable)
        except amqp.AmqpError as error:
            raise lost_by(error, f"declaring {queue}") from error

    async def look(self, queue: str) -> int:
        """Return how many messages are ready in a queue."""
        try:
            async with self.connection.open_channel() as channel:
                return (await channel.declare_queue(queue, passive=True)).messages
        except amqp.AmqpError as error:
            if isinstance(error, amqp.ChannelClosed) and error.code == _NOT_FOUND:
                return 0
            raise lost_by(error, f"looking at {queue}") from error

    async def declare_if_missing(self, queue: str, *, durable: bool = False) -> None:
        """Do what `ensure_queue` does, with the errors of the AMQP client."""
        if await self.exists(queue):
            return
        policy = self._policy
        async with self.connection.open_channel() as channel:
            await channel.declare_queue(
                queue,
                durable=durable or policy.durable or policy.quorum,
                arguments=policy.arguments(
                    str(self.connection.server_properties.get("version", ""))
                ),
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
    ) -> _Confirmation | _TooLarge:
        """Buffer a message; waits only while the broker takes none."""
        try:
            self._policy.check_size(body)
            try:
                confirmation = await self._publish_soon(queue, body, headers)
            except ValueError as error:
                # Headers of a message that is put back; other publishers' clients carry what ours cannot.
                _log.warning("headers are left out", queue=queue, reason=str(error))
                confirmation = await self._publish_soon(queue, body, carriable(headers or {}))
        except MessageTooLarge as error:
            return _TooLarge(error)
        except amqp.AmqpError as error:
            self._policy.learn(error)
            raise lost_by(error, f"publishing to {queue}") from error
        return _Confirmation(confirmation, queue, body, self._policy)

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
            self._has_acknowledged = True

    def give_back(self, delivery: amqp.Delivery) -> None:
        """Return to the queue what came on a channel that is open; what came on another has returned already."""
        channel = self.channels.get(delivery.channel_identity)
        if channel is not None:
            channel.give_back(delivery)

    async def flush(self) -> None:
        """Return when everything buffered is with the kernel, and the broker has had the time to take acknowledgements."""
        try:
            await self._publishing.flush()
        except amqp.AmqpError as error:
            raise lost_by(error, "sending") from error
        await self.let_settle()

    async def let_settle(self) -> None:
        """Give the broker a moment for the acknowledgements that were sent, which a quorum queue may forget with their channel."""
        if self._has_acknowledged:
            self._has_acknowledged = False
            await trio.sleep(SETTLING_SECONDS)

    def trouble(self) -> str:
        """Return why the broker takes no messages; empty while it does."""
        reason = self.connection.blocked
        return "" if reason is None else f"it takes no messages: {reason}"

    async def _tell_of_blocking(self) -> None:
        """Say when the broker takes no messages (`connection.blocked`: it is short of memory or disk), and once a minute that it still does not."""
        with suppress(amqp.AmqpError):  # whoever uses the connection hears of its loss
            await self._tell_of_each_blocking()

    async def _tell_of_each_blocking(self) -> None:
        while True:
            reason = await self.connection.wait_blocked()
            since = trio.current_time()
            unblocked = False
            while not unblocked:
                _log.warning(
                    "the broker takes no messages; publishing waits, and nothing is lost (make room on it if this lasts)",
                    reason=reason,
                    waited_seconds=round(trio.current_time() - since),
                )
                with trio.move_on_after(SAY_EVERY):
                    await self.connection.wait_unblocked()
                    unblocked = True
            _log.info("the broker takes messages again")

    async def exists(self, queue: str) -> bool:
        """Tell whether there is such a queue, with the errors of the AMQP client."""
        try:
            async with self.connection.open_channel() as channel:
                await channel.declare_queue(queue, passive=True)
        except amqp.ChannelClosed as error:
            if error.code == _NOT_FOUND:
                return False
            raise
        return True
