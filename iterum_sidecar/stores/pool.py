"""A bounded pool of keep-alive connections to one server."""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING, Final, final

import trio

from .deadline_watch import DeadlineWatch
from .http1 import Connection
from .transport import ConnectionLost, Deadlines, StepTimeout, connect

if TYPE_CHECKING:
    import ssl

    from .http1 import Answer, Request

__all__ = ["DEFAULT_SIZE", "Pool"]

# The window of fragments starts at 32, and each has one request under way at a time. More would
# only queue in the server: with 4 KiB objects, 8 connections already keep a core of ours busy, and
# 32 hide a round trip of 6 ms at that rate. It also bounds our descriptors and buffers (8 MiB).
DEFAULT_SIZE: Final = 32

# Middle boxes forget a connection without telling either end (AWS's NAT gateway and network load
# balancer after 350 s, common proxies after 60 s). A request on such a connection is not answered
# with a reset but with silence, up to the deadline of the answer, so older ones are not used.
IDLE_SECONDS: Final = 50.0


@final
class Pool:
    """Opens connections as they are needed, at most `size`, and keeps them for the next request.

    Where a process may have few descriptors, the pool takes no more than a quarter of them.

    Waiting requests are served in the order in which they came. The connection used last is used
    first, so that a quiet store is left with few warm connections and the others grow old. There is
    no background task: what died meanwhile is noticed, closed and replaced when its turn comes.
    """

    def __init__(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext | None = None,
        *,
        server_name: str = "",
        size: int = DEFAULT_SIZE,
        deadlines: Deadlines | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"a pool needs at least one connection, not {size}")
        size = min(size, _most_connections())
        self._host = host
        self._port = port
        self._context = context
        self._server_name = server_name
        self._deadlines = deadlines or Deadlines()
        self.watch = DeadlineWatch()
        """Ends what waits for an answer for too long. It need not be kept, but costs less than what stands in for it."""
        self._places = trio.Semaphore(size, max_value=size)
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._closed = False

    def __repr__(self) -> str:
        return (
            f"<Pool of {self._host}:{self._port}, {len(self._busy)} busy, {len(self._idle)} idle>"
        )

    @property
    def idle(self) -> int:
        """How many connections are open and unused."""
        return len(self._idle)

    @property
    def busy(self) -> int:
        """How many connections carry a request at this moment."""
        return len(self._busy)

    async def exchange(self, request: Request) -> Answer:
        """Send `request` over some connection and return its answer.

        A kept connection may have been closed by the server just as the request went out. When not
        a byte of an answer came back, the request is sent again, once, over a new connection: the
        store may have carried it out, and each of our requests may be carried out twice.

        Raises:
            TransportError: one of its kinds.
            FileEnded, OSError: as `Connection.exchange`.
        """
        # Semaphores hand a place straight to whoever waits longest, so this overtakes nobody; and
        # it saves `acquire`'s turn in the scheduler when nobody waits.
        try:
            self._places.acquire_nowait()
        except trio.WouldBlock:
            await self._places.acquire()
        try:
            connection = self._take_idle()
            if connection is not None:
                try:
                    return await self._exchange_on(connection, request)
                except ConnectionLost:
                    if connection.answer_begun:
                        raise
                # Whatever ended this one has most likely ended the others too.
                self._drop_idle()
            return await self._exchange_on(await self._open(), request)
        finally:
            self._places.release()

    def close(self) -> None:
        """Close all connections, at once and without a goodbye; requests under way fail."""
        self._closed = True
        self._drop_idle()
        for connection in self._busy:
            connection.close()

    async def _exchange_on(self, connection: Connection, request: Request) -> Answer:
        self._busy.add(connection)
        try:
            return await connection.exchange(request)
        except StepTimeout:
            # Whoever keeps silent on one kept connection will most likely do so on the others.
            self._drop_idle()
            raise
        finally:
            self._busy.discard(connection)
            if connection.reusable and not self._closed:
                connection.idle_since = trio.current_time()
                self._idle.append(connection)
            else:
                connection.close()

    async def _open(self) -> Connection:
        if self._closed:
            raise trio.ClosedResourceError("the pool was closed")
        transport = await connect(
            self._host, self._port, self._context, self._deadlines, self._server_name
        )
        return Connection(transport, self._deadlines, self.watch)

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if trio.current_time() - connection.idle_since > IDLE_SECONDS:
                # Those below have been idle for even longer.
                connection.close()
                self._drop_idle()
            elif connection.is_fresh():
                return connection
            else:
                connection.close()
        return None

    def _drop_idle(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()


def _most_connections() -> int:
    # The hard limit: the soft one may be raised to it later.
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if allowed == resource.RLIM_INFINITY else max(1, allowed // 4)
