"""What differs between brokers, and what the sidecar relies on in each: declarations, delivery limits, and what is marked as redelivered."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import pika
import pytest

from testbed.fragments import connected
from testbed.process import wait_until
from testbed.rabbitmq import RabbitMQ
from tests.faults.broker_journey import (
    END_SECONDS,
    PREFETCH,
    BrokerJourney,
    assert_outages,
    told,
    worlds,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pika.adapters.blocking_connection import BlockingChannel

#: More than a quorum queue's own limit on deliveries in RabbitMQ 4, which is 20.
DELIVERIES = 25
BODIES = [b"0", b"1", b"2", b"3"]
PERSISTENT = pika.BasicProperties(delivery_mode=2)


@pytest.fixture
def journey(broken_journey: BrokerJourney) -> BrokerJourney:
    """The step in one of the worlds of the test."""
    return broken_journey


@worlds("4.3-denying transient")
def test_a_broker_that_takes_no_transient_queues_gets_durable_ones(journey: BrokerJourney) -> None:
    sidecar, step = journey.begin()
    assert len(told(sidecar, "the broker takes no transient queues")) == 1
    journey.wait_for_more(sidecar, 10)
    journey.broker.crash()
    journey.wait_for_return(sidecar, "killed and started again")
    journey.finish(sidecar, step, repeats=True)
    assert len(told(sidecar, "the broker takes no transient queues")) == 1
    assert_outages(sidecar, 1)


@worlds("3.10 quorum", "4.3 quorum")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_quorum_queue_of_ours_gives_everything_to_the_next_sidecar(
    journey: BrokerJourney, number: signal.Signals
) -> None:
    first, step = journey.begin(60, seconds=END_SECONDS, SIDECAR_DRAIN_SECONDS="1")
    first.wait_until(
        lambda: journey.broker.depth(journey.step.input_queue).unacknowledged == PREFETCH,
        seconds=20,
        what="it held what it may",
    )
    first.signal(number)
    first.wait(20)
    step.close()
    second = journey.start_consuming()
    journey.hurry.touch()
    journey.finish(second, journey.start_step("paced", 0, journey.hurry))


@worlds("3.10 quorum", "4.3 quorum")
def test_a_quorum_queue_of_ours_drops_nothing_that_is_often_delivered(
    journey: BrokerJourney,
) -> None:
    journey.manager.finished = False
    journey.start_consuming().close()
    queue, url = journey.step.input_queue, journey.broker.url
    wait_until(lambda: journey.queues.consumers(queue) == 0, seconds=20, what="it to be gone")
    journey.queues.publish(queue, [b"often"])
    for delivery in range(DELIVERIES):
        with connected(url) as observer:
            assert get_one(observer._channel, queue) == (b"often", delivery > 0)
        wait_until(
            lambda: journey.queues.count(queue) == 1,
            seconds=10,
            what=f"it to be back after {delivery + 1}",
        )


def get_one(channel: BlockingChannel, queue: str) -> tuple[bytes, bool] | None:
    """Take a message, if there is one, without acknowledging it; with whether the broker calls it redelivered."""
    method, _, body = channel.basic_get(queue)
    return None if method is None else (body, method.redelivered)


#: In this order: RabbitMQ's single node forgets what was confirmed on a quorum queue that was declared in the second before a crash.
FAULTS: dict[str, Callable[[RabbitMQ], object]] = {
    "a connection is lost": lambda broker: None,
    "connections are closed": lambda broker: broker.close_connections("the test says so"),
    "an orderly restart": RabbitMQ.restart,
    "a crash": RabbitMQ.crash,
}


@pytest.mark.parametrize("name", ["3.10", "4.3"])
def test_what_was_delivered_is_marked_as_redelivered(
    name: str, broker_named: Callable[[str], RabbitMQ], unique: str
) -> None:
    """An acknowledgement that was lost is known by it. Only a crash marks more: on durable classic queues, everything."""
    broker = broker_named(name)
    queues = {f"classic-{unique}": {}, f"quorum-{unique}": {"x-queue-type": "quorum"}}
    with connected(broker.url) as observer:
        for queue, arguments in queues.items():
            observer._channel.queue_declare(queue, durable=True, arguments=arguments)
    for fault, strike in FAULTS.items():
        with contextlib.suppress(pika.exceptions.AMQPError), connected(broker.url) as holder:
            for queue in queues:
                publish_safely(holder._channel, queue)
                first_two = [get_one(holder._channel, queue) for _ in range(2)]
                assert first_two == [(b"0", False), (b"1", False)]
            strike(broker)
        for queue in queues:
            assert marks_of_all(broker, queue) == {
                body: body in {b"0", b"1"} or (fault == "a crash" and queue.startswith("classic"))
                for body in BODIES
            }
    with connected(broker.url) as observer:
        observer.delete(*queues)


def publish_safely(channel: BlockingChannel, queue: str) -> None:
    """Put the test's messages on a durable queue, each with the broker's confirm."""
    channel.confirm_delivery()
    for body in BODIES:
        channel.basic_publish("", queue, body, PERSISTENT)


def marks_of_all(broker: RabbitMQ, queue: str) -> dict[bytes, bool]:
    """Take all messages, once they are back in the queue, and return whether each is marked as redelivered."""
    with connected(broker.url) as observer:
        wait_until(
            lambda: observer.count(queue) == len(BODIES), seconds=20, what=f"all to be in {queue}"
        )
        marks = dict(filter(None, (get_one(observer._channel, queue) for _ in BODIES)))
        observer._channel.basic_ack(0, multiple=True)
    return marks
