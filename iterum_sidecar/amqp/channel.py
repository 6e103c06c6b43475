"""A channel as its users see it: declare, consume, acknowledge and publish."""

from __future__ import annotations

from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, cast, final

import trio
from pamqp import commands

from iterum_sidecar.amqp import codec
from iterum_sidecar.amqp.confirmations import Confirmation, Confirmations
from iterum_sidecar.amqp.consumer import Consumer
from iterum_sidecar.amqp.errors import AmqpError, ChannelClosed
from iterum_sidecar.amqp.methods import Consume, DeclareQueue, DeleteQueue
from iterum_sidecar.amqp.properties import encode_all_properties, encode_properties

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from datetime import datetime

    from pamqp.common import Arguments

    from iterum_sidecar.amqp.channel_state import ChannelState
    from iterum_sidecar.amqp.deliveries import Delivery
    from iterum_sidecar.amqp.properties import Headers, Properties

# A goodbye is answered in milliseconds by a broker that is well; one that is not must not hold up our end.
CLOSE_SECONDS = 3.0


class QueueDeclared(NamedTuple):
    """A queue's name, its number of ready messages (not of unacknowledged ones), and of its consumers."""

    name: str
    messages: int
    consumers: int


@final
class Channel:
    """One channel of a connection, from `Connection.open_channel`.

    Declarations and consumers take turns; publishing and acknowledging are synchronous up to a buffer and may
    happen in any task. Once the channel is closed every method raises ChannelClosed or ConnectionLost, except for
    the acknowledging ones, which do nothing and say so.
    """

    def __init__(self, state: ChannelState) -> None:
        self._state = state
        self._identity = state.identity
        self._number = state.number
        self._link = state.link
        self._outbox = state.link.outbox
        self._unacknowledged = state.unacknowledged
        self._confirmations: Confirmations | None = None
        self._consumer_numbers = count(1)
        self._prefetch = 0
        self._prefetch_at_broker = 0

    def __repr__(self) -> str:
        state = "open" if self.is_open else str(self._state.failure)
        return f"<Channel {self._number} of connection {self.epoch}: {state}>"

    @property
    def is_open(self) -> bool:
        """Whether the channel can be used."""
        return self._state.failure is None

    @property
    def epoch(self) -> int:
        """The number of the connection, which its deliveries carry; it grows with each connection of the process."""
        return self._link.epoch

    @property
    def identity(self) -> int:
        """The number of the channel, unique in the process, which its deliveries carry."""
        return self._identity

    # Declaring.

    async def declare_queue(
        self,
        name: str,
        *,
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: Arguments = None,
    ) -> QueueDeclared:
        """Create a queue unless it is there as described, or with `passive` only look whether it is there.

        An empty `name` lets the broker choose one. Raises ChannelClosed with code 404 for a passive declare of a
        missing queue, 406 when it is there with other properties, 405 when it is another connection's alone.
        """
        request = DeclareQueue(
            queue=name,
            passive=passive,
            durable=durable,
            exclusive=exclusive,
            auto_delete=auto_delete,
            arguments=arguments,
        )
        reply = cast("commands.Queue.DeclareOk", await self._state.calls.call(request))
        return QueueDeclared(
            reply.queue or name, reply.message_count or 0, reply.consumer_count or 0
        )

    async def delete_queue(self, name: str) -> int:
        """Delete a queue, if it is there, and return the number of messages that went with it."""
        reply = cast(
            "commands.Queue.DeleteOk", await self._state.calls.call(DeleteQueue(queue=name))
        )
        return reply.message_count or 0

    # Consuming.

    async def set_prefetch(self, count: int) -> None:
        """Let each consumer started from now on hold `count` unacknowledged deliveries: 0 to 65535, 0 for no limit."""
        async with self._state.calls.turn():
            await self._apply_prefetch(count)
        self._prefetch = count

    @asynccontextmanager
    async def consume(
        self, queue: str, *, prefetch: int | None = None, arguments: Arguments = None
    ) -> AsyncIterator[Consumer]:
        """Consume from a queue for the duration of the context; deliveries are to be acknowledged.

        `prefetch` is this consumer's own limit of unacknowledged deliveries (0: none), by default what
        `set_prefetch` said. On leaving, the consumer is cancelled and what nobody received is given back; what
        was received can still be acknowledged. Raises ChannelClosed with code 404 or 403.
        """
        consumer = await self._start_consumer(queue, prefetch, arguments)
        try:
            yield consumer
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True) as goodbye:
                await self._finish_consumer(consumer)
            if goodbye.cancelled_caught:
                # Another call may hold the turn; what is still delivered must not pile up for nobody.
                reason = "a consumer could not be cancelled in time"
                self._state.start_closing(ChannelClosed(None, reason))

    async def _start_consumer(
        self, queue: str, prefetch: int | None, arguments: Arguments
    ) -> Consumer:
        tag = f"{self._number}-{next(self._consumer_numbers)}"
        consumer = Consumer(tag, queue, self._cancel_consumer)
        request = Consume(queue=queue, consumer_tag=tag, arguments=arguments)
        async with self._state.calls.turn():
            await self._apply_prefetch(self._prefetch if prefetch is None else prefetch)
            # Deliveries may come in the same chunk as the reply, before this task runs again.
            self._state.consumers[tag.encode()] = consumer
            try:
                await self._state.calls.call_in_turn(request)
            except BaseException:
                self._state.consumers.pop(tag.encode(), None)
                raise
        return consumer

    async def _apply_prefetch(self, count: int) -> None:
        if count != self._prefetch_at_broker:
            await self._state.calls.call_in_turn(commands.Basic.Qos(prefetch_count=count))
            self._prefetch_at_broker = count

    async def _cancel_consumer(self, consumer: Consumer) -> None:
        tag = consumer._tag
        if self._state.consumers.get(tag.encode()) is consumer:
            await self._state.calls.call(commands.Basic.Cancel(consumer_tag=tag))
            self._state.consumers.pop(tag.encode(), None)
            consumer._end(None)

    async def _finish_consumer(self, consumer: Consumer) -> None:
        if not self.is_open:
            return
        try:
            await self._cancel_consumer(consumer)
        except AmqpError:
            # Leaving the consumer hides it from everybody but the one who leaves the channel.
            if self._state.failure is not None:
                self._state.failure.told = False
            return
        while consumer._ready:
            self.give_back(consumer._ready.popleft())

    def acknowledge(self, delivery: Delivery) -> bool:
        """Acknowledge one delivery, at the next chance to send.

        Returns False, and does nothing, for a delivery that is not this channel's to settle: it came on another
        channel, was settled before, was taken back by the broker, or the channel is closed.
        """
        tag = delivery.delivery_tag
        if delivery.channel_identity != self._identity or not self._unacknowledged.remove(tag):
            return False
        self._outbox.write(codec.encode_ack(self._number, tag, False))
        return True

    def acknowledge_many(self, deliveries: Iterable[Delivery]) -> int:
        """Acknowledge deliveries in as few frames as possible, and return how many were this channel's to settle.

        `multiple` is used only up to the first outstanding delivery that is not among them.
        """
        tags, together = self._unacknowledged.remove_many(
            delivery.delivery_tag
            for delivery in deliveries
            if delivery.channel_identity == self._identity
        )
        frames = []
        if together:
            frames.append(codec.encode_ack(self._number, tags[together - 1], together > 1))
        frames += [codec.encode_ack(self._number, tag, False) for tag in tags[together:]]
        if frames:
            self._outbox.write(b"".join(frames))
        return len(tags)

    def give_back(self, delivery: Delivery) -> bool:
        """Let the broker deliver it again, to anybody (basic.nack with requeue); False as in `acknowledge`."""
        tag = delivery.delivery_tag
        if delivery.channel_identity != self._identity or not self._unacknowledged.remove(tag):
            return False
        self._outbox.write(codec.encode_requeue(self._number, tag))
        return True

    # Publishing.

    async def publish_soon(
        self,
        body: bytes,
        *,
        routing_key: str,
        exchange: str = "",
        headers: Headers | None = None,
        content_type: str | None = None,
        persistent: bool = True,
        mandatory: bool = True,
        expiration: str | None = None,
        timestamp: datetime | None = None,
        message_id: str | None = None,
        properties: Properties | None = None,
    ) -> Confirmation:
        """Buffer a message, and return what will tell whether it is safe.

        Waits only while the broker takes no messages or the send buffer is full, and is no checkpoint otherwise.
        `expiration` is in milliseconds, as a string; floats in `headers` travel in single precision. A mandatory
        message without a `message_id` is given one, by which its return is recognised. `properties`, of a message that
        came in and goes on, stand for all that are named singly. Raises ValueError for what
        AMQP cannot carry (a name over 255 bytes, headers over a frame), ChannelClosed, ConnectionLost, and
        RuntimeError on a channel that was opened without confirms.
        """
        confirmations = self._confirmations
        if confirmations is None:
            raise RuntimeError("publishing needs open_channel(confirms=True)")
        if self._link.blocked is not None or self._outbox.is_full or self._state.flow_stopped:
            await self._wait_to_publish()
        self._check_open()
        if properties is not None:
            message_id = properties.message_id
        wire_id = message_id
        if mandatory and message_id is None:
            wire_id = confirmations.next_message_id()
        if properties is None:
            encoded = encode_properties(
                content_type, headers, persistent, expiration, wire_id, timestamp
            )
        else:
            encoded = encode_all_properties(properties._replace(message_id=wire_id))
        number = self._number
        publish = codec.encode_publish(number, exchange, routing_key, mandatory)
        self._outbox.write_pieces(
            codec.encode_message(publish, number, encoded, body, self._link.frame_max)
        )
        return confirmations.add(
            None if message_id is None else (message_id, exchange, routing_key)
        )

    async def publish(
        self,
        body: bytes,
        *,
        routing_key: str,
        exchange: str = "",
        headers: Headers | None = None,
        content_type: str | None = None,
        persistent: bool = True,
        mandatory: bool = True,
        expiration: str | None = None,
        timestamp: datetime | None = None,
        message_id: str | None = None,
    ) -> None:
        """Publish a message and return when it is safe: `publish_soon` and `Confirmation.wait` in one."""
        confirmation = await self.publish_soon(
            body,
            routing_key=routing_key,
            exchange=exchange,
            headers=headers,
            content_type=content_type,
            persistent=persistent,
            mandatory=mandatory,
            expiration=expiration,
            timestamp=timestamp,
            message_id=message_id,
        )
        await confirmation.wait()

    async def flush(self) -> None:
        """Wait until all that was buffered, acknowledgements too, is with the kernel; raises ConnectionLost."""
        self._check_open()
        await self._outbox.flush()

    async def _wait_to_publish(self) -> None:
        while self._state.failure is None and (
            self._link.blocked is not None or self._outbox.is_full or self._state.flow_stopped
        ):
            await self._outbox.has_room.park()

    def _check_open(self) -> None:
        if self._state.failure is not None:
            raise self._state.failure.again()

    # From and to the connection.

    async def _open(self, confirms: bool) -> None:
        await self._state.calls.call(commands.Channel.Open())
        if confirms:
            await self._state.calls.call(commands.Confirm.Select())
            self._confirmations = self._state.confirmations = Confirmations()

    def _raise_untold(self) -> None:
        failure = self._state.failure
        if isinstance(failure, ChannelClosed) and not failure.told:
            raise failure.again()

    async def _close(self) -> None:
        left = ChannelClosed(None, "its context has been left")
        left.told = True
        self._state.start_closing(left)
        await self._state.wait_closed()
