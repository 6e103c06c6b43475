"""What a channel knows, and how the broker's frames change it; its users see `channel.Channel`."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from pamqp import commands
from trio.lowlevel import ParkingLot

from iterum_sidecar.amqp import codec
from iterum_sidecar.amqp.calls import Calls
from iterum_sidecar.amqp.content import BodyTooLarge, ContentAssembler, Message
from iterum_sidecar.amqp.deliveries import Delivery, Unacknowledged
from iterum_sidecar.amqp.errors import (
    CONTENT_TOO_LARGE,
    AmqpError,
    ChannelClosed,
    ConsumerCancelled,
    MessageReturned,
    ProtocolViolation,
)
from iterum_sidecar.amqp.methods import name_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pamqp.base import Frame as Method

    from iterum_sidecar.amqp.confirmations import Confirmations
    from iterum_sidecar.amqp.consumer import Consumer
    from iterum_sidecar.amqp.link import Link

_REPLY_SUCCESS = 200

_identities = count(1)


class ChannelState:
    """One channel of a connection, from this side's channel.open to the last close-ok.

    `failure` is set once, when the channel can no longer be used; `release` is called when its number is free again.
    """

    def __init__(self, link: Link, number: int, release: Callable[[int], None]) -> None:
        self.identity = next(_identities)
        self.link = link
        self.number = number
        self.calls = Calls(link, number, self._abandon)
        self.unacknowledged = Unacknowledged()
        self.confirmations: Confirmations | None = None
        self.consumers: dict[bytes, Consumer] = {}
        self.flow_stopped = False
        self.failure: AmqpError | None = None
        self._assembler = ContentAssembler(link.max_body_size)
        self._release = release
        self._close_pending = False
        self._close_answered = ParkingLot()

    # The end, from three sides.

    def end(self, failure: AmqpError) -> None:
        """Make the channel unusable and tell everybody who waits; what was delivered is stale from now on."""
        if self.failure is not None:
            return
        self.failure = failure
        self.unacknowledged.clear()
        for consumer in self.consumers.values():
            consumer._end(failure, discard=True)
        self.consumers.clear()
        if self.confirmations is not None:
            self.confirmations.fail(failure)
        self.calls.fail(failure)
        self.link.outbox.has_room.unpark_all()
        self._close_answered.unpark_all()

    def start_closing(self, failure: ChannelClosed) -> None:
        """End the channel and ask the broker to do the same; its number stays taken until the answer."""
        if self.failure is not None:
            return
        self.end(failure)
        self._send(
            commands.Channel.Close(
                reply_code=failure.code or _REPLY_SUCCESS, reply_text="", class_id=0, method_id=0
            )
        )
        self._close_pending = True

    async def wait_closed(self) -> None:
        """Wait until the broker has answered the channel.close, if one was sent, or the connection has ended."""
        while self._close_pending and self.link.failure is None:
            await self._close_answered.park()

    def connection_lost(self, failure: AmqpError) -> None:
        """End the channel with its connection, which answers no channel.close any more."""
        self.end(failure)
        self._close_answered.unpark_all()

    def _abandon(self, reason: str) -> None:
        failure = ChannelClosed(None, reason)
        # Whoever abandoned the call has an exception of its own, or was cancelled.
        failure.told = True
        self.start_closing(failure)

    # What comes in.

    def handle(self, kind: int, payload: bytes) -> None:
        """Take a frame; raises ProtocolViolation, which ends the connection."""
        if self.failure is not None:
            self._handle_when_closed(kind, payload)
            return
        if kind == codec.BODY:
            message = self._assembler.body(payload)
        elif kind == codec.HEADER:
            try:
                message = self._assembler.header(payload)
            except BodyTooLarge as error:
                text = f"a message of {error.size} bytes, where {self.link.max_body_size} are the limit"
                self.start_closing(ChannelClosed(CONTENT_TOO_LARGE, text))
                return
        elif kind != codec.METHOD or self._assembler.is_expecting:
            raise ProtocolViolation(f"a frame of type {kind} in the middle of a message")
        elif payload.startswith(codec.DELIVER):
            self._assembler.begin(codec.decode_deliver(payload))
            return
        elif payload.startswith(codec.CONFIRMS):
            self._handle_confirm(payload)
            return
        else:
            self._handle_method(codec.decode_method(payload))
            return
        if message is not None:
            self._handle_message(message)

    def _handle_message(self, message: Message) -> None:
        method, properties, body = message
        if isinstance(method, tuple):
            consumer_tag, delivery_tag, redelivered, exchange, routing_key = method
            consumer = self.consumers.get(consumer_tag)
            if consumer is None:
                raise ProtocolViolation(
                    f"a delivery to consumer {consumer_tag!r}, which is not there"
                )
            self.unacknowledged.add(delivery_tag, consumer)
            consumer._put(
                Delivery(
                    body,
                    properties,
                    delivery_tag,
                    redelivered,
                    exchange,
                    routing_key,
                    self.link.epoch,
                    self.identity,
                )
            )
            return
        if self.confirmations is None:
            raise ProtocolViolation("a message was returned on a channel that publishes none")
        error = MessageReturned(
            method.reply_code or 0,
            method.reply_text or "",
            method.exchange or "",
            method.routing_key or "",
        )
        self.confirmations.returned(properties.message_id, error)

    def _handle_confirm(self, payload: bytes) -> None:
        if self.confirmations is None:
            raise ProtocolViolation("a confirm on a channel that publishes nothing")
        delivery_tag, multiple = codec.decode_ack(payload)
        acknowledged = payload.startswith(codec.ACK)
        self.confirmations.settle(delivery_tag, multiple, acknowledged)

    def _handle_method(self, method: Method) -> None:
        match method:
            case commands.Basic.Return():
                self._assembler.begin(method)
            case commands.Basic.Cancel():
                self._handle_cancel(method)
            case commands.Channel.Close():
                self._handle_close(method)
            case commands.Channel.Flow():
                self.flow_stopped = not method.active
                self._send(commands.Channel.FlowOk(method.active))
                self.link.outbox.has_room.unpark_all()
            case _:
                self.calls.answer(method)

    def _handle_cancel(self, method: commands.Basic.Cancel) -> None:
        consumer = self.consumers.pop((method.consumer_tag or "").encode(), None)
        # RabbitMQ asks for no answer: it may come after our own basic.cancel for the same consumer.
        if not method.nowait:
            self._send(commands.Basic.CancelOk(method.consumer_tag))
        if consumer is not None:
            self.unacknowledged.forget_consumer(consumer)
            consumer._end(ConsumerCancelled(consumer._queue))

    def _handle_close(self, method: commands.Channel.Close) -> None:
        self._send(commands.Channel.CloseOk())
        blamed = name_of(method.class_id or 0, method.method_id or 0)
        self.end(ChannelClosed(method.reply_code or 0, method.reply_text or "", blamed))
        if not self._close_pending:
            self._release(self.number)

    def _handle_when_closed(self, kind: int, payload: bytes) -> None:
        """Wait for close-ok, and pass over what the broker sent before it knew."""
        if kind != codec.METHOD or not payload.startswith(codec.CHANNEL_CLASS):
            return
        method = codec.decode_method(payload)
        if isinstance(method, commands.Channel.Close):
            self._handle_close(method)
        elif isinstance(method, commands.Channel.CloseOk):
            self._close_pending = False
            self._release(self.number)
            self._close_answered.unpark_all()

    def _send(self, method: Method) -> None:
        self.link.outbox.write(codec.encode_method(method, self.number))
