"""Queues in this process: the broker of a local run and of the deterministic tests.

It keeps the rules that the sidecar relies on in a real broker: a window for each consumer, nothing acknowledged twice, what is not
acknowledged when a consumer leaves goes back to the front of its queue, marked as redelivered.
"""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import trio

from iterum_sidecar.brokers.port import MessageUnroutable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

#: What a consumer of a shared queue holds at first: enough to have the next message ready, and no more, or it would sit on what
#: others could work on.
SHARED_ALLOWANCE = 3
#: Seconds from delivery to acknowledgement within which it is quick, and may hold twice as much: it will not sit on it for long.
QUICK = 0.5

__all__ = [
    "Backlog",
    "MemoryBroker",
    "MemoryConfirmation",
    "MemoryConsumer",
    "MemoryDelivery",
    "Message",
]


@dataclass(eq=False, slots=True)
class Message:
    """A message in a queue."""

    body: bytes
    headers: dict[str, Any]
    number: int
    """Its place in the order of publishing."""
    redelivered: bool = False


@dataclass(eq=False, slots=True)
class MemoryDelivery:
    """A message that a consumer holds."""

    message: Message
    consumer: MemoryConsumer
    taken_at: float = 0.0

    @property
    def body(self) -> bytes:
        """The message."""
        return self.message.body

    @property
    def headers(self) -> Mapping[str, Any]:
        """The message's headers."""
        return self.message.headers

    @property
    def redelivered(self) -> bool:
        """Whether the message has been delivered before."""
        return self.message.redelivered


class Backlog(Protocol):
    """The rest of a queue, which is kept elsewhere so that memory does not grow with it."""

    def __len__(self) -> int:
        """How many messages it has."""
        ...

    def take(self) -> Sequence[Message]:
        """Remove the oldest of them, a page at a time; at least one if there is any."""
        ...


@dataclass(eq=False, slots=True)
class _Queue:
    messages: deque[Message] = field(default_factory=deque)
    consumers: deque[MemoryConsumer] = field(default_factory=deque)
    backlog: Backlog | None = None
    shared: bool = False

    def waiting(self) -> int:
        """How many messages are not delivered."""
        return len(self.messages) + (0 if self.backlog is None else len(self.backlog))

    def has_messages(self) -> bool:
        """Whether there is a message, after taking a page of the backlog if need be."""
        if not self.messages and self.backlog is not None and len(self.backlog):
            self.messages.extend(self.backlog.take())
        return bool(self.messages)

    def put_back(self, message: Message) -> None:
        """Return a message to the place that it had."""
        place = 0
        for place, each in enumerate(self.messages):  # noqa: B007 - it is used after the loop
            if each.number > message.number:
                break
        else:
            place = len(self.messages)
        self.messages.insert(place, message)

    def deliver(self) -> None:
        """Give out what can be given out, in turn."""
        fruitless = 0
        while fruitless < len(self.consumers):
            consumer = self.consumers[0]
            if consumer.has_room():
                if not self.has_messages():
                    return
                consumer.take(self.messages.popleft())
                fruitless = 0
            else:
                fruitless += 1
            self.consumers.rotate(-1)


class MemoryConfirmation:
    """A promise that is kept, or broken, already: a message in memory is as safe as it will be."""

    __slots__ = ("_missing_queue",)

    def __init__(self, missing_queue: str | None = None) -> None:
        self._missing_queue = missing_queue

    async def wait(self) -> None:
        """Return at once, after a checkpoint.

        Raises:
            MessageUnroutable: there is no such queue.
        """
        await trio.lowlevel.checkpoint()
        if self._missing_queue is not None:
            raise MessageUnroutable(f"there is no queue {self._missing_queue!r}")


class MemoryConsumer:
    """A place in the line of one queue; `brokers.port.Consumer`."""

    def __init__(self, queue: _Queue, window: int) -> None:
        self._queue = queue
        self._window = window
        self._allowance = SHARED_ALLOWANCE if queue.shared else window
        self._arrived: list[MemoryDelivery] = []
        self._unsettled: dict[MemoryDelivery, None] = {}
        self._wakeup = trio.Event()

    def has_room(self) -> bool:
        """Whether the window allows one more."""
        return len(self._unsettled) < min(self._window, self._allowance)

    def take(self, message: Message) -> None:
        """A message is delivered."""
        delivery = MemoryDelivery(message, self, trio.current_time())
        self._unsettled[delivery] = None
        self._arrived.append(delivery)
        self._wakeup.set()

    @property
    def unsettled(self) -> int:
        """How many deliveries are owed."""
        return len(self._unsettled)

    def settle(self, delivery: MemoryDelivery) -> bool:
        """A delivery is not owed any more; False if it was not owed."""
        if delivery not in self._unsettled:
            return False
        del self._unsettled[delivery]
        if self._allowance < self._window and trio.current_time() - delivery.taken_at < QUICK:
            self._allowance *= 2
        return True

    def deliver(self) -> None:
        """Let the queue give out what there is room for now."""
        self._queue.deliver()

    def put_back(self, delivery: MemoryDelivery) -> None:
        """Return an unsettled delivery to the front of its queue."""
        if self.settle(delivery):
            delivery.message.redelivered = True
            self._queue.put_back(delivery.message)

    async def receive(self) -> list[MemoryDelivery]:
        """Return what has been delivered since the last call, at least one."""
        if self._arrived:
            await trio.lowlevel.checkpoint()
        while not self._arrived:
            self._wakeup = trio.Event()
            await self._wakeup.wait()
        arrived, self._arrived = self._arrived, []
        return arrived

    async def grow(self, increment: int) -> None:
        """Allow `increment` more messages to be unacknowledged."""
        self._window += increment
        self._allowance = self._window
        self._queue.deliver()
        await trio.lowlevel.checkpoint()

    async def hold(self, count: int) -> None:
        """Be given so many of a shared queue at least, slow or not."""
        self._allowance = max(self._allowance, count)
        self._queue.deliver()
        await trio.lowlevel.checkpoint()

    async def stop(self) -> list[MemoryDelivery]:
        """Take no more; returns what had arrived and was not received."""
        self._leave()
        arrived, self._arrived = self._arrived, []
        await trio.lowlevel.checkpoint()
        return arrived

    async def reopen(self) -> int:
        """Leave the line, put back what is owed, and count what waits."""
        self.close()
        await trio.lowlevel.checkpoint()
        return self._queue.waiting()

    async def resume(self) -> None:
        """Take a place in the line again."""
        if self not in self._queue.consumers:
            self._queue.consumers.append(self)
        self._queue.deliver()
        await trio.lowlevel.checkpoint()

    async def waiting(self) -> int:
        """Return how many messages wait in the queue."""
        await trio.lowlevel.checkpoint()
        return self._queue.waiting()

    def may_get_back(self) -> bool:
        """Never: nothing is lost on its way."""
        return False

    def close(self) -> None:
        """Leave the line and put everything back that is owed, oldest first in line."""
        self._leave()
        for delivery in reversed(list(self._unsettled)):
            self.put_back(delivery)
        self._arrived.clear()
        self._queue.deliver()

    def _leave(self) -> None:
        if self in self._queue.consumers:
            self._queue.consumers.remove(self)


class MemoryBroker:
    """All queues of one run; `brokers.port.Broker`."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._numbers = count()

    def messages(self, queue: str) -> list[Message]:
        """Return the messages that wait in a queue, oldest first, without taking them."""
        return list(self._queue(queue).messages)

    def back(self, queue: str, backlog: Backlog) -> None:
        """Let a queue go on with `backlog` where its messages in memory end."""
        self._queue(queue).backlog = backlog

    def share(self, queue: str) -> None:
        """Let consumers of a queue that are slow hold little, so that its messages are shared evenly among them."""
        self._queue(queue).shared = True

    def waiting(self, queue: str) -> int:
        """Return how many messages of a queue are not delivered."""
        return self._queue(queue).waiting()

    def in_work(self, queue: str) -> int:
        """Return how many messages of a queue are delivered and not settled, to consumers that are in its line."""
        return sum(consumer.unsettled for consumer in self._queue(queue).consumers)

    def trouble(self) -> str:
        """Return nothing: it is always there."""
        return ""

    async def look(self, queue: str) -> int:
        """Return how many messages of a queue are not delivered, after a checkpoint."""
        await trio.lowlevel.checkpoint()
        return self._queue(queue).waiting()

    async def ensure_queue(self, queue: str, *, durable: bool = False) -> None:
        """Make the queue if it is not there; one in memory is never durable."""
        self._queue(queue)
        await trio.lowlevel.checkpoint()

    @asynccontextmanager
    async def consume(self, queue: str, window: int) -> AsyncIterator[MemoryConsumer]:
        """Take a place in the line of `queue`."""
        consumer = MemoryConsumer(self._queue(queue), window)
        try:
            await consumer.resume()
            yield consumer
        finally:
            consumer.close()

    async def publish(
        self, queue: str, body: bytes, headers: Mapping[str, Any] | None = None
    ) -> MemoryConfirmation:
        """Put a message on a queue; the confirmation tells whether there is one of that name."""
        await trio.lowlevel.checkpoint()
        if queue not in self._queues:
            return MemoryConfirmation(queue)
        self.put(queue, body, headers)
        return MemoryConfirmation()

    def put(self, queue: str, body: bytes, headers: Mapping[str, Any] | None = None) -> None:
        """Put a message on a queue, making the queue if need be."""
        self.put_numbered(queue, Message(body, dict(headers or {}), next(self._numbers)))

    def put_numbered(self, queue: str, message: Message) -> None:
        """Put a message on a queue that has its place in the order already."""
        target = self._queue(queue)
        target.messages.append(message)
        target.deliver()

    def deliver(self, queue: str) -> None:
        """Give out what there is room for, after the queue's backlog has grown."""
        self._queue(queue).deliver()

    def acknowledge(self, delivery: MemoryDelivery) -> None:
        """A delivery is settled."""
        delivery.consumer.settle(delivery)
        delivery.consumer.deliver()

    def give_back(self, delivery: MemoryDelivery) -> None:
        """Return a delivery to the front of its queue."""
        delivery.consumer.put_back(delivery)
        delivery.consumer.deliver()

    async def flush(self) -> None:
        """Nothing is ever on its way."""
        await trio.lowlevel.checkpoint()

    def _queue(self, name: str) -> _Queue:
        return self._queues.setdefault(name, _Queue())
