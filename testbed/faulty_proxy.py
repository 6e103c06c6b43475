"""A network that fails on command: a TCP proxy in a thread of its own, for AMQP and HTTP alike."""

from __future__ import annotations

import contextlib
import enum
import socket
import struct
import threading
from typing import TYPE_CHECKING, Final, Literal

import trio

from testbed.ports import LOCAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["FaultyProxy", "running_faulty_proxy"]

CHUNK: Final = 64 * 1024
COMMAND_SECONDS: Final = 10

# Without lingering, `close` sends a reset: the peer does not take it for a goodbye.
RESET: Final = struct.pack("ii", 1, 0)

Towards = Literal["client", "server"]


class _Way(enum.Enum):
    """What happens to bytes that come."""

    PASS = enum.auto()
    FREEZE = enum.auto()
    BLACKHOLE = enum.auto()


class _Pair:
    """One client's connection and the server's beside it."""

    def __init__(self, client: trio.socket.SocketType) -> None:
        self.client = client
        self.server: trio.socket.SocketType | None = None
        self.scope = trio.CancelScope()
        self.left: dict[Towards, float] = {"client": float("inf"), "server": float("inf")}
        self.lost_bytes = False

    def close(self) -> None:
        for end in (self.client, self.server):
            if end is not None:
                end.close()

    def reset(self) -> None:
        for end in (self.client, self.server):
            if end is not None and end.fileno() >= 0:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.close()
        self.scope.cancel("reset")


class FaultyProxy:
    """Passes connections on to a server until it is told otherwise. Use `running_faulty_proxy`.

    Each command is obeyed when its call returns, and holds until another one is given. It may be called
    from any thread, a Trio task's too.
    """

    def __init__(self, host: str, port: int, own_port: int = 0) -> None:
        self._target = (host, port)
        self._way = _Way.PASS
        self._pause = 0.0
        self._limits: dict[Towards, float] = {"client": float("inf"), "server": float("inf")}
        self._changed = trio.Event()
        self._pairs: set[_Pair] = set()
        self._listener: trio.socket.SocketType | None = None
        self._up = threading.Event()
        self._end = trio.Event()
        self.port = own_port
        self.accepted = 0
        """How many connections have been accepted since the beginning."""

    @property
    def endpoint(self) -> str:
        """Where it listens, as `host:port`; the same after `refuse` too."""
        return f"{LOCAL}:{self.port}"

    @property
    def open_connections(self) -> int:
        """How many clients are connected."""
        return len(self._pairs)

    def pass_on(self) -> None:
        """Pass everything on, as at the beginning. What was frozen flows on; what has lost bytes stays silent."""
        self._command(self._pass_on)

    def cut(self) -> None:
        """Reset all connections that there are, both ends; new ones fare as before."""
        self._command(self._cut)

    def refuse(self) -> None:
        """Close the port, so that connections are refused, and reset those that there are."""
        self._command(self._refuse)

    def freeze(self) -> None:
        """Accept connections and keep them, and hold what comes from either side until `pass_on`."""
        self._command(lambda: self._set_way(_Way.FREEZE))

    def blackhole(self) -> None:
        """Accept connections and keep them, and throw away whatever comes from either side."""
        self._command(lambda: self._set_way(_Way.BLACKHOLE))

    def delay(self, seconds: float) -> None:
        """Let every piece of at most 64 KiB wait for so long."""
        self._command(lambda: setattr(self, "_pause", seconds))

    def limit(self, count: int, towards: Towards = "client") -> None:
        """Reset each connection, of now and of later, when `count` more bytes have gone that way: in the middle of a body, for one."""
        self._command(lambda: self._limit(count, towards))

    def _command(self, obey: Callable[[], object]) -> None:
        obeyed = threading.Event()
        failures: list[Exception] = []

        def run() -> None:
            try:
                obey()
            except Exception as error:  # it is for the thread that waits
                failures.append(error)
            obeyed.set()

        self._token.run_sync_soon(run)
        if not obeyed.wait(COMMAND_SECONDS):
            raise TimeoutError("the proxy does not obey")
        if failures:
            raise failures[0]

    def _pass_on(self) -> None:
        self._pause = 0.0
        for towards in self._limits:
            self._limit(float("inf"), towards)
        self._set_way(_Way.PASS)
        self._listen()

    def _cut(self) -> None:
        for pair in self._pairs:
            pair.reset()

    def _refuse(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._cut()

    def _set_way(self, way: _Way) -> None:
        self._listen()
        self._way = way
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def _limit(self, count: float, towards: Towards) -> None:
        self._limits[towards] = count
        for pair in self._pairs:
            pair.left[towards] = count

    def _listen(self) -> None:
        if self._listener is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOCAL, self.port))
        listener.listen(128)
        self.port = int(listener.getsockname()[1])
        self._listener = trio.socket.from_stdlib_socket(listener)
        self._nursery.start_soon(self._accept, self._listener)

    async def serve(self) -> None:
        """Listen until the block of `running_faulty_proxy` ends."""
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._nursery:
            self._listen()
            self._up.set()
            await self._end.wait()
            self._refuse()
            self._nursery.cancel_scope.cancel("the block has ended")

    async def _accept(self, listener: trio.socket.SocketType) -> None:
        with contextlib.suppress(trio.ClosedResourceError, OSError):
            while True:
                client, _ = await listener.accept()
                self.accepted += 1
                self._nursery.start_soon(self._join, client)

    async def _join(self, client: trio.socket.SocketType) -> None:
        pair = _Pair(client)
        pair.left = dict(self._limits)
        self._pairs.add(pair)
        ended_well = False
        try:
            with pair.scope, contextlib.suppress(OSError, trio.ClosedResourceError):
                if await self._may_pass(pair):
                    pair.server = trio.socket.socket()
                    await pair.server.connect(self._target)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._pump, pair, client, pair.server, "server")
                        nursery.start_soon(self._pump, pair, pair.server, client, "client")
                    ended_well = True
                else:
                    await self._swallow(client)
        finally:
            self._pairs.discard(pair)
            if ended_well:
                pair.close()
            else:
                pair.reset()

    async def _pump(
        self,
        pair: _Pair,
        source: trio.socket.SocketType,
        sink: trio.socket.SocketType,
        towards: Towards,
    ) -> None:
        try:
            while data := await source.recv(CHUNK):
                await trio.sleep(self._pause)
                if not await self._may_pass(pair):
                    continue
                await self._send_all(sink, data[: int(min(len(data), pair.left[towards]))])
                pair.left[towards] -= len(data)
                if pair.left[towards] <= 0:
                    pair.reset()
                    return
            if await self._may_pass(pair):
                sink.shutdown(socket.SHUT_WR)
        except (OSError, trio.ClosedResourceError):
            pair.reset()

    async def _may_pass(self, pair: _Pair) -> bool:
        """Wait while all is frozen; then tell whether bytes pass on this connection, which they never do again once some were lost."""
        while self._way is _Way.FREEZE:
            await self._changed.wait()
        pair.lost_bytes |= self._way is _Way.BLACKHOLE
        return not pair.lost_bytes

    async def _send_all(self, sink: trio.socket.SocketType, data: bytes) -> None:
        with memoryview(data) as view:
            sent = 0
            while sent < len(data):
                sent += await sink.send(view[sent:])

    async def _swallow(self, source: trio.socket.SocketType) -> None:
        while await source.recv(CHUNK):
            pass


@contextlib.contextmanager
def running_faulty_proxy(endpoint: str, port: int = 0) -> Iterator[FaultyProxy]:
    """Run a proxy before the server at `endpoint` (`host:port`), on a port of its own.

    A `port` that the system gives to nobody else is for those who `refuse` often: it is free meanwhile.
    """
    host, _, target = endpoint.rpartition(":")
    proxy = FaultyProxy(host, int(target), port)
    thread = threading.Thread(target=trio.run, args=(proxy.serve,), daemon=True)
    thread.start()
    if not proxy._up.wait(COMMAND_SECONDS):
        raise TimeoutError("the proxy does not listen")
    try:
        yield proxy
    finally:
        proxy._command(proxy._end.set)
        thread.join()
