"""A place in the line of a queue over one AMQP channel, and what its errors mean."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from iterum_sidecar import amqp
from iterum_sidecar.brokers.port import BrokerLost, BrokerRefused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from iterum_sidecar.brokers.amqp import AmqpBroker

__all__ = ["AmqpConsumer", "lost_by"]

#: Seconds that a few calls together may take; one alone has 30 s in the AMQP client.
CALLS_DEADLINE = 40.0


def lost_by(error: amqp.AmqpError, doing: str) -> BrokerLost:
    """Return the port's error for one of the client's."""
    stands = isinstance(error, amqp.ChannelClosed | amqp.ConsumerCancelled | amqp.ChannelsExhausted)
    return (BrokerRefused if stands else BrokerLost)(f"{doing}: {error}")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let a few calls come to their end although the caller is cancelled.

    A call that is cancelled in its middle costs its channel (nobody knows whose the next answer is), and with it the
    acknowledgements of everything that is in work.
    """
    try:
        with trio.fail_after(CALLS_DEADLINE, shield=True):
            yield
    except trio.TooSlowError:
        raise BrokerLost(f"the broker did not answer within {CALLS_DEADLINE:.0f} s") from None


class AmqpConsumer:
    """A place in the line of one queue; `brokers.port.Consumer`. The window grows by further consumers on one channel."""

    def __init__(self, broker: AmqpBroker, queue: str, window: int, nursery: trio.Nursery) -> None:
        self._broker = broker
        self._queue = queue
        self._windows = [window]
        self._nursery = nursery
        self._arrived: list[amqp.Delivery] = []
        self._wakeup = trio.Event()
        self._consumers: list[amqp.Consumer] = []
        self._consumers_ended: list[trio.Event] = []
        self._channel: amqp.Channel | None = None
        self._leave = trio.Event()
        self._left = trio.Event()

    async def open(self) -> None:
        """Open the channel, without taking a place in the line."""
        await self._nursery.start(self._run_channel)

    async def receive(self) -> Sequence[amqp.Delivery]:
        """Return what has been delivered since the last call, at least one."""
        if self._arrived:
            await trio.lowlevel.checkpoint()
        while not self._arrived:
            self._wakeup = trio.Event()
            await self._wakeup.wait()
        arrived, self._arrived = self._arrived, []
        return arrived

    async def grow(self, increment: int) -> None:
        """Add a consumer with the increment: a cancel and a new consume would count what is in flight on top."""
        with _uninterrupted():
            await self._nursery.start(self._run_consumer, increment)
            self._windows.append(increment)

    async def hold(self, count: int) -> None:
        """Nothing: the broker gives out the whole window."""

    async def stop(self) -> Sequence[amqp.Delivery]:
        """Take no more; returns what had arrived and was not received."""
        consumers, self._consumers = self._consumers, []
        ended, self._consumers_ended = self._consumers_ended, []
        try:
            with _uninterrupted():
                for consumer in consumers:
                    await consumer.cancel()
                for event in ended:
                    await event.wait()
        except amqp.AmqpError as error:
            raise lost_by(error, f"leaving the line of {self._queue}") from error
        arrived, self._arrived = self._arrived, []
        return arrived

    async def reopen(self) -> int:
        """Close the channel, which settles what was acknowledged and puts back what was not, and count on another."""
        with _uninterrupted():
            await self.stop()
            await self._broker.let_settle()
            self._leave.set()
            await self._left.wait()
            waiting = await self.waiting()
            self._leave, self._left = trio.Event(), trio.Event()
            await self.open()
            return waiting

    async def resume(self) -> None:
        """Take a place in the line again, with the window as it had grown."""
        with _uninterrupted():
            for window in self._windows:
                await self._nursery.start(self._run_consumer, window)

    async def waiting(self) -> int:
        """Return how many messages are ready in the queue."""
        return await self._broker.look(self._queue)

    def may_get_back(self) -> bool:
        """Never: what came over this connection is all that it knows of."""
        return False

    async def _run_channel(self, task_status: trio.TaskStatus[None]) -> None:
        left = self._left
        try:
            async with self._broker.connection.open_channel() as channel:
                self._channel = channel
                self._broker.channels[channel.identity] = channel
                try:
                    task_status.started()
                    await self._leave.wait()
                finally:
                    del self._broker.channels[channel.identity]
        except amqp.AmqpError as error:
            raise lost_by(error, f"consuming {self._queue}") from error
        finally:
            # However it has ended: who waits for that is not to be interrupted, and would wait for its whole deadline.
            left.set()

    async def _run_consumer(self, window: int, task_status: trio.TaskStatus[None]) -> None:
        if self._channel is None:
            raise AssertionError("the channel is not open")
        ended = trio.Event()
        try:
            async with self._channel.consume(self._queue, prefetch=window) as consumer:
                self._consumers.append(consumer)
                self._consumers_ended.append(ended)
                task_status.started()
                while True:
                    batch = await consumer.receive_batch()
                    self._arrived.extend(batch)
                    self._wakeup.set()
        except trio.EndOfChannel:
            pass
        except amqp.AmqpError as error:
            raise lost_by(error, f"consuming {self._queue}") from error
        finally:
            ended.set()  # as above
