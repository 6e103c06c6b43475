"""A connection: the tasks that keep it alive, and the promise that nobody misses its end."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, final

import trio
from pamqp import commands

from iterum_sidecar.amqp import codec
from iterum_sidecar.amqp.channel import CLOSE_SECONDS, Channel
from iterum_sidecar.amqp.channel_state import ChannelState
from iterum_sidecar.amqp.errors import (
    AmqpError,
    ChannelsExhausted,
    ConnectError,
    ConnectionClosedByBroker,
    ConnectionLost,
    HandshakeTimeout,
    ProtocolViolation,
)
from iterum_sidecar.amqp.handshake import Agreement, Handshake
from iterum_sidecar.amqp.link import Link
from iterum_sidecar.amqp.methods import spec_name
from iterum_sidecar.amqp.socket_stream import READ_SIZE, SocketStream
from iterum_sidecar.amqp.transport import StreamFactory, open_stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from iterum_sidecar.amqp.parameters import ConnectionParameters

# Name resolution, TCP and TLS together; more than three retransmissions of a SYN help nobody.
CONNECT_SECONDS = 10.0

# The default between heartbeats, RabbitMQ's own.
HEARTBEAT_SECONDS = 60

# The most that RabbitMQ took by default before 4.0 (16 MiB since), so nothing that a broker holds is refused.
MAX_BODY_SIZE = 128 * 1024 * 1024

# Heartbeats are looked at twice in each interval; this many looks in a row without a byte are two missed.
SILENT_LOOKS = 4

# When sending fails, the broker's reason may still lie unread; the reader gets so long to find it.
LAST_WORDS_SECONDS = 1.0


@final
class Connection:
    """An open connection to a broker, from `open_connection`."""

    def __init__(
        self, stream: trio.abc.Stream, link: Link, agreement: Agreement, handshake: Handshake
    ) -> None:
        self._stream = stream
        self._link = link
        self._agreement = agreement
        self._reader = handshake.reader
        self._early_frames = handshake.frames
        self._server_properties = handshake.server_properties
        self._channels: dict[int, ChannelState] = {}
        self._owner = trio.CancelScope()
        # The tasks outlive a cancellation of the owner, who has yet to say goodbye; then this scope ends them.
        self._tasks = trio.CancelScope(shield=True)
        self._chunks_received = 0
        self._leaving = False
        self._answered = False
        self._closed = trio.Event()
        self._lost: ConnectionLost | None = None

    def __repr__(self) -> str:
        state = "open" if self._link.failure is None else str(self._link.failure)
        return f"<Connection {self.epoch}: {state}>"

    @property
    def epoch(self) -> int:
        """The number of this connection, which grows with each one of the process."""
        return self._link.epoch

    @property
    def server_properties(self) -> Mapping[str, object]:
        """What the broker says of itself: `product` and `version`, as RabbitMQ has them, and more."""
        return self._server_properties

    @property
    def blocked(self) -> str | None:
        """Why the broker takes no messages at the moment, in its words; None when it does."""
        return self._link.blocked

    async def wait_blocked(self) -> str:
        """Wait until the broker takes no messages, at once if so already, and return why; raises ConnectionLost."""
        while True:
            self._check()
            if self._link.blocked is not None:
                return self._link.blocked
            await self._link.blocked_changed.park()

    async def wait_unblocked(self) -> None:
        """Wait until the broker takes messages, at once if so already; raises ConnectionLost."""
        self._check()
        while self._link.blocked is not None:
            await self._link.blocked_changed.park()
            self._check()

    def _check(self) -> None:
        if self._link.failure is not None:
            raise self._link.failure.again()

    @asynccontextmanager
    async def open_channel(self, confirms: bool = False) -> AsyncIterator[Channel]:
        """Open a channel for the duration of the context; `confirms` allows it to publish.

        Leaving sends what is buffered, closes the channel and waits up to 3 s for the answer. If the broker had
        closed it and nobody has been told, leaving raises that ChannelClosed. Raises ChannelsExhausted,
        ReplyTimeout, ChannelClosed and ConnectionLost.
        """
        self._check()
        number = self._free_number()
        state = ChannelState(self._link, number, self._release)
        self._channels[number] = state
        channel = Channel(state)
        try:
            await channel._open(confirms)
            yield channel
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await channel._close()
        channel._raise_untold()

    def _free_number(self) -> int:
        limit = self._agreement.channel_max
        for number in range(1, limit + 1):
            if number not in self._channels:
                return number
        raise ChannelsExhausted(limit)

    def _release(self, number: int) -> None:
        del self._channels[number]

    # The tasks. None of them raises but for a programming error: `_lose` tells everybody, the owner included.

    async def _run_tasks(self) -> None:
        with self._tasks:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                nursery.start_soon(self._write)
                if self._agreement.heartbeat:
                    nursery.start_soon(self._keep_alive, self._agreement.heartbeat / 2)

    async def _read(self) -> None:
        stream = self._stream
        prompt = stream if isinstance(stream, SocketStream) else None
        try:
            self._dispatch(self._early_frames)
            while True:
                data = await stream.receive_some(READ_SIZE)
                if not data:
                    self._lose(ConnectionLost("the broker hung up"))
                    return
                self._chunks_received += 1
                self._dispatch(self._reader.feed(bytes(data)))
                if prompt is not None:
                    # It gives nobody else a turn. A short read was all there is, so that to ask before there is more would be in vain.
                    if len(data) < READ_SIZE:
                        await prompt.wait_readable()
                    else:
                        await trio.lowlevel.checkpoint()
        except ProtocolViolation as error:
            self._lose(error)
        except trio.BrokenResourceError as error:
            self._lose(_broken(error))

    async def _write(self) -> None:
        try:
            await self._link.outbox.send_to(self._stream)
        except trio.BrokenResourceError as error:
            await trio.sleep(LAST_WORDS_SECONDS)
            self._lose(_broken(error))

    async def _keep_alive(self, half_interval: float) -> None:
        outbox = self._link.outbox
        silent_looks = 0
        while True:
            written, received = outbox.written, self._chunks_received
            await trio.sleep(half_interval)
            if outbox.written == written and not outbox.buffered:
                outbox.write(codec.HEARTBEAT_FRAME)
            silent_looks = 0 if self._chunks_received != received else silent_looks + 1
            if silent_looks == SILENT_LOOKS:
                seconds = SILENT_LOOKS * half_interval
                self._lose(ConnectionLost(f"no sign of life from the broker for {seconds:g} s"))

    def _dispatch(self, frames: Iterable[codec.RawFrame]) -> None:
        channels = self._channels
        for kind, number, payload in frames:
            if number in channels:
                channels[number].handle(kind, payload)
            elif number:
                raise ProtocolViolation(f"a frame for channel {number}, which is not open")
            elif kind == codec.METHOD:
                self._handle(payload)
            elif kind != codec.HEARTBEAT:
                raise ProtocolViolation(f"a frame of type {kind} on channel 0")

    def _handle(self, payload: bytes) -> None:
        method = codec.decode_method(payload)
        match method:
            case commands.Connection.Close():
                self._link.outbox.write(codec.encode_method(commands.Connection.CloseOk(), 0))
                self._lose(
                    ConnectionClosedByBroker(method.reply_code or 0, method.reply_text or "")
                )
            case commands.Connection.CloseOk() if self._leaving:
                self._answered = True
                self._closed.set()
            case commands.Connection.Blocked():
                self._link.set_blocked(method.reason or "")
            case commands.Connection.Unblocked():
                self._link.set_blocked(None)
            case _:
                raise ProtocolViolation(f"{spec_name(method.name)} on channel 0")

    def _lose(self, failure: ConnectionLost) -> None:
        """Tell everybody that the connection has ended, once."""
        self._closed.set()
        nothing_lost = self._leaving and (self._answered or not self._link.outbox.buffered)
        if self._link.failure is not None or (
            nothing_lost and not isinstance(failure, ConnectionClosedByBroker)
        ):
            return
        self._lost = failure
        self._end(failure)
        self._owner.cancel(reason=f"AMQP connection lost: {failure}")

    async def _say_goodbye(self) -> None:
        """Close in good order, or send the last frame of a connection that the broker has closed."""
        outbox = self._link.outbox
        if self._link.failure is not None:
            if isinstance(self._link.failure, ConnectionClosedByBroker):
                await outbox.drain()
            return
        self._leaving = True
        close = commands.Connection.Close(reply_code=200, reply_text="", class_id=0, method_id=0)
        outbox.write(codec.encode_method(close, 0))
        await self._closed.wait()

    def _leave(self) -> None:
        """End the tasks, and what outlives its connection."""
        # An answered goodbye was read, and so was all before it, though send_all may not have returned yet.
        if self._link.outbox.buffered and not self._answered:
            self._lose(ConnectionLost("what was buffered could not be sent before the end"))
        if self._link.failure is None:
            self._end(ConnectionLost("its context has been left"))
        self._tasks.cancel()

    def _end(self, failure: ConnectionLost) -> None:
        self._link.fail(failure)
        for state in self._channels.values():
            state.connection_lost(failure)


def _broken(error: trio.BrokenResourceError) -> ConnectionLost:
    reason = error.__cause__ or error
    failure = ConnectionLost(f"the connection broke: {reason}")
    failure.__cause__ = error
    return failure


@asynccontextmanager
async def open_connection(
    parameters: ConnectionParameters,
    *,
    ssl_context: ssl.SSLContext | None = None,
    heartbeat: int = HEARTBEAT_SECONDS,
    connect_timeout: float = CONNECT_SECONDS,
    connection_name: str = "",
    max_body_size: int = MAX_BODY_SIZE,
    stream_factory: StreamFactory = open_stream,
) -> AsyncIterator[Connection]:
    """Connect to a broker for the duration of the context.

    `heartbeat` is in seconds (0: none; the broker may ask for a shorter time), `connect_timeout` in seconds for
    the stream alone; each step of the handshake has 10 s more. `ssl_context` is for `amqps` only, and defaults
    to Python's own. A message of more than `max_body_size` bytes closes the channel it comes on, with 311.
    The `connection_name` is shown by the broker's tools.

    Resource handling: leaving sends what is buffered, closes the connection and waits up to 3 s for the
    answer, shielded from cancellation.

    Error handling: raises ConnectError, HandshakeTimeout or AccessRefused when no connection comes to be (or
    ConnectionClosedByBroker or ProtocolViolation in the middle of the handshake). When an open connection is
    lost, whoever waits for it anywhere gets a ConnectionLost, the body of the context is cancelled, and the
    ConnectionLost is raised here: bare, also where the body's own nursery had wrapped the only one. Other
    errors of the body, and groups of several, are left as they are.
    """
    if ssl_context is not None and not parameters.tls:
        raise ValueError("an SSL context is for an amqps:// URL only")
    if parameters.tls and ssl_context is None:
        ssl_context = ssl.create_default_context()
    stream = await _connect(parameters, ssl_context, connect_timeout, stream_factory)
    try:
        handshake = Handshake(stream, parameters)
        agreement = await handshake.run(heartbeat, connection_name)
        link = Link(agreement.frame_max, max_body_size)
        connection = Connection(stream, link, agreement, handshake)
        async with _running(connection):
            yield connection
    finally:
        # Both ends have said goodbye, or there is nobody left to say it to.
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)


async def _connect(
    parameters: ConnectionParameters,
    ssl_context: ssl.SSLContext | None,
    connect_timeout: float,
    stream_factory: StreamFactory,
) -> trio.abc.Stream:
    with trio.move_on_after(connect_timeout):
        try:
            return await stream_factory(parameters, ssl_context)
        except OSError as error:
            raise ConnectError(
                f"cannot connect to {parameters.host}:{parameters.port}: {error}"
            ) from error
    raise HandshakeTimeout("connection", connect_timeout)


@asynccontextmanager
async def _running(connection: Connection) -> AsyncIterator[None]:
    """Run the tasks of a connection around its owner, and see to it that the owner learns of its end."""
    alone: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection._run_tasks)
            try:
                with connection._owner:
                    yield
            finally:
                with trio.move_on_after(CLOSE_SECONDS, shield=True):
                    await connection._say_goodbye()
                connection._leave()
    except BaseExceptionGroup as group:
        # The tasks raise nothing, so the nursery has wrapped what the owner raised, and that alone.
        if len(group.exceptions) > 1:
            raise
        alone = group.exceptions[0]
    if connection._lost is not None:
        if alone is None:
            raise connection._lost
        alone = _only_loss(alone) or alone
        if not isinstance(alone, AmqpError | trio.Cancelled):
            alone.add_note(f"The AMQP connection was lost meanwhile: {connection._lost}")
    if alone is not None:
        # As if the nursery had not been there: with the context that it had, and in no cycle with this frame.
        context = alone.__context__
        try:
            raise alone
        finally:
            alone.__context__ = context
            del alone, context


def _only_loss(error: BaseException) -> ConnectionLost | None:
    """Return the ConnectionLost that is the only leaf of a group, however deeply it is wrapped."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, ConnectionLost) else None
