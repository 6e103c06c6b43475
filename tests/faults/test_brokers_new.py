"""What differs between brokers, and what the sidecar relies on in each: declarations, delivery limits, and what is marked as redelivered."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import TYPE_CHECKING

import pika
import pytest

from iterum_sidecar.check.broker import LIMIT_TO_COMPARE
from testbed.contents import content
from testbed.faulty_proxy import running_faulty_proxy
from testbed.fragments import connected
from testbed.process import ProcessFailed, wait_until
from tests.faults.broker_journey import (
    END_SECONDS,
    KINDS,
    PREFETCH,
    BrokerJourney,
    assert_outages,
    told,
    worlds,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pika.adapters.blocking_connection import BlockingChannel

    from testbed.process import Process
    from testbed.rabbitmq import RabbitMQ

#: More than a quorum queue's own limit on deliveries in RabbitMQ 4, which is 20.
DELIVERIES = 25
KILLS = 22
#: Seconds after which a message that is not back in its queue is not coming.
GONE_SECONDS = 3
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
    assert deliveries_survived(url, queue) == DELIVERIES


@worlds("3.10 quorum", "4.3 quorum")
def test_a_fragment_whose_sidecars_are_killed_many_times_is_not_lost(
    journey: BrokerJourney,
) -> None:
    """Each life is killed with the fragment in flight, more often than RabbitMQ 4 delivers by default; the last one works it."""
    journey.manager.finished = False
    journey.seed({"often.bin": content(1, 200)}, directly=True)
    (fragment,) = journey.inputs.values()
    queue = journey.step.input_queue
    for life in range(KILLS):
        sidecar = journey.start_consuming()
        if life == 0:
            journey.queues.publish(queue, [fragment.body()])
        sidecar.wait_until(
            lambda: journey.queues.count(queue) == 0, seconds=20, what="it held the fragment"
        )
        sidecar.signal(signal.SIGKILL)
        sidecar.wait(20)
        wait_until(
            lambda: journey.queues.count(queue) == 1,
            seconds=20,
            what=f"the fragment to be back after {life + 1} kills",
        )
    last = journey.start_consuming()
    journey.hurry.touch()
    step = journey.start_step("paced", 0, journey.hurry)
    journey.manager.finished = True
    journey.finish(last, step)


@worlds("4.3 quorum")
def test_a_fragment_whose_connections_are_lost_many_times_is_not_lost(
    journey: BrokerJourney,
) -> None:
    """It is with the transformation all the while, and is worked once; the broker keeps it as long."""
    queue = journey.step.input_queue
    with running_faulty_proxy(f"{journey.broker.host}:{journey.broker.port}") as proxy:
        sidecar, step = journey.begin(1, seconds=END_SECONDS, proxy=proxy, finished=False)
        for loss in range(KILLS):
            sidecar.wait_until(
                lambda: journey.queues.consumers(queue) == 1 and journey.queues.count(queue) == 0,
                seconds=20,
                what=f"it held the fragment after {loss} losses",
            )
            proxy.cut()
            wait_for_times(sidecar, loss + 1, "in the queue's line again")
        wait_until(
            lambda: journey.broker.depth(queue) == (0, 1), seconds=20, what="the broker to have it"
        )
        journey.manager.finished = True
        outcome = journey.finish(sidecar, step)
    assert len(outcome.outputs) == 1


def wait_for_times(sidecar: Process, times: int, message: str) -> None:
    """Wait until the log has told something so many times."""
    sidecar.wait_until(
        lambda: len(told(sidecar, message)) == times, seconds=20, what=f"it told '{message}'"
    )


#: Limits of deliveries by broker: what a queue is declared with, a policy for it, and how many deliveries a message outlives.
LIMITS: list[tuple[str, int | None, int | None, int]] = [
    ("3.10", None, None, DELIVERIES),
    ("3.10", -1, None, 1),
    ("3.10", -1, 1_000_000, 1),
    ("3.10", 0, None, 1),
    ("3.10", 5, 1_000_000, 6),
    ("3.10", None, 5, 6),
    ("4.3", None, None, 21),
    ("4.3", None, -1, DELIVERIES),
    ("4.3", -1, None, DELIVERIES),
    ("4.3", 0, None, 1),
    ("4.3", 5, -1, 6),
    ("4.3", None, 5, 6),
]


@pytest.mark.parametrize(("name", "argument", "policy", "survived"), LIMITS)
def test_a_delivery_limit_means_what_the_check_says_of_it(
    name: str,
    argument: int | None,
    policy: int | None,
    survived: int,
    broker_named: Callable[[str], RabbitMQ],
    unique: str,
) -> None:
    """`iterum_sidecar/check/management.py` stands on this, and on what mends it."""
    broker, queue = broker_named(name), f"limited-{unique}"
    arguments: dict[str, object] = {"x-queue-type": "quorum"}
    if argument is not None:
        arguments["x-delivery-limit"] = argument
    if policy is not None:
        definition = f'{{"delivery-limit":{policy}}}'
        broker.ctl("set_policy", "--apply-to", "queues", unique, f"^{queue}$", definition)
    with connected(broker.url) as observer:
        observer._channel.queue_declare(queue, durable=True, arguments=arguments)
        publish_safely(observer._channel, queue, [b"often"])
    try:
        assert deliveries_survived(broker.url, queue) == survived
    finally:
        with connected(broker.url) as observer:
            observer.delete(queue)
        if policy is not None:
            broker.ctl("clear_policy", unique)


def test_a_policy_without_limit_is_refused_before_rabbitmq_4(
    broker_named: Callable[[str], RabbitMQ], unique: str
) -> None:
    limit = ("--apply-to", "queues", unique, f"^{unique}$", '{"delivery-limit":-1}')
    with pytest.raises(ProcessFailed, match="not a valid delivery limit"):
        broker_named("3.10").ctl("set_policy", *limit)


@pytest.mark.parametrize("name", ["3.10", "4.3"])
def test_a_comparison_of_arguments_makes_no_queue(
    name: str, broker_named: Callable[[str], RabbitMQ], unique: str
) -> None:
    """`iterum_sidecar/check/broker.py` stands on this."""
    url = broker_named(name).url
    queues = {
        f"bad-{unique}": {"x-queue-type": "quorum", "x-delivery-limit": -1},
        f"good-{unique}": {"x-queue-type": "quorum"},
        f"classic-{unique}": {},
    }
    with connected(url) as observer:
        for queue, arguments in queues.items():
            observer._channel.queue_declare(queue, durable=True, arguments=arguments)
    same: list[str] = []
    for queue in (*queues, f"missing-{unique}"):
        with contextlib.suppress(pika.exceptions.ChannelClosedByBroker), connected(url) as asking:
            asking._channel.queue_declare(queue, durable=True, arguments=LIMIT_TO_COMPARE)
            same.append(queue)
    assert same == [f"bad-{unique}"]
    with connected(url) as observer:
        assert not observer.exists(f"missing-{unique}")
        observer.delete(*queues)


def deliveries_survived(url: str, queue: str) -> int:
    """Take the one message of a queue and lose the connection, up to DELIVERIES times; return after how many it was gone, or all."""
    for delivery in range(DELIVERIES):
        with connected(url) as observer:
            assert get_one(observer._channel, queue) == (b"often", delivery > 0)
        with connected(url) as observer:
            until = time.monotonic() + GONE_SECONDS
            while observer.count(queue) == 0:
                if time.monotonic() > until:
                    return delivery + 1
                time.sleep(0.01)
    return DELIVERIES


@worlds(*(f"{name} {kind}" for name in ("3.10", "4.3") for kind in KINDS))
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_sidecar_held_is_marked_as_redelivered(
    journey: BrokerJourney, number: signal.Signals
) -> None:
    """Killed, it leaves its connection to the kernel; told to stop, it gives back what it holds, and closes."""
    for each in range(2 * PREFETCH):
        journey.seed({f"{each}.bin": content(each, 200)}, directly=True)
    bodies = [fragment.body() for fragment in journey.inputs.values()]
    queue = journey.step.input_queue
    journey.manager.finished = False
    sidecar = journey.start_consuming(prefetch=PREFETCH, SIDECAR_DRAIN_SECONDS="1")
    journey.queues.publish(queue, bodies)
    sidecar.wait_until(
        lambda: journey.queues.count(queue) == len(bodies) - PREFETCH,
        seconds=20,
        what="it held what it may",
    )
    sidecar.signal(number)
    sidecar.wait(20)
    marks = marks_of_all(journey.broker, queue, bodies)
    assert marks == {body: body in bodies[:PREFETCH] for body in bodies}


def get_one(channel: BlockingChannel, queue: str) -> tuple[bytes, bool] | None:
    """Take a message, if there is one, without acknowledging it; with whether the broker calls it redelivered."""
    method, _, body = channel.basic_get(queue)
    return None if method is None else (body, method.redelivered)


#: In this order: RabbitMQ's single node forgets what was confirmed on a quorum queue that was declared in the second before a crash.
FAULTS: dict[str, Callable[[RabbitMQ, BlockingChannel], object]] = {
    "the connection is closed": lambda broker, channel: None,
    "its channel is closed": lambda broker, channel: channel.close(),
    "all is given back": lambda broker, channel: channel.basic_nack(0, multiple=True),
    "connections are closed": lambda broker, channel: broker.close_connections("the test says so"),
    "an orderly restart": lambda broker, channel: broker.restart(),
    "a crash": lambda broker, channel: broker.crash(),
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
                publish_safely(holder._channel, queue, BODIES)
                first_two = [get_one(holder._channel, queue) for _ in range(2)]
                assert first_two == [(b"0", False), (b"1", False)]
            strike(broker, holder._channel)
        for queue in queues:
            assert marks_of_all(broker, queue, BODIES) == {
                body: body in {b"0", b"1"} or (fault == "a crash" and queue.startswith("classic"))
                for body in BODIES
            }
    with connected(broker.url) as observer:
        observer.delete(*queues)


def publish_safely(channel: BlockingChannel, queue: str, bodies: Iterable[bytes]) -> None:
    """Put messages on a queue, each with the broker's confirm."""
    channel.confirm_delivery()
    for body in bodies:
        channel.basic_publish("", queue, body, PERSISTENT)


def marks_of_all(broker: RabbitMQ, queue: str, bodies: Sequence[bytes]) -> dict[bytes, bool]:
    """Take all messages, once they are back in the queue, and return whether each is marked as redelivered."""
    with connected(broker.url) as observer:
        wait_until(
            lambda: observer.count(queue) == len(bodies), seconds=20, what=f"all to be in {queue}"
        )
        marks = dict(filter(None, (get_one(observer._channel, queue) for _ in bodies)))
        observer._channel.basic_ack(0, multiple=True)
    return marks
