"""Faults of real brokers, old and new, under a real sidecar: whatever they do, every input leads to one output, of one ID.

A scenario runs in several worlds: RabbitMQ 3.10 or 4.3, and queues as Iterum's peers declare them, durable ones, or quorum queues.
A broker that is `strict` takes short messages only, and back what is unacknowledged for long (`conftest.py`).
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed.contents import content
from testbed.faulty_proxy import FaultyProxy, running_faulty_proxy
from testbed.fragments import RemoteFile, RemoteFragment, new_id
from tests.faults.broker_journey import (
    ASSERTED_RETURN_SECONDS,
    EACH_SECONDS,
    END_SECONDS,
    LARGEST_MESSAGE,
    PREFETCH,
    BrokerJourney,
    assert_outages,
    assert_well_told,
    told,
    worlds,
)
from tests.wire.checks import reason_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def journey(broken_journey: BrokerJourney) -> BrokerJourney:
    """The step in one of the worlds of the test."""
    return broken_journey


@pytest.fixture
def proxy(journey: BrokerJourney) -> Iterator[FaultyProxy]:
    """A network between the sidecar and its broker."""
    with running_faulty_proxy(f"{journey.broker.host}:{journey.broker.port}") as running:
        yield running


# -- connections


@worlds("3.10 transient", "3.10 quorum", "4.3 quorum")
def test_the_broker_closes_all_connections_three_times(journey: BrokerJourney) -> None:
    sidecar, step = journey.begin()
    for number in range(3):
        journey.wait_for_more(sidecar, 10)
        journey.broker.close_connections("the test says so")
        journey.wait_for_return(sidecar, f"connections closed by the broker ({number + 1})")
    journey.finish(sidecar, step, repeats=True)
    assert_outages(sidecar, 3)
    assert all(
        "the test says so" in event["reason"] for event in told(sidecar, "waiting for the b")
    )


@worlds("3.10 transient", "4.3 durable")
def test_connections_are_reset_three_times(journey: BrokerJourney, proxy: FaultyProxy) -> None:
    sidecar, step = journey.begin(proxy=proxy)
    for number in range(3):
        journey.wait_for_more(sidecar, 10)
        proxy.cut()
        journey.wait_for_return(sidecar, f"connections reset ({number + 1})")
    journey.finish(sidecar, step, repeats=True)
    assert_outages(sidecar, 3)


@worlds("3.10 transient")
def test_the_broker_cannot_be_reached_for_8_seconds(
    journey: BrokerJourney, proxy: FaultyProxy
) -> None:
    sidecar, step = journey.begin(proxy=proxy)
    journey.wait_for_more(sidecar, 10)
    proxy.refuse()
    time.sleep(8)
    proxy.pass_on()
    journey.wait_for_return(sidecar, "unreachable for 8 s")
    journey.finish(sidecar, step, repeats=True)
    assert_outages(sidecar, 1)


@worlds("3.10 transient")
def test_a_connection_that_is_dead_and_does_not_say_so(
    journey: BrokerJourney, proxy: FaultyProxy
) -> None:
    """Only heartbeats find out, on either side: this takes a minute."""
    sidecar, step = journey.begin(proxy=proxy)
    journey.wait_for_more(sidecar, 10)
    proxy.blackhole()
    since = time.monotonic()
    sidecar.wait_until(
        lambda: told(sidecar, "waiting for the broker"), seconds=60, what="it noticed"
    )
    print(f"a dead connection: noticed after {time.monotonic() - since:.0f} s")
    proxy.pass_on()
    journey.wait_for_return(sidecar, "a dead connection")
    journey.finish(sidecar, step, repeats=True)
    assert_outages(sidecar, 1)


# -- the node


@worlds("3.10 durable", "3.10 quorum", "4.3 quorum")
def test_the_broker_is_killed_and_started_again(journey: BrokerJourney) -> None:
    sidecar, step = journey.begin()
    journey.wait_for_more(sidecar, 10)
    journey.broker.crash()
    journey.wait_for_return(sidecar, "killed and started again")
    journey.finish(sidecar, step, repeats=True)
    assert_outages(sidecar, 1)


@worlds("3.10 transient", "4.3 transient")
def test_what_it_holds_is_finished_when_the_broker_has_forgotten_all_else(
    journey: BrokerJourney,
) -> None:
    sidecar, step = journey.begin(seconds=END_SECONDS)
    input_queue = journey.step.input_queue
    sidecar.wait_until(
        lambda: journey.broker.depth(input_queue).unacknowledged == PREFETCH,
        seconds=20,
        what="it held what it may",
    )
    journey.broker.crash()
    journey.hurry.touch()
    journey.wait_for_return(sidecar, "a restart that forgets")
    outcome = journey.finish(sidecar, step, once=False)
    assert set(outcome.by_input()) == set(list(journey.inputs)[:PREFETCH])
    assert_outages(sidecar, 1)


@worlds("4.3 quorum")
def test_an_orderly_restart(journey: BrokerJourney) -> None:
    sidecar, step = journey.begin()
    journey.wait_for_more(sidecar, 10)
    journey.broker.restart()
    journey.wait_for_return(sidecar, "stopped and started again")
    journey.finish(sidecar, step, repeats=True)
    assert_outages(sidecar, 1)


@worlds("3.10 durable")
def test_a_node_that_refuses_for_20_seconds(journey: BrokerJourney) -> None:
    sidecar, step = journey.begin()
    journey.wait_for_more(sidecar, 10)
    journey.broker.stop_app()
    try:
        time.sleep(20)
    finally:
        journey.broker.start_app()
    journey.wait_for_return(sidecar, "refusing for 20 s")
    journey.finish(sidecar, step, repeats=True)
    assert_outages(sidecar, 1)


@worlds("4.3 quorum")
def test_a_node_that_is_frozen_for_5_seconds(journey: BrokerJourney) -> None:
    sidecar, step = journey.begin()
    journey.wait_for_more(sidecar, 10)
    with journey.broker.frozen():
        time.sleep(5)
    journey.wait_for_return(sidecar, "frozen for 5 s")
    journey.finish(sidecar, step)
    assert_outages(sidecar, 0)


@worlds("3.10 transient")
def test_a_broker_that_is_short_of_memory_takes_nothing_for_a_while(
    journey: BrokerJourney,
) -> None:
    sidecar, step = journey.begin()
    journey.wait_for_more(sidecar, 10)
    with journey.broker.short_of_memory():
        sidecar.wait_until(
            lambda: told(sidecar, "the broker takes no messages"), seconds=20, what="it said so"
        )
        before = journey.outputs_now()
        time.sleep(2)
        assert journey.outputs_now() == before, "messages were taken all the same"
    journey.wait_for_return(sidecar, "short of memory")
    journey.finish(sidecar, step)
    assert len(told(sidecar, "the broker takes messages again")) == 1
    assert_outages(sidecar, 0)


# -- queues


@worlds("3.10 transient", "4.3 quorum")
def test_the_input_queue_is_deleted_and_filled_again(journey: BrokerJourney) -> None:
    sidecar, step = journey.begin(finished=False)
    journey.wait_for_more(sidecar, 10)
    journey.broker.delete_queue(journey.step.input_queue)
    sidecar.wait_until(
        lambda: journey.queues.consumers(journey.step.input_queue) > 0,
        seconds=10,
        what="the queue was declared again",
    )
    bodies = [fragment.body() for fragment in journey.inputs.values()]
    journey.queues.publish(journey.step.input_queue, bodies)
    journey.manager.finished = True
    journey.finish(sidecar, step)
    (loss,) = told(sidecar, "the broker took the place in the queue's line away")
    assert loss["reason"]
    assert len(told(sidecar, "in the queue's line again")) == 1
    assert told(sidecar, "waiting for the broker") == []


@worlds("3.10 transient")
def test_an_output_queue_that_is_full_for_a_while(journey: BrokerJourney) -> None:
    """As many as may be in flight are refused together, and all are taken soon after there is room."""
    room = '{"max-length":20,"overflow":"reject-publish"}'
    pattern = f"^{journey.step.output_queue}$"
    journey.broker.ctl("set_policy", "--apply-to", "queues", "full", pattern, room)
    try:
        sidecar, step = journey.begin()
        sidecar.wait_until(
            lambda: told(sidecar, "the broker did not take a message"),
            seconds=20,
            what="it said so",
        )
        time.sleep(18)
    finally:
        journey.broker.ctl("clear_policy", "full")
    returned = time.monotonic()
    journey.wait_for_return(sidecar, "a full output queue")
    journey.wait_for_more(sidecar, PREFETCH)
    assert time.monotonic() - returned <= 2 * ASSERTED_RETURN_SECONDS
    journey.finish(sidecar, step)
    assert len(told(sidecar, "the broker did not take a message")) <= PREFETCH
    assert_outages(sidecar, 0)


@worlds("3.10-strict transient", "4.3-strict quorum")
def test_a_step_that_is_slower_than_the_broker_has_patience_for(journey: BrokerJourney) -> None:
    """The broker takes back what has been unacknowledged for three seconds, and it is worked once all the same."""
    sidecar, step = journey.begin(40, seconds=END_SECONDS, prefetch=10)
    taken_away = "the broker took the place in the queue's line away"
    sidecar.wait_until(
        lambda: len(told(sidecar, taken_away)) == 2, seconds=60, what="it was taken away twice"
    )
    outcome = journey.finish(sidecar, step)
    assert len(outcome.outputs) == 40
    # RabbitMQ 3 closes the channel and says why; 4.3 cancels the consumer, and says nothing.
    for event in told(sidecar, taken_away):
        assert "timed out" in event["reason"] or "cancelled" in event["reason"]
    assert told(sidecar, "waiting for the broker") == []


def name_of_largest(bucket: str) -> str:
    """Return a file's name that makes its fragment's description as long as the broker just takes."""
    file = RemoteFile("x", f"iterum_data/{new_id()}/x", bucket)
    shortest = len(RemoteFragment(new_id(), (file,)).body())
    return "/".join(["x" * 99] * 10)[: 1 + (LARGEST_MESSAGE - shortest) // 2]


@worlds("3.10-strict transient", "4.3-strict quorum")
def test_a_description_that_is_too_long_for_the_broker_is_a_dead_letter(
    journey: BrokerJourney,
) -> None:
    for number in range(20):
        journey.seed({f"{number}.bin": content(number, 200)}, directly=True)
    # Its result names its predecessor as well, which makes it longer than the broker takes.
    name = name_of_largest(journey.step.input_bucket)
    large = journey.seed({name: b"large"}, directly=True)
    assert LARGEST_MESSAGE - 1 <= len(large.body()) <= LARGEST_MESSAGE
    sidecar, step = journey.begin(100, seconds=0.01)
    outcome = journey.finish(sidecar, step, repeats=True, dead=1)
    assert outcome.dead_ids == [large.fragment_id]
    assert f"{LARGEST_MESSAGE:,}" in reason_of(outcome.dead_letters[0])
    assert len(outcome.outputs) == 120


# -- logins, and several sidecars


@worlds("3.10 transient")
def test_a_user_who_may_not_for_a_while(journey: BrokerJourney) -> None:
    broker, user = journey.broker, journey.step.name[:8]
    broker.ctl("add_user", user, "a-password")
    broker.ctl("set_permissions", user, ".*", ".*", ".*")
    try:
        url = f"amqp://{user}:a-password@{broker.host}:{broker.port}/"
        sidecar, step = journey.begin(MQ_BROKER_URL=url)
        journey.wait_for_more(sidecar, 10)
        broker.ctl("set_permissions", user, "^$", "^$", "^$")
        broker.close_connections("the test says so")
        sidecar.wait_until(
            lambda: told(sidecar, "waiting for the broker"), seconds=20, what="it said so"
        )
        time.sleep(5)
        broker.ctl("set_permissions", user, ".*", ".*", ".*")
        journey.wait_for_return(sidecar, "a user who may again")
        journey.finish(sidecar, step, repeats=True)
        assert len(told(sidecar, "waiting for the broker")) <= 3
    finally:
        broker.ctl("delete_user", user)


@worlds("3.10 transient")
def test_a_password_that_changes_during_an_outage(journey: BrokerJourney) -> None:
    broker, user, secret = journey.broker, journey.step.name[:8], journey.directory / "broker-url"

    def write_secret(password: str) -> None:
        secret.write_text(f"amqp://{user}:{password}@{broker.host}:{broker.port}/", "utf-8")

    broker.ctl("add_user", user, "the-old-password")
    broker.ctl("set_permissions", user, ".*", ".*", ".*")
    try:
        write_secret("the-old-password")
        sidecar, step = journey.begin(MQ_BROKER_URL="", MQ_BROKER_URL_FILE=str(secret))
        journey.wait_for_more(sidecar, 10)
        broker.ctl("change_password", user, "the-new-password")
        broker.close_connections("the test says so")
        sidecar.wait_until(
            lambda: f"user '{user}' - invalid credentials" in broker.log.read_text("utf-8"),
            seconds=20,
            what="the old password was refused",
        )
        write_secret("the-new-password")
        journey.wait_for_return(sidecar, "a new password")
        journey.finish(sidecar, step, repeats=True)
        assert_outages(sidecar, 1)
        assert "password" not in sidecar.log_text()
    finally:
        broker.ctl("delete_user", user)


@worlds("3.10 transient", "4.3 quorum")
def test_two_sidecars_of_one_step_lose_their_connections_in_turn(
    journey: BrokerJourney, proxy: FaultyProxy, tmp_path: Path
) -> None:
    with (
        running_faulty_proxy(f"{journey.broker.host}:{journey.broker.port}") as other_proxy,
        tempfile.TemporaryDirectory(prefix="v-", dir=journey.step.volume.parent) as volume,
    ):
        other = journey.beside(Path(volume), tmp_path / "other")
        first = journey.begin(proxy=proxy)
        sidecar = other.start_consuming(proxy=other_proxy)
        second = sidecar, other.start_step("paced", EACH_SECONDS, other.hurry)
        for proxies in 2 * ([proxy], [other_proxy], [proxy, other_proxy]):
            journey.wait_for_more(first[0], 10)
            for each in proxies:
                each.cut()
        journey.hurry.touch()
        other.hurry.touch()
        for sidecar, step in (first, second):
            journey.end(sidecar, step, seconds=END_SECONDS)
            assert_well_told(sidecar)
            assert told(sidecar, "in the queue's line again")
        assert other.leftovers() == []
        journey.what_came(repeats=True)
