"""What the sidecar asks of a message broker, whichever one is behind it.

`brokers.amqp` speaks to a real one over one connection; `brokers.reconnecting` makes of one connection after another a
broker that goes away and comes back; `brokers.memory` keeps queues in this process and serves local runs and
deterministic tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from iterum_sidecar.exit_codes import ServiceLost

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

__all__ = [
    "Broker",
    "BrokerLost",
    "BrokerRefused",
    "Confirmation",
    "Consumer",
    "Delivery",
    "LineLost",
    "MessageTooLarge",
    "MessageUnroutable",
]


class BrokerLost(ServiceLost):
    """The connection to the broker is gone. One that connects again (`brokers.reconnecting`) waits instead of raising it."""

    ended_by_broker = False
    """Whether the broker ended it, and so has given back what was not acknowledged."""


class BrokerRefused(BrokerLost):
    """The broker took away what was being used of a connection, which itself stands: a channel or a consumer."""


class LineLost(Exception):
    """The place in the line of a queue is lost. What came by it and is not acknowledged comes again, to whoever is in the line.

    `refused` tells whether the broker took it away, or else the whole connection is gone.
    """

    def __init__(self, reason: str, *, refused: bool) -> None:
        super().__init__(reason)
        self.refused = refused


class MessageUnroutable(Exception):
    """A message could not be put on its queue: the broker returned it or would not take it."""


class MessageTooLarge(Exception):
    """The broker takes no message of this size, on whatever queue."""


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
            MessageTooLarge.
            BrokerLost: the connection went first; the message may or may not be there.
        """
        ...


class Consumer(Protocol):
    """A place in the line of one queue, with a window of messages that may be unacknowledged."""

    async def receive(self) -> Sequence[Any]:
        """Return what has been delivered since the last call; at least one delivery, waiting for it if need be.

        Raises:
            LineLost: `resume` takes a new place in the line.
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
        """Take a place in the line again after `stop`, `reopen` or a LineLost; waits for a broker that is away."""
        ...

    def may_get_back(self) -> bool:
        """Whether the broker may hold what came over a connection that is gone, not having noticed yet that it is."""
        ...

    async def waiting(self) -> int:
        """Return how many messages wait in the queue, those delivered and unacknowledged not counted."""
        ...


class Broker(Protocol):
    """Queues: consuming, publishing with confirms, acknowledging."""

    def trouble(self) -> str:
        """Return why nothing can be had of the broker, or be put there, at the moment; empty when all is well."""
        ...

    async def ensure_queue(self, queue: str, *, durable: bool = False) -> None:
        """Use the queue as it is, or declare it if it is missing; `durable` asks for a durable one.

        Raises:
            BrokerLost.
        """
        ...

    async def look(self, queue: str) -> int:
        """Return how many messages wait in a queue, those delivered and unacknowledged not counted; 0 if there is no such queue.

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
