"""A place in the line of a queue that can be taken again when it is lost: the consumer of a broker that connects again."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from iterum_sidecar.brokers.port import BrokerLost, BrokerRefused, LineLost
from iterum_sidecar.error_groups import leaves_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from iterum_sidecar.brokers.port import Broker, Consumer
    from iterum_sidecar.brokers.reconnecting import ReconnectingBroker

__all__ = ["ReconnectingConsumer"]

T = TypeVar("T")

#: A line that was lost within so many seconds was no success: the next place in it is taken with a growing delay.
STEADY_AFTER = 5.0
FIRST_DELAY = 0.1
LONGEST_DELAY = 4.0


class _Line:
    """One place in the line of a queue, over one connection, as long as it lasts."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self.consuming = True
        self.since = trio.current_time()
        self.loss: LineLost | None = None
        self.left = trio.Event()
        self._calls: set[trio.CancelScope] = set()

    def lose(self, reason: str, *, refused: bool) -> LineLost:
        """End it: every call that waits for it ends too. Returns why, as it was told first."""
        if self.loss is None:
            self.loss = LineLost(reason, refused=refused)
            self.left.set()
            for call in self._calls:
                call.cancel("the place in the line is lost")
        return self.loss

    async def during(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call that is worth something only while the line lasts.

        Raises:
            LineLost.
        """
        if self.loss is None:
            scope = trio.CancelScope()
            self._calls.add(scope)
            try:
                with scope:
                    return await call()
            except BrokerLost as error:
                self.lose(str(error), refused=isinstance(error, BrokerRefused))
            finally:
                self._calls.discard(scope)
        loss = self.lose("it was left", refused=False)
        raise LineLost(str(loss), refused=loss.refused)


class ReconnectingConsumer:
    """A place in the line of one queue that can be taken again; `brokers.port.Consumer`."""

    def __init__(
        self, broker: ReconnectingBroker, queue: str, window: int, nursery: trio.Nursery
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._window = window
        self._nursery = nursery
        self._line: _Line | None = None
        self._taking = trio.Lock()
        self._delay = FIRST_DELAY

    async def receive(self) -> Sequence[Any]:
        """Return what has been delivered since the last call, at least one."""
        if self._line is None:
            raise AssertionError("`resume` comes first")
        return await self._line.during(self._line.consumer.receive)

    async def grow(self, increment: int) -> None:
        """Allow `increment` more messages to be unacknowledged, in this place in the line and in later ones."""
        self._window += increment
        await self._if_in_line(lambda consumer: consumer.grow(increment))

    async def hold(self, count: int) -> None:
        """Pass it on."""
        await self._if_in_line(lambda consumer: consumer.hold(count))

    async def stop(self) -> Sequence[Any]:
        """Take no more; returns what had arrived and was not received, or nothing where it is back in the queue already."""
        line = self._line
        if line is None:
            return ()
        line.consuming = False
        try:
            return await line.during(line.consumer.stop)
        except LineLost:
            return ()

    async def reopen(self) -> int:
        """Leave the line and look. Where the line is lost, nothing is owed to it."""
        line = self._line
        if line is not None:
            line.consuming = False
            try:
                return await line.during(line.consumer.reopen)
            except LineLost:
                pass
        return await self.waiting()

    async def resume(self) -> None:
        """Take a place in the line, on the next connection if there is none now."""
        async with self._taking:
            line = self._line
            if line is not None and line.loss is None:
                if line.consuming:
                    return
                try:
                    await line.during(line.consumer.resume)
                    line.consuming = True
                    return
                except LineLost:
                    pass
            if line is not None:
                await self._pause_after(line)
            self._line = await self._take_place(afresh=line is not None)

    async def waiting(self) -> int:
        """Return how many messages wait in the queue."""
        return await self._broker.look(self._queue)

    def may_get_back(self) -> bool:
        """Whether the broker may still hold what came over a connection that is gone."""
        return trio.current_time() < self._broker.noticed_at

    async def _if_in_line(self, call: Callable[[Consumer], Awaitable[None]]) -> None:
        line = self._line
        if line is not None:
            with suppress(LineLost):  # the next place is taken with the whole window
                await line.during(lambda: call(line.consumer))

    async def _pause_after(self, line: _Line) -> None:
        """Wait a while where places are lost as soon as they are taken, though the broker is there."""
        if trio.current_time() - line.since >= STEADY_AFTER:
            self._delay = FIRST_DELAY
            return
        await trio.sleep(self._delay)
        self._delay = min(self._delay * 2, LONGEST_DELAY)

    async def _take_place(self, *, afresh: bool) -> _Line:
        broker = self._broker
        while True:
            connection = await broker.present()
            try:
                if afresh:
                    # It may be gone: a broker that was started again has forgotten a queue that is not durable.
                    await connection.ensure_queue(self._queue)
                line: _Line = await self._nursery.start(self._stand, connection)
            except BrokerRefused as error:
                await broker.refusals.wait(str(error))
            except BrokerLost as error:
                broker.drop(connection, str(error))
            else:
                broker.refusals.over()
                return line

    async def _stand(self, connection: Broker, task_status: trio.TaskStatus[_Line]) -> None:
        """Stand in the line until it is lost."""
        line: _Line | None = None
        lost: list[BrokerLost] = []
        try:
            async with connection.consume(self._queue, self._window) as consumer:
                line = _Line(consumer)
                task_status.started(line)
                await line.left.wait()
        except* BrokerLost as group:
            lost = leaves_of(group, BrokerLost)
        # Where both are told, the channel is gone because the connection is.
        gone = next((each for each in lost if not isinstance(each, BrokerRefused)), None)
        why = gone or (lost[0] if lost else None)
        if line is not None:
            line.lose(str(why or "it was left"), refused=gone is None)
        elif why is not None:
            raise why
