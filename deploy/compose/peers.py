"""The broker and the store of compose.yaml, as the programs beside the sidecar reach them."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from iterum_sidecar.amqp import ConnectionParameters
from iterum_sidecar.brokers.amqp import QueuePolicy, open_amqp_broker
from iterum_sidecar.patience import Patience
from iterum_sidecar.secret_files import read_secret
from iterum_sidecar.stores.s3 import S3Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from iterum_sidecar.amqp import QueueDeclared
    from iterum_sidecar.brokers.amqp import AmqpBroker

__all__ = [
    "COMBINER",
    "LINEAGE",
    "PIPELINE",
    "RESULTS",
    "Step",
    "look_at",
    "open_broker",
    "open_store",
    "steps",
]

PIPELINE = os.environ["PIPELINE_HASH"]
LINEAGE = f"{PIPELINE}-lineage"
RESULTS = f"{PIPELINE}-results"
#: What `show` is called when it asks the manager.
COMBINER = f"{PIPELINE}-combiner"


class Step(NamedTuple):
    """A step of the pipeline, and the host that its sidecar is."""

    name: str
    sidecar: str

    @property
    def input_queue(self) -> str:
        """The queue that the step reads."""
        return f"{PIPELINE}-to-{self.name}"


def steps() -> list[Step]:
    """Return the steps that STEPS names, in their order: `step@sidecar second-step@second-sidecar`."""
    return [Step(*word.split("@")) for word in os.environ["STEPS"].split()]


@asynccontextmanager
async def open_broker(name: str, queues: Sequence[str]) -> AsyncIterator[AmqpBroker]:
    """Connect to the broker once it is there, and make those of `queues` that are missing, durable.

    Raises:
        BrokerLost: the connection was lost later.
    """
    parameters = ConnectionParameters.from_url(_secret("MQ_BROKER_URL"))
    async with open_amqp_broker(
        lambda: parameters,
        ssl_context=None,
        queues=queues,
        policy=QueuePolicy(durable=True),
        patience=Patience("the broker", timeout=0),
        name=name,
    ) as broker:
        yield broker


async def look_at(broker: AmqpBroker, queue: str) -> QueueDeclared:
    """Return how many messages wait in a queue and how many consumers it has; a missing one raises ChannelClosed."""
    async with broker.connection.open_channel() as channel:
        return await channel.declare_queue(queue, passive=True)


def open_store() -> S3Store:
    """Return the store, as an asynchronous context; nothing is connected yet."""
    host, _, port = os.environ["MINIO_URL"].partition(":")
    return S3Store(host, int(port), _secret("MINIO_ACCESS_KEY"), _secret("MINIO_SECRET_KEY"))


def _secret(variable: str) -> str:
    return read_secret(os.environ[f"{variable}_FILE"])
