from __future__ import annotations

import pickle

import pytest

from iterum_sidecar import amqp

EVERY = [
    amqp.ConnectError("no route", retryable=False),
    amqp.EndedAfterTls("the connection to localhost:5671 ended"),
    amqp.HandshakeTimeout("connection.tune", 10.0),
    amqp.AccessRefused("user", "/", 403, "ACCESS_REFUSED"),
    amqp.ConnectionLost("the broker hung up"),
    amqp.ConnectionClosedByBroker(320, "CONNECTION_FORCED"),
    amqp.ProtocolViolation("garbage"),
    amqp.ChannelClosed(404, "NOT_FOUND", "queue.declare"),
    amqp.ChannelsExhausted(5),
    amqp.ReplyTimeout("queue.declare", 30.0),
    amqp.ConsumerCancelled("queue"),
    amqp.PublishNacked(),
    amqp.MessageReturned(312, "NO_ROUTE", "", "nowhere"),
]


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_an_error_can_be_said_again_and_pickled(error: amqp.AmqpError) -> None:
    error.__cause__ = cause = OSError("cause")
    twin = error.again()
    assert twin is not error
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert twin.retryable == error.retryable
    assert twin.__cause__ is cause
    assert error.told
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_every_error_is_tried_here() -> None:
    names = {type(error).__name__ for error in EVERY} | {"AmqpError"}
    assert names == {
        name
        for name in amqp.__all__
        if isinstance(getattr(amqp, name), type) and issubclass(getattr(amqp, name), Exception)
    }


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (amqp.ConnectError("refused"), True),
        (amqp.HandshakeTimeout("connection.tune", 10.0), True),
        (amqp.AccessRefused("user", "/", 403, ""), False),
        (amqp.ConnectionClosedByBroker(320, ""), True),
        (amqp.ConnectionClosedByBroker(541, ""), True),
        (amqp.ConnectionClosedByBroker(503, ""), False),
        (amqp.ChannelClosed(None, ""), True),
        (amqp.ChannelClosed(404, "", "queue.declare"), False),
        (amqp.ChannelClosed(405, "", "queue.declare"), True),
        (amqp.ChannelClosed(406, "", "queue.declare"), False),
        (amqp.ChannelClosed(406, "delivery acknowledgement timed out"), True),
        (amqp.MessageReturned(312, "", "", ""), False),
    ],
)
def test_what_may_be_tried_again(error: amqp.AmqpError, retryable: bool) -> None:
    assert error.retryable == retryable
