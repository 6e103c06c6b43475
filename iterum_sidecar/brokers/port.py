"""What the sidecar asks of a message broker, whichever one is behind it.

`brokers.amqp` speaks to a real one; `brokers.memory` keeps queues in this process and serves local runs and
deterministic tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from iterum_sidecar.exit_codes import ServiceLost

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

__all__ = ["Broker", "BrokerLost", "Confirmation", "Consumer", "Delivery", "MessageUnroutable"]


class BrokerLost(ServiceLost):
    """The connection to the broker is gone, or the broker took away what was being used of it."""


class MessageUnroutable(Exception):
    """A message could not be put on its queue: the broker returned it or would not take it."""


class Delivery(Protocol):
    """A message as it was delivered. It is acknowledged on the connection that it came on, or not at all."""

    @property
    def body(self) -> bytes:
        """The message."""
        ...

    @property
    def headers(self) -> Mapping[str, Any]:
        """The message's headers."""
        ...

    @property
    def redelivered(self) -> bool:
        """Whether the broker has delivered it before."""
        ...


class Confirmation(Protocol):
    """The broker's promise, to come, that it has taken a message."""

    async def wait(self) -> None:
        """Return when the message is safe with the broker.

        Raises:
            MessageUnroutable: the broker returned it, or refused it.
            BrokerLost: the connection went first; the message may or may not be there.
        """
        ...


class Consumer(Protocol):
    """A place in the line of one queue, with a window of messages that may be unacknowledged."""

    async def receive(self) -> Sequence[Any]:
        """Return what has been delivered since the last call; at least one delivery, waiting for it if need be.

        Raises:
            BrokerLost.
        """
        ...

    async def grow(self, increment: int) -> None:
        """Allow `increment` more messages to be unacknowledged."""
        ...

    async def hold(self, count: int) -> None:
        """Know that `count` messages of the window may have to be unacknowledged at a time; a broker that shares a queue out asks for it."""
        ...

    async def stop(self) -> Sequence[Any]:
        """Take no more; returns what had arrived and was not received. Acknowledgements remain possible."""
        ...

    async def reopen(self) -> int:
        """Leave the line and look: returns how many messages wait in the queue now that everything that
        was acknowledged is settled. What was not acknowledged goes back to the queue. `resume` takes a new place in the line.
        """
        ...

    async def resume(self) -> None:
        """Take a place in the line again after `stop` or `reopen`."""
        ...

    async def waiting(self) -> int:
        """Return how many messages wait in the queue, those delivered and unacknowledged not counted."""
        ...


class Broker(Protocol):
    """Queues: consuming, publishing with confirms, acknowledging."""

    async def ensure_queue(self, queue: str, *, durable: bool = False) -> None:
        """Use the queue as it is, or declare it if it is missing; `durable` asks for a durable one.

        Raises:
            BrokerLost.
        """
        ...

    def consume(self, queue: str, window: int) -> AbstractAsyncContextManager[Consumer]:
        """Take a place in the line of `queue`. Leaving gives back whatever is not acknowledged."""
        ...

    async def publish(
        self, queue: str, body: bytes, headers: Mapping[str, Any] | None = None
    ) -> Confirmation:
        """Hand a message to the broker; waits only while the broker takes none. It is safe when the confirmation says so.

        Raises:
            BrokerLost.
        """
        ...

    def acknowledge(self, delivery: Any) -> None:  # noqa: ANN401 - each implementation has deliveries of its own
        """Tell the broker that a delivery is settled. Without effect where its connection is gone."""
        ...

    def give_back(self, delivery: Any) -> None:  # noqa: ANN401
        """Return a delivery to its queue. Without effect where its connection is gone."""
        ...

    async def flush(self) -> None:
        """Return when all that was said so far has left this process.

        Raises:
            BrokerLost.
        """
        ...
