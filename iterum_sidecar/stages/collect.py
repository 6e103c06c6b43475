"""Collect: read what the transformation sends, take its results before it can write over them, and note what is done.

Every output connection has a task of its own. A breach of the contract on one closes that one, with one line that names the breach.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from iterum_sidecar.cargo import Gathering, OutputCargo
from iterum_sidecar.entries import DeadLetterKind, State
from iterum_sidecar.exit_codes import TransformationLost, VolumeUnusable
from iterum_sidecar.framing import FrameReader, FrameTooLong
from iterum_sidecar.messages import (
    Done,
    Failed,
    Gathers,
    MessageRefused,
    Result,
    ResultRefused,
    decode_transformation_message,
)
from iterum_sidecar.telemetry.logs import get_log
from iterum_sidecar.volume import PathRefused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from iterum_sidecar.cargo import (
        FragmentEntry,
        FragmentLedger,
        FragmentRoster,
        HandoutNews,
        Parting,
    )
    from iterum_sidecar.telemetry.tally import Tally
    from iterum_sidecar.unix_sockets import Listener, Peer
    from iterum_sidecar.volume import TakenFile, Volume

__all__ = ["BLAME_AFTER", "UPLOADS_WAITING", "Collect"]

_log = get_log(__name__)

#: Results that are taken and wait for an upload. Beyond that no frame is read, so that a step that produces faster than the store
#: takes waits in its own send, and what is held open is bounded.
UPLOADS_WAITING = 64


#: Seconds that a result waits for a free descriptor before the program ends for want of one.
DESCRIPTOR_PATIENCE = 60.0
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
        roster: FragmentRoster,
        tally: Tally,
        output_queue: str,
        queue_mapping: Mapping[str, str],
        frame_limit: int,
        kill_timeout: float,
        return_timeout: float,
        blame_after: float = BLAME_AFTER,
    ) -> None:
        self._blame_after = blame_after
        self._listener = listener
        self._volume = volume
        self._ledger = ledger
        self._roster = roster
        self._tally = tally
        self._output_queue = output_queue
        self._queue_mapping = queue_mapping
        self._frame_limit = frame_limit
        self._kill_timeout = kill_timeout
        self._return_timeout = return_timeout
        self._open: set[_OutputConnection] = set()
        self.kill_answered = False
        """Whether a connection has said kill in its turn."""
        self._deaths: list[tuple[FragmentEntry, int]] = []
        """What was held by connections that died in the last moment."""
        self._changed = trio.Event()

    async def run(
        self,
        *,
        partings: trio.MemoryReceiveChannel[Parting],
        to_upload: trio.MemorySendChannel[OutputCargo],
        to_handout: trio.MemorySendChannel[HandoutNews],
        to_settle: trio.MemorySendChannel[FragmentEntry],
        news: trio.MemorySendChannel[Gathering],
        killed: trio.Event,
        stop: trio.Event,
    ) -> None:
        """Read until the output has ended: the kill message has been answered by one connection at least, all others have said it
        or closed, and no input connection that is open holds anything.

        When the program was told to stop (`stop`) it is enough that none is open that has not said it. Nothing is awaited
        from a transformation that was told to wait for the next sidecar.

        Raises:
            TransformationLost: the kill message was not answered in time.
        """
        self._to_upload = to_upload
        self._to_handout = to_handout
        self._to_settle = to_settle
        self._news = news
        with to_upload, to_handout, to_settle, news:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._accept, nursery)
                nursery.start_soon(self._mourn, partings, stop, nursery)
                nursery.start_soon(self._notice, stop)
                await killed.wait()
                if self._roster.told_kill:
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
        waiting = self._roster.held or any(not each.said_kill for each in self._open)
        return not waiting and (self.kill_answered or stop.is_set())

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
            self._admit(await self._listener.accept(), nursery)

    def _admit(self, peer: Peer, nursery: trio.Nursery) -> None:
        connection = _OutputConnection(peer, self._frame_limit)
        self._open.add(connection)
        nursery.start_soon(self._attend, connection)

    async def _attend(self, connection: _OutputConnection) -> None:
        peer = connection.peer
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
            while (late := self._listener.accept_nowait()) is not None:
                self._admit(late, nursery)
            for connection in list(self._open):
                await self._read_available(connection)
            if not parting.death:
                self._settle_closed(parting.held, death=False)
            elif parting.held:
                if not self._deaths:
                    nursery.start_soon(self._settle_deaths, stop)
                self._deaths += parting.held
            self._changed.set()

    async def _settle_deaths(self, stop: trio.Event) -> None:
        """Settle what died in one moment, as one death: the connections of one process die together."""
        with trio.move_on_after(self._blame_after):
            await stop.wait()
        deaths, self._deaths = self._deaths, []
        self._settle_closed(deaths, death=not stop.is_set())

    def _settle_closed(self, held: list[tuple[FragmentEntry, int]], *, death: bool) -> None:
        """Settle what closed connections held, unless its hand-out has ended otherwise since."""
        unfinished = [
            entry
            for entry, number in held
            if entry.state is State.OUT and entry.hand_outs == number
        ]
        if death and unfinished:
            _log.warning(
                "the transformation left with fragments in work",
                fragment_ids=[entry.fragment_id for entry in unfinished],
            )
        for entry in unfinished:
            self._tally.times.enter(entry.work, "results")
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
            elif isinstance(message, Failed):
                reason = message.reason.strip() or "the transformation gave no reason"
                kind = DeadLetterKind.TRANSFORMATION_FAILED
                self._ledger.refuse_result([message.fragment_id], reason, kind)
                self._done(message.fragment_id)
            elif isinstance(message, Gathers):
                self._gather(message.fragments)
            else:
                connection.said_kill = True
                self.kill_answered = True
                self._changed.set()

    def _done(self, fragment_id: str) -> None:
        entry, fallen = self._ledger.done(fragment_id)
        if entry is None:
            _log.debug("a done for a fragment that is not out", fragment_id=fragment_id)
            return
        self._tally.times.enter(entry.work, "results")
        self._volume.remove_results(entry.work.results)
        # Told at once: before the fragment can be handed out again its seat must know that this hand-out has ended.
        self._roster.done(entry, trio.current_time())
        self._to_handout.send_nowait(entry)
        for each in fallen:
            self._to_settle.send_nowait(each)

    def _gather(self, fragments: int) -> None:
        """Let every connection hold so many, and the window hold them all, without waiting for starvation to show it."""
        self._roster.gather(fragments)
        gathering = Gathering(fragments * max(self._roster.seats, 1), fragments)
        self._to_handout.send_nowait(gathering)
        self._news.send_nowait(gathering)

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
            taken = await self._take_files_patiently(result, entries)
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
        target = None if channel is None else queue
        since = self._tally.times.clock()
        await self._to_upload.send(OutputCargo(output, result, taken, queue, target, since))

    async def _take_files_patiently(
        self, result: Result, entries: Sequence[FragmentEntry]
    ) -> list[TakenFile]:
        """Take the files; where this process has no descriptor free, wait for the uploads to give some back."""
        give_up_at = trio.current_time() + DESCRIPTOR_PATIENCE
        while True:
            try:
                return self._take_files(result, entries)
            except OSError as error:
                want = error
            if trio.current_time() >= give_up_at:
                raise VolumeUnusable(f"a result cannot be opened: {want.strerror}")
            await trio.sleep(0.1)

    def _take_files(self, result: Result, entries: Sequence[FragmentEntry]) -> list[TakenFile]:
        allowed = {entry.work.workspace.name for entry in entries if entry.work.workspace}
        taken: list[TakenFile] = []
        try:
            # One by one: those before a refused one must be let go of.
            for file in result.files:
                taken.append(self._volume.take(file.path, allowed))  # noqa: PERF401
        except (PathRefused, OSError) as error:
            if isinstance(error, PathRefused):
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
