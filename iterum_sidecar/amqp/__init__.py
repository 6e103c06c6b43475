"""A client for AMQP 0-9-1 (RabbitMQ) on Trio.

    async with open_connection(ConnectionParameters.from_url(url)) as connection:
        async with connection.open_channel(confirms=True) as channel:
            await channel.publish(b"...", routing_key="results")
            async with channel.consume("work", prefetch=100) as consumer:
                async for delivery in consumer:
                    ...
                    channel.acknowledge(delivery)

One task reads, one writes; everything between is synchronous. `codec`, `properties`, `content`, `confirmations` and
`deliveries` do no I/O; `handshake`, `outbox` and `connection` are all that touches the stream. The methods that
are not on the path of each message are pamqp's to encode and decode.
"""

from __future__ import annotations

from iterum_sidecar.amqp.channel import Channel, QueueDeclared
from iterum_sidecar.amqp.confirmations import Confirmation
from iterum_sidecar.amqp.connection import Connection, open_connection
from iterum_sidecar.amqp.consumer import Consumer
from iterum_sidecar.amqp.deliveries import Delivery
from iterum_sidecar.amqp.errors import (
    AccessRefused,
    AmqpError,
    ChannelClosed,
    ChannelsExhausted,
    ConnectError,
    ConnectionClosedByBroker,
    ConnectionLost,
    ConsumerCancelled,
    EndedAfterTls,
    HandshakeTimeout,
    MessageReturned,
    ProtocolViolation,
    PublishNacked,
    ReplyTimeout,
)
from iterum_sidecar.amqp.parameters import ConnectionParameters
from iterum_sidecar.amqp.properties import Properties
from iterum_sidecar.amqp.transport import StreamFactory, open_stream

__all__ = [
    "AccessRefused",
    "AmqpError",
    "Channel",
    "ChannelClosed",
    "ChannelsExhausted",
    "Confirmation",
    "ConnectError",
    "Connection",
    "ConnectionClosedByBroker",
    "ConnectionLost",
    "ConnectionParameters",
    "Consumer",
    "ConsumerCancelled",
    "Delivery",
    "EndedAfterTls",
    "HandshakeTimeout",
    "MessageReturned",
    "Properties",
    "ProtocolViolation",
    "PublishNacked",
    "QueueDeclared",
    "ReplyTimeout",
    "StreamFactory",
    "open_connection",
    "open_stream",
]
