"""The client of an async function: AnyIO, on asyncio or Trio, and a task for each pair of connections."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio

from iterum_sidecar.step.attempts import Attempts, GivenUp
from iterum_sidecar.step.calling import call_async, report_failure
from iterum_sidecar.step.fragments import making_of
from iterum_sidecar.step.session import Session
from iterum_sidecar.step.volume import Volume
from iterum_sidecar.step.wire import SidecarRefused

if TYPE_CHECKING:
    from anyio.abc import ByteStream

    from iterum_sidecar.step.session import Work
    from iterum_sidecar.step.surroundings import Surroundings
    from iterum_sidecar.step.transformation import Transform

__all__ = ["run_on_anyio"]

_READ_SIZE = 64 * 1024
_BROKEN = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


def run_on_anyio(
    transform: Transform[..., object], surroundings: Surroundings, backend: str
) -> None:
    """Work until the sidecar says on every pair of connections that nothing more comes, on an event loop of its own.

    Raises what `run_blocking` raises.
    """
    client = _Client(transform, surroundings)
    try:
        anyio.run(client.run, backend=backend)
    except BaseExceptionGroup as group:
        # Trio raises Ctrl-C in whatever task is running, so it arrives within a group.
        if group.subgroup(KeyboardInterrupt) is not None:
            raise KeyboardInterrupt from None
        end: BaseException | None = group.subgroup(SystemExit)
        if end is None:
            raise
        while isinstance(end, BaseExceptionGroup):
            end = end.exceptions[0]
        raise SystemExit(*end.args) from None
    if client.end is not None:
        raise client.end


class _Client:
    """What the pairs of connections of one process share."""

    def __init__(self, transform: Transform[..., object], surroundings: Surroundings) -> None:
        self._transform = transform
        self._surroundings = surroundings
        self._volume = Volume(surroundings.volume)
        self._is_ending = False
        self.end: BaseException | None = None
        """What ended the process before its time; raised outside the event loop, which has its own ways with it."""

    async def run(self) -> None:
        """Serve all pairs to their end."""
        async with anyio.create_task_group() as group:
            for _ in range(self._transform.concurrency):
                group.start_soon(self._serve, group.cancel_scope)

    async def _serve(self, scope: anyio.CancelScope) -> None:
        """Work over one pair of connections after another until the end has been said."""
        try:
            attempts = Attempts(time.monotonic())
            while not await self._serve_once(attempts):
                pass
        except (GivenUp, SystemExit, KeyboardInterrupt) as end:
            self.end = self.end or end
            scope.cancel()

    async def _serve_once(self, attempts: Attempts) -> bool:
        inputs = await self._connect(self._surroundings.input_socket, attempts)
        if inputs is None:
            return True
        async with inputs:
            outputs = await self._connect(self._surroundings.output_socket, attempts)
            if outputs is None:
                return True
            async with outputs:
                attempts.connected(time.monotonic())
                session = Session(self._volume, self._transform.gather)
                if await self._work(session, inputs, outputs):
                    return True
        await anyio.sleep(attempts.lost(time.monotonic(), heard=session.heard))
        return False

    async def _connect(self, path: str, attempts: Attempts) -> ByteStream | None:
        """Return a connection, or None: another pair has been told that this is the end, and the sidecar has gone."""
        while True:
            try:
                return await anyio.connect_unix(path)
            except OSError as error:
                if self._is_ending:
                    return None
                delay = attempts.refused(path, error, time.monotonic())
            await anyio.sleep(delay)

    async def _work(self, session: Session, inputs: ByteStream, outputs: ByteStream) -> bool:
        """Work until the end is said, or the connections break: False."""
        while True:
            while (work := session.next_work()) is None:
                if session.is_over:
                    # The sidecar may have gone without waiting for it; nothing depends on it any more.
                    await _send(outputs, session.goodbye())
                    return True
                try:
                    data = await inputs.receive(_READ_SIZE)
                except _BROKEN:
                    return False
                try:
                    to_send = session.receive(data)
                except SidecarRefused as error:
                    raise GivenUp(str(error)) from None
                if session.killed:
                    self._is_ending = True
                if to_send and await _send(outputs, to_send) < len(to_send):
                    return False
            if not await self._perform(session, work, outputs):
                return False

    async def _perform(self, session: Session, work: Work, outputs: ByteStream) -> bool:
        """Call the function and send what came of it; False when the connection is broken."""
        function = self._transform.function
        try:
            results = await call_async(function, work)
        except Exception as error:
            to_send = report_failure(session, work, error, function)
        else:
            to_send = session.done(work, results)
        sent = await _send(outputs, to_send)
        if not sent:
            making_of(work).discard()
        return sent == len(to_send)


async def _send(outputs: ByteStream, pieces: list[bytes]) -> int:
    """Send pieces each by a call of its own, and return how many were."""
    for number, piece in enumerate(pieces):
        try:
            await outputs.send(piece)
        except _BROKEN:
            return number
    return len(pieces)
