"""Whether a broker has noticed the loss of a connection, asked over another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from iterum_sidecar import amqp
from iterum_sidecar.brokers.amqp import AmqpBroker, QueuePolicy, has_noticed, open_amqp_broker
from iterum_sidecar.patience import Patience
from testbed.faulty_proxy import running_faulty_proxy

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from testbed.rabbitmq import RabbitMQ

SECONDS = 20


def connection_to(url: str) -> AbstractAsyncContextManager[AmqpBroker]:
    return open_amqp_broker(
        lambda: amqp.ConnectionParameters.from_url(url),
        ssl_context=None,
        queues=[],
        policy=QueuePolicy(),
        patience=Patience("the broker", SECONDS),
        name="a test",
    )


async def test_a_broker_is_asked_whether_it_misses_a_connection(rabbitmq: RabbitMQ) -> None:
    """The first is silent, as one whose packets vanish: for the broker it lives until it is reset."""
    with running_faulty_proxy(f"{rabbitmq.host}:{rabbitmq.port}") as proxy:
        async with connection_to(rabbitmq.url) as present:
            with trio.CancelScope() as scope:
                async with connection_to(f"amqp://guest:guest@{proxy.endpoint}/") as lost:
                    assert lost.mark
                    proxy.blackhole()
                    assert not await has_noticed(present, lost)
                    # Leaving says goodbye, which vanishes too.
                    scope.cancel()
            assert not await has_noticed(present, lost)
            proxy.cut()
            with trio.fail_after(SECONDS):
                while True:
                    if await has_noticed(present, lost):
                        break
                    await trio.sleep(0.1)
