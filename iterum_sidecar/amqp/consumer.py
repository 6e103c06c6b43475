"""The receiving end of one basic.consume."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Self, final

import trio
from trio.lowlevel import ParkingLot

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from iterum_sidecar.amqp.deliveries import Delivery
    from iterum_sidecar.amqp.errors import AmqpError

# Deliveries taken without waiting between two checkpoints: a backlog must starve neither other tasks nor
# cancellation, and a checkpoint costs as much as several deliveries.
CHECKPOINT_EVERY = 64


@final
class Consumer:
    """Deliveries from one queue, by `async for`, one at a time without waiting, or in batches.

    Several tasks may receive from one consumer; each delivery goes to one of them. The number of deliveries that
    wait here is bounded by the prefetch, and by nothing else.
    """

    def __init__(self, tag: str, queue: str, cancel: Callable[[Consumer], Awaitable[None]]) -> None:
        self._tag = tag
        self._queue = queue
        self._cancel = cancel
        self._ready: deque[Delivery] = deque()
        self._receivers = ParkingLot()
        self._ended = False
        self._error: AmqpError | None = None
        self._until_checkpoint = CHECKPOINT_EVERY

    def __repr__(self) -> str:
        state = "ended" if self._ended else "consuming"
        return f"<Consumer of {self._queue!r}, {state}, {len(self._ready)} deliveries ready>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        """Return the next delivery; the iteration ends once the consumer was cancelled and all are taken.

        Not every call is a checkpoint: there is one in each 64 deliveries at least. Raises ConsumerCancelled when
        the broker ended it, after the deliveries that had come, and ChannelClosed or ConnectionLost at once.
        """
        self._until_checkpoint -= 1
        if not self._until_checkpoint:
            self._until_checkpoint = CHECKPOINT_EVERY
            await trio.lowlevel.checkpoint()
        while not self._ready:
            if self._ended:
                self._raise_error()
                raise StopAsyncIteration
            self._until_checkpoint = CHECKPOINT_EVERY
            await self._receivers.park()
        return self._ready.popleft()

    def receive_nowait(self) -> Delivery:
        """Return the next delivery that is there.

        Raises trio.WouldBlock when none is, trio.EndOfChannel after a cancel, and what the iteration raises.
        """
        if self._ready:
            return self._ready.popleft()
        if not self._ended:
            raise trio.WouldBlock
        self._raise_error()
        raise trio.EndOfChannel

    async def receive_batch(self) -> list[Delivery]:
        """Return every delivery that is there, at least one, in order; wait for one if need be.

        Always a checkpoint. Raises trio.EndOfChannel after a cancel, and what the iteration raises.
        """
        if self._ready or self._ended:
            await trio.lowlevel.checkpoint()
        while not self._ready:
            if self._ended:
                self._raise_error()
                raise trio.EndOfChannel
            await self._receivers.park()
        batch = list(self._ready)
        self._ready.clear()
        return batch

    async def cancel(self) -> None:
        """Ask the broker for no more; what had come before its answer can still be received.

        Does nothing when the consumer has ended. Raises ReplyTimeout, ChannelClosed or ConnectionLost.
        """
        await self._cancel(self)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error.again()

    def _put(self, delivery: Delivery) -> None:
        self._ready.append(delivery)
        if self._receivers:
            self._receivers.unpark()

    def _end(self, error: AmqpError | None, discard: bool = False) -> None:
        if self._ended:
            return
        self._ended = True
        self._error = error
        if discard:
            self._ready.clear()
        self._receivers.unpark_all()
