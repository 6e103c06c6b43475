"""Collect: read what the transformation sends, take its results before it can write over them, and note what is done.

Every output connection has a task of its own. A breach of the contract on one closes that one, with one line that names the breach.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from iterum_sidecar.cargo import OutputCargo
from iterum_sidecar.entries import State
from iterum_sidecar.exit_codes import TransformationLost
from iterum_sidecar.framing import FrameReader, FrameTooLong
from iterum_sidecar.messages import (
    Done,
    MessageRefused,
    Result,
    ResultRefused,
    decode_transformation_message,
)
from iterum_sidecar.telemetry.logs import get_log
from iterum_sidecar.volume import PathRefused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from iterum_sidecar.cargo import FragmentEntry, FragmentLedger, Parting
    from iterum_sidecar.telemetry.tally import Tally
    from iterum_sidecar.unix_sockets import Listener, Peer
    from iterum_sidecar.volume import TakenFile, Volume

__all__ = ["UPLOADS_WAITING", "Collect"]

_log = get_log(__name__)

#: Results that are taken and wait for an upload. Beyond that no frame is read, so that a step that produces faster than the store
#: takes waits in its own send, and what is held open is bounded.
UPLOADS_WAITING = 64


#: Seconds after a death within which a stop of the sidecar makes it none: a pod that is deleted stops all of its containers in one
#: moment, and no fragment is to blame for that.
BLAME_AFTER = 1.0


class _Breach(Exception):
    """The peer broke the contract; its connection is closed."""


class _OutputConnection:
    """One output connection: its frames, and whether it has said kill."""

    def __init__(self, peer: Peer, frame_limit: int) -> None:
        self.peer = peer
        self.frames = FrameReader(frame_limit)
        self.lock = trio.Lock()
        self.said_kill = False


class Collect:
    """The fourth stage, and the output socket's side of the transformation."""

    def __init__(
        self,
        *,
        listener: Listener,
        volume: Volume,
        ledger: FragmentLedger,
        tally: Tally,
        output_queue: str,
        queue_mapping: Mapping[str, str],
        frame_limit: int,
        kill_timeout: float,
        return_timeout: float,
    ) -> None:
        self._listener = listener
        self._volume = volume
        self._ledger = ledger
        self._tally = tally
        self._output_queue = output_queue
        self._queue_mapping = queue_mapping
        self._frame_limit = frame_limit
        self._kill_timeout = kill_timeout
        self._return_timeout = return_timeout
        self._open: set[_OutputConnection] = set()
        self._kill_answered = False
        self._changed = trio.Event()

    async def run(
        self,
        *,
        partings: trio.MemoryReceiveChannel[Parting],
        to_upload: trio.MemorySendChannel[OutputCargo],
        to_handout: trio.MemorySendChannel[FragmentEntry],
        to_settle: trio.MemorySendChannel[FragmentEntry],
        killed: trio.Event,
        stop: trio.Event,
    ) -> None:
        """Read until the output has ended: the kill message has been answered by one connection at least, and all others have said it or closed.

        When the program was told to stop (`stop`) it is enough that none is open that has not said it.

        Raises:
            TransformationLost: the kill message was not answered in time.
        """
        self._to_upload = to_upload
        self._to_handout = to_handout
        self._to_settle = to_settle
        with to_upload, to_handout, to_settle:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._accept, nursery)
                nursery.start_soon(self._mourn, partings, stop, nursery)
                nursery.start_soon(self._notice, stop)
                await killed.wait()
                await self._await_answer(stop)
                nursery.cancel_scope.cancel("the transformation's output has ended")

    # -- the end

    async def _await_answer(self, stop: trio.Event) -> None:
        asked = trio.current_time()
        empty_since = asked
        while not self._has_ended(stop):
            now = trio.current_time()
            if self._open:
                empty_since = now
            deadline = min(asked + self._kill_timeout, empty_since + self._return_timeout)
            if now >= deadline:
                raise TransformationLost(self._why_lost(now - asked))
            self._changed = trio.Event()
            with trio.move_on_at(deadline):
                await self._changed.wait()

    async def _notice(self, stop: trio.Event) -> None:
        await stop.wait()
        self._changed.set()

    def _has_ended(self, stop: trio.Event) -> bool:
        waiting = any(not connection.said_kill for connection in self._open)
        return not waiting and (self._kill_answered or stop.is_set())

    def _why_lost(self, seconds: float) -> str:
        if self._open:
            return (
                f"the transformation did not answer the kill message within {seconds:.0f} s"
                " (SIDECAR_KILL_TIMEOUT)"
            )
        return (
            "the transformation closed its connections without answering the kill message, and did not"
            f" return within {seconds:.0f} s (SIDECAR_TRANSFORMATION_RETURN_TIMEOUT)"
        )

    # -- connections

    async def _accept(self, nursery: trio.Nursery) -> None:
        while True:
            peer = await self._listener.accept()
            nursery.start_soon(self._attend, peer)

    async def _attend(self, peer: Peer) -> None:
        connection = _OutputConnection(peer, self._frame_limit)
        self._open.add(connection)
        try:
            while not peer.closed:
                await peer.wait_readable()
                await self._read_available(connection)
        except trio.ClosedResourceError:
            pass  # closed by a breach, or at its end, while this task waited
        finally:
            peer.close()
            self._open.discard(connection)
            self._changed.set()

    async def _read_available(self, connection: _OutputConnection) -> None:
        """Process everything that can be read without waiting for the peer."""
        async with connection.lock:
            while (data := connection.peer.receive_nowait()) is not None:
                try:
                    if not data:
                        self._at_close(connection)
                        return
                    for payload in connection.frames.feed(data):
                        await self._process(payload, connection)
                except (_Breach, FrameTooLong) as breach:
                    self._close_for(str(breach), connection)
                    return

    def _at_close(self, connection: _OutputConnection) -> None:
        if not connection.peer.closed:
            connection.peer.close()
            if connection.frames.buffered:
                raise _Breach("it was closed in the middle of a frame")

    def _close_for(self, breach: str, connection: _OutputConnection) -> None:
        """Close the connection; nobody knows of which fragment something was lost, so all that are out are void."""
        connection.peer.close()
        voided = self._ledger.breach(f"the transformation sent what cannot be read: {breach}")
        _log.warning(
            "breach on an output connection; it is closed", breach=breach, voided=len(voided)
        )

    async def _mourn(
        self,
        partings: trio.MemoryReceiveChannel[Parting],
        stop: trio.Event,
        nursery: trio.Nursery,
    ) -> None:
        """Settle what a closed input connection held, once everything that was sent before is read."""
        async for parting in partings:
            for connection in list(self._open):
                await self._read_available(connection)
            nursery.start_soon(self._settle_parting, parting, stop)

    async def _settle_parting(self, parting: Parting, stop: trio.Event) -> None:
        death = parting.death
        if death and any(entry.state is State.OUT for entry in parting.held):
            with trio.move_on_after(BLAME_AFTER):
                await stop.wait()
                death = False
        unfinished = [entry for entry in parting.held if entry.state is State.OUT]
        if death and unfinished:
            _log.warning(
                "an input connection closed with fragments in work",
                fragment_ids=[entry.fragment_id for entry in unfinished],
            )
        for fallen in self._ledger.connection_closed(unfinished, death=death):
            self._to_settle.send_nowait(fallen)

    # -- messages

    async def _process(self, payload: bytes, connection: _OutputConnection) -> None:
        if connection.said_kill:
            raise _Breach("something was sent after the kill message")
        try:
            message = decode_transformation_message(payload)
        except ResultRefused as refusal:
            self._refuse(refusal.predecessors, str(refusal))
        except MessageRefused as refusal:
            raise _Breach(str(refusal)) from None
        else:
            if isinstance(message, Result):
                await self._take(message)
            elif isinstance(message, Done):
                self._done(message.fragment_id)
            else:
                connection.said_kill = True
                self._kill_answered = True
                self._changed.set()

    def _done(self, fragment_id: str) -> None:
        entry, fallen = self._ledger.done(fragment_id)
        if entry is None:
            _log.debug("a done for a fragment that is not out", fragment_id=fragment_id)
            return
        for taken in entry.work.results:
            self._volume.remove_result(taken)
        entry.work.results.clear()
        self._to_handout.send_nowait(entry)
        for each in fallen:
            self._to_settle.send_nowait(each)

    async def _take(self, result: Result) -> None:
        """Make the result ours, give it its identity, and send it on."""
        predecessors = result.metadata.predecessors
        channel = result.metadata.output_channel or None
        queue = self._output_queue if channel is None else self._queue_mapping.get(channel)
        entries = self._ledger.in_flight(predecessors)
        try:
            if queue is None:
                raise PathRefused(
                    f"ITERUM_CONFIG maps no queue to the output channel {str(channel)[:80]!r}"
                )
            taken = self._take_files(result, entries)
        except PathRefused as refusal:
            self._refuse(predecessors, str(refusal))
            return
        output = self._ledger.take_result(
            predecessors, channel, [file.name for file in result.files]
        )
        self._remember_paths(taken, entries)
        if output.repeated:
            for each in taken:
                self._volume.release(each)
            return
        if output.late:
            self._tally.late_results += 1
            _log.warning(
                "a result came after its fragments were settled; it is published without their protection",
                predecessors=list(predecessors),
            )
        await self._to_upload.send(
            OutputCargo(output, result, taken, queue, None if channel is None else queue)
        )

    def _take_files(self, result: Result, entries: Sequence[FragmentEntry]) -> list[TakenFile]:
        allowed = {entry.work.workspace.name for entry in entries if entry.work.workspace}
        taken: list[TakenFile] = []
        try:
            # One by one: those before a refused one must be let go of.
            for file in result.files:
                taken.append(self._volume.take(file.path, allowed))  # noqa: PERF401
        except PathRefused:
            self._remember_paths(taken, entries)
            for each in taken:
                self._volume.release(each)
            raise
        return taken

    def _remember_paths(self, taken: list[TakenFile], entries: Sequence[FragmentEntry]) -> None:
        """Note whose done removes the paths; where nobody's will, remove them now."""
        if entries:
            entries[0].work.results += taken
        else:
            for each in taken:
                self._volume.remove_result(each)

    def _refuse(self, predecessors: Sequence[str], reason: str) -> None:
        self._tally.refused_results += 1
        refused = self._ledger.refuse_result(predecessors, reason)
        _log.warning(
            "a result is refused; its fragments become dead letters",
            reason=reason,
            fragments=refused,
            predecessors=list(predecessors),
        )
