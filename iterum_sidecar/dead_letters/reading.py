"""Going once through everything in a queue, in its order, and leaving what is not acknowledged where it was.

The letters are held on one channel for each thousand of them, one after the other. A broker looks for a delivery among all that are
unacknowledged on its channel, so that 30,000 acknowledgements on a channel of 100,000 took it minutes, and those that it had not come
to when the connection ended were lost (RabbitMQ 3.10.8, seen).

A classic queue puts what comes back where it was. A quorum queue puts it before all that it has, behind what came back before, and
keeps in order only what one closed channel had held. So the channels are closed one after the other, each when what the one before
had held is back. And an acknowledgement waits until its channel has got all that it is to have: it makes room for more, and what is
on its way when the consumer is cancelled comes later than what is behind it.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from iterum_sidecar import amqp
from iterum_sidecar.amqp.properties import NO_PROPERTIES
from iterum_sidecar.dead_letters.connecting import as_a_loss, count_ready
from iterum_sidecar.exit_codes import ServiceLost

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

__all__ = ["IN_DOUBT", "SHARE", "Reading", "open_reading", "without_body"]

#: Letters that one channel holds, unless that makes more channels than a connection should have; a broker allows 2,047 by default.
SHARE: Final = 1024
_MOST_SHARES: Final = 1000
#: What is said of letters (`{}`) whose acknowledgement the broker may not have heard.
IN_DOUBT: Final = (
    "{} may be dead letters still: the broker did not say that it had heard of them; look again"
)
#: Seconds without a message after which the queue is looked at: others may have taken what was counted.
_QUIET: Final = 1.0
#: Seconds for what one channel held to be back, and between two looks whether it is. Others may take it at once, so that it never is.
_COMING_BACK: Final = 1.0
_LOOK_EVERY: Final = 0.02


@dataclass(slots=True, eq=False)
class _Share:
    """A channel with the letters that came on it; `held` counts those that stay its own."""

    stack: AsyncExitStack
    channel: amqp.Channel
    consumer: amqp.Consumer
    held: int = 0
    is_whole: bool = False
    """Whether nothing more comes on it."""
    waiting: list[amqp.Delivery] = field(default_factory=list)
    """What is to be acknowledged when it is whole."""
    unheard: int = 0
    """Acknowledgements of which the broker has not said that it has heard them."""


class Reading:
    """Everything that was in `queue` at the start, by `letters`. `count` is how many those were. Use `open_reading`."""

    def __init__(self, connection: amqp.Connection, queue: str, count: int, seconds: float) -> None:
        self.connection = connection
        self.queue = queue
        self.count = count
        self.given = 0
        """How many have been looked at."""
        self._seconds = seconds
        self._shares: list[_Share] = []
        self._share_of: dict[int, _Share] = {}
        """By the identity of its channel."""

    async def letters(self) -> AsyncGenerator[amqp.Delivery, None]:
        """Yield each message once, the oldest first; fewer than were counted where others take some meanwhile.

        Raises:
            ServiceLost: the broker gives none for `seconds`, though there are some.
        """
        is_exhausted = False
        while self.given < self.count and not is_exhausted:
            size = min(max(SHARE, self.count // _MOST_SHARES), self.count - self.given)
            share = await self._open(size)
            taken = 0
            while taken < size and not is_exhausted:
                batch = await self._next(share.consumer)
                is_exhausted = not batch
                taken += len(batch)
                share.held += len(batch)
                for delivery in batch:
                    if self._counts():
                        yield delivery
            await self._make_whole(share)

    def _counts(self) -> bool:
        """Count one more, and tell whether it was there at the start; what has come since is left alone."""
        if self.given == self.count:
            return False
        self.given += 1
        return True

    async def _open(self, size: int) -> _Share:
        async with AsyncExitStack() as opening:
            channel = await opening.enter_async_context(self.connection.open_channel())
            consumer = await opening.enter_async_context(channel.consume(self.queue, prefetch=size))
            share = _Share(opening.pop_all(), channel, consumer)
        self._shares.append(share)
        self._share_of[channel.identity] = share
        return share

    async def _next(self, consumer: amqp.Consumer) -> list[amqp.Delivery]:
        """Return what has come, or nothing where nothing is left in the queue."""
        patience = trio.current_time() + self._seconds
        while True:
            with trio.move_on_after(_QUIET):
                return await consumer.receive_batch()
            if not await count_ready(self.connection, self.queue):
                return []
            if trio.current_time() > patience:
                raise ServiceLost(
                    f"{self.queue} has messages and gave none within {self._seconds:g} s; another program may have it for itself"
                    " (rabbitmqctl list_consumers), or the broker is overloaded"
                )

    def acknowledge(self, delivery: amqp.Delivery) -> None:
        """Take one letter out of the queue, soon; `unheard` counts it until the broker is known to have heard of it."""
        share = self._share_of[delivery.channel_identity]
        share.held -= 1
        share.unheard += 1
        if share.is_whole:
            share.channel.acknowledge(delivery)
        else:
            share.waiting.append(without_body(delivery))

    @property
    def unheard(self) -> int:
        """How many letters were acknowledged, and may be in the queue all the same."""
        return sum(share.unheard for share in self._shares)

    async def _make_whole(self, share: _Share) -> None:
        if share.is_whole:
            return
        await share.consumer.cancel()
        # What nobody received would be given back by itself, before what was received.
        async for _ in share.consumer:
            share.held += 1
        share.is_whole = True
        share.channel.acknowledge_many(share.waiting)
        share.waiting.clear()

    @property
    def patience(self) -> float:
        """The most seconds that leaving may take, by a broker that answers each time at the last moment."""
        return self._seconds * (2 * len(self._shares) + 1)

    async def leave(self) -> None:
        """See that the broker has heard of all that was acknowledged, and give back everything else, in its order.

        A broker that gives no answer gets everything back with the connection.
        """
        if not self._shares:
            return
        with suppress(amqp.AmqpError):
            async with self.connection.open_channel() as channel:
                for share in self._shares:
                    with trio.move_on_after(self._seconds) as scope:
                        await self._see_to_acknowledgements(share)
                    if scope.cancelled_caught:
                        return
                for share in self._shares:
                    with trio.move_on_after(self._seconds) as scope:
                        await self._give_back(share, channel)
                    if scope.cancelled_caught:
                        return

    async def _see_to_acknowledgements(self, share: _Share) -> None:
        with suppress(amqp.ChannelClosed):
            await self._make_whole(share)
            # Answered when all before it has been seen to.
            await share.channel.declare_queue(self.queue, passive=True)
            share.unheard = 0

    async def _give_back(self, share: _Share, channel: amqp.Channel) -> None:
        """Close a channel, and wait until what it held is in the queue, before the next one's; `channel` is another."""
        waits = share.held > 0 and share is not self._shares[-1]
        before = await self._look(channel) if waits else 0
        with suppress(amqp.ChannelClosed):
            await share.stack.aclose()
        until = trio.current_time() + _COMING_BACK
        while waits and await self._look(channel) < before + share.held:
            await trio.sleep(_LOOK_EVERY)
            waits = trio.current_time() < until

    async def _look(self, channel: amqp.Channel) -> int:
        return (await channel.declare_queue(self.queue, passive=True)).messages


@asynccontextmanager
async def open_reading(
    connection: amqp.Connection, queue: str, count: int, seconds: float
) -> AsyncIterator[Reading]:
    """Hold the first `count` messages of a queue for the duration of the context; each may be `seconds` on its way.

    Raises:
        ServiceLost: the queue or the broker was lost, or there is no way to read.
    """
    reading = Reading(connection, queue, count, seconds)
    try:
        yield reading
    except amqp.AmqpError as error:
        raise as_a_loss(error) from None
    finally:
        with trio.move_on_after(reading.patience, shield=True):
            await reading.leave()


def without_body(delivery: amqp.Delivery) -> amqp.Delivery:
    """Return as much of a delivery as an acknowledgement needs."""
    return amqp.Delivery(
        b"",
        NO_PROPERTIES,
        delivery.delivery_tag,
        delivery.redelivered,
        delivery.exchange,
        delivery.routing_key,
        delivery.epoch,
        delivery.channel_identity,
    )
