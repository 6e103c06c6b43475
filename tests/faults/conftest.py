"""The same servers, names and volumes as for the tests of the wire; and brokers for those who break them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from testbed.rabbitmq import running_rabbitmq
from testbed.rabbitmq4 import running_rabbitmq4
from tests.faults.broker_journey import (
    LARGEST_MESSAGE,
    LONGEST_UNACKNOWLEDGED,
    BrokerJourney,
    World,
    broker_journey_of,
)
from tests.wire.conftest import *  # noqa: F403 (fixtures are found by their names)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from testbed.object_stores import ObjectStore
    from testbed.rabbitmq import RabbitMQ

STRICT = f"max_message_size = {LARGEST_MESSAGE}\nconsumer_timeout = {LONGEST_UNACKNOWLEDGED}\n"


def run_broker(name: str, directory: Path, stack: contextlib.ExitStack) -> RabbitMQ:
    """Run the broker of that name: `3.10` (the one that is installed) or `4.3`, and how it differs from its defaults.

    `strict` takes short messages only, and acknowledgements that come soon; `denying` takes no transient queues.
    """
    version, _, difference = name.partition("-")
    configuration = STRICT if difference == "strict" else ""
    if version == "3.10":
        broker = stack.enter_context(running_rabbitmq(directory, configuration=configuration))
    else:
        permit = difference != "denying"
        broker = stack.enter_context(
            running_rabbitmq4(directory, permit_transient=permit, configuration=configuration)
        )
    if difference == "strict":
        # How often RabbitMQ looks for what is unacknowledged for too long; no setting of its configuration file.
        broker.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 1000).")
    return broker


@pytest.fixture(scope="session")
def broker_named(session_directory: Path) -> Iterator[Callable[[str], RabbitMQ]]:
    """The brokers that tests break, each run from the first time that it is asked for."""
    brokers: dict[str, RabbitMQ] = {}
    with contextlib.ExitStack() as stack:

        def named(name: str) -> RabbitMQ:
            if name not in brokers:
                directory = session_directory / f"rabbitmq-{name}"
                brokers[name] = run_broker(name, directory, stack)
            return brokers[name]

        yield named


@pytest.fixture
def broken_journey(
    request: pytest.FixtureRequest,
    broker_named: Callable[[str], RabbitMQ],
    rclone: ObjectStore,
    volume: Path,
    tmp_path: Path,
) -> Iterator[BrokerJourney]:
    """A step in the world that the test names (`worlds`)."""
    world: World = request.param
    broker = broker_named(world.broker)
    with broker_journey_of(broker, world.kind, rclone, volume, tmp_path) as journey:
        yield journey
