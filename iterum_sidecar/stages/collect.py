"""Collect: read what the transformation sends, take its results before it can write over them, and note what is done.

Every output connection has a task of its own. A breach of the contract on one closes that one, with one line that names the breach.
The file is long because all that a frame can bring about is in it, so that it can be read in one place.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.cargo import Gathering, OutputCargo
from iterum_sidecar.entries import DeadLetterKind
from iterum_sidecar.exit_codes import TransformationLost, VolumeUnusable
from iterum_sidecar.framing import FrameTooLong
from iterum_sidecar.messages import (
    MOST_GATHERED,
    Done,
    Failed,
    Gathers,
    MessageRefused,
    Result,
    ResultRefused,
    decode_transformation_message,
)
from iterum_sidecar.output_connection import OutputConnection, UnfinishedFrames
from iterum_sidecar.prompt_channels import send_promptly
from iterum_sidecar.telemetry.logs import get_log
from iterum_sidecar.unix_sockets import READ_SIZE
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
    from iterum_sidecar.deaths import Deaths
    from iterum_sidecar.freight import Freight
    from iterum_sidecar.shortages import Shortages
    from iterum_sidecar.telemetry.tally import Tally
    from iterum_sidecar.unix_sockets import Listener, Peer
    from iterum_sidecar.volume import TakenFile, Volume

__all__ = ["UPLOADS_WAITING", "Collect"]

_log = get_log(__name__)

#: Results that are taken and wait for an upload. Beyond that no frame is read, so that a step that produces faster than the store
#: takes waits in its own send, and what is held open is bounded.
UPLOADS_WAITING = 64


#: Reads of 64 KiB from one connection after which the others have their turn, however much there is to be read. Their frames take some
#: 20 ms to process.
READS_IN_ONE_GO = 4
#: Seconds that a result waits for a free descriptor before the program ends for want of one, if no other result holds any.
DESCRIPTOR_PATIENCE = 60.0
#: Seconds that answers to the kill message are waited for which no open connection owes: pyterum's output may belong to an earlier sidecar
#: still. It notices that as it sends its answer, connects, and sends it 5 s later (`retry_interval` in its socket_conn.py).
LATE_ANSWER_PATIENCE = 10.0


class _Breach(Exception):
    """The peer broke the contract; its connection is closed."""


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
        shortages: Shortages,
        freight: Freight,
        output_queue: str,
        queue_mapping: Mapping[str, str],
        frame_limit: int,
        kill_timeout: float,
        return_timeout: float,
        deaths: Deaths,
    ) -> None:
        self._deaths = deaths
        self._listener = listener
        self._volume = volume
        self._ledger = ledger
        self._roster = roster
        self._tally = tally
        self._shortages = shortages
        self._freight = freight
        self._output_queue = output_queue
        self._queue_mapping = queue_mapping
        self._frame_limit = frame_limit
        self._kill_timeout = kill_timeout
        self._return_timeout = return_timeout
        self._open: set[OutputConnection] = set()
        self._unfinished = UnfinishedFrames(frame_limit)
        self._told_gathering: Gathering | None = None
        self._answers = 0
        """How many connections have said kill."""
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
        or closed, and no input connection that is open holds anything. If fewer have answered than were told, and not all of those have
        gone, the rest may still connect, and would find nobody: they have 10 s.

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

    @property
    def kill_answered(self) -> bool:
        """Whether a connection has said kill in its turn."""
        return self._answers > 0

    async def _await_answer(self, stop: trio.Event) -> None:
        asked = trio.current_time()
        empty_since = asked
        late_until: float | None = None
        while True:
            now = trio.current_time()
            if self._open:
                empty_since = now
            if self._has_ended(stop):
                late_until = now + LATE_ANSWER_PATIENCE if late_until is None else late_until
                if now >= late_until or stop.is_set() or not self._may_be_answered_late():
                    return
                deadline = late_until
            else:
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
        silent = sum(not each.said_kill for each in self._open)
        if self._roster.held or (silent and not self._are_given_up(silent)):
            return False
        return self.kill_answered or stop.is_set()

    def _may_be_answered_late(self) -> bool:
        return self._answers < self._roster.kills_said and self._roster.has_told_seats

    def _are_given_up(self, silent: int) -> bool:
        """Whether so many connections that have not said kill may be those of workers that hang: all that were told kill have answered."""
        answered = self._answers >= self._roster.kills_said
        return silent <= self._roster.given_up and answered and self._ledger.out() == 0

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
        connection = OutputConnection(peer, self._frame_limit)
        self._open.add(connection)
        self._changed.set()
        nursery.start_soon(self._attend, connection)

    async def _attend(self, connection: OutputConnection) -> None:
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
            self._unfinished.forget(connection)
            self._changed.set()

    async def _read_available(self, connection: OutputConnection) -> None:
        """Process everything that can be read without waiting for the peer."""
        lock = connection.lock
        # `acquire` would let everybody else run first, though nearly always nobody else reads here.
        try:
            lock.acquire_nowait()
        except trio.WouldBlock:
            await lock.acquire()
        try:
            await self._read_until_empty(connection)
        finally:
            lock.release()

    async def _read_until_empty(self, connection: OutputConnection) -> None:
        reads = 0
        all_is_read = False
        while not all_is_read and (data := connection.peer.receive_nowait()) is not None:
            reads += 1
            all_is_read = len(data) < READ_SIZE
            try:
                if not data:
                    self._at_close(connection)
                    return
                for payload in connection.frames.feed(data):
                    await self._process(payload, connection)
                self._bound_unfinished(connection)
            except (_Breach, FrameTooLong) as breach:
                self._close_for(str(breach), connection)
                return
            if reads % READS_IN_ONE_GO == 0:
                await trio.lowlevel.checkpoint()

    def _at_close(self, connection: OutputConnection) -> None:
        if not connection.peer.closed:
            connection.peer.close()
            if connection.frames.buffered:
                raise _Breach("it was closed in the middle of a frame")

    def _bound_unfinished(self, connection: OutputConnection) -> None:
        """Give up the connection that holds most, if all of them together hold too much of frames that do not end."""
        hoarder = self._unfinished.count(connection)
        if hoarder is not None:
            self._unfinished.forget(hoarder)
            limit = f"{self._unfinished.limit:,}"
            self._close_for(
                f"unfinished frames of more than {limit} bytes were held, and its own was the longest",
                hoarder,
            )

    def _close_for(self, breach: str, connection: OutputConnection) -> None:
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
        async for first in partings:
            # All that have left by now are looked after in one go: each connection is read once, and not once for each of them.
            left = [first]
            with suppress(trio.WouldBlock):
                while True:
                    left.append(partings.receive_nowait())
            if any(parting.held for parting in left):
                while (late := self._listener.accept_nowait()) is not None:
                    self._admit(late, nursery)
                for connection in list(self._open):
                    await self._read_available(connection)
            for parting in left:
                self._deaths.take(parting, self._to_settle, stop, nursery)
            self._changed.set()

    # -- messages

    async def _process(self, payload: bytes, connection: OutputConnection) -> None:
        if connection.said_kill:
            raise _Breach("something was sent after the kill message")
        try:
            message = decode_transformation_message(payload)
        except ResultRefused as refusal:
            self._refuse(refusal.predecessors, str(refusal), connection.source)
        except MessageRefused as refusal:
            raise _Breach(str(refusal)) from None
        else:
            if isinstance(message, Result):
                await self._take(message, len(payload), connection.source)
            elif isinstance(message, Done):
                self._done(message.fragment_id, connection.source)
            elif isinstance(message, Failed):
                reason = message.reason or "the transformation gave no reason"
                kind = DeadLetterKind.TRANSFORMATION_FAILED
                source = connection.source
                self._ledger.refuse_result([message.fragment_id], reason, kind, source)
                self._done(message.fragment_id, source)
            elif isinstance(message, Gathers):
                self._gather(message.fragments)
            else:
                connection.said_kill = True
                self._answers += 1
                self._changed.set()

    def _done(self, fragment_id: str, source: int) -> None:
        entry, fallen = self._ledger.done(fragment_id, source)
        if entry is None:
            _log.debug("a done of no hand-out that is out", fragment_id=fragment_id)
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
        self._roster.gather(min(fragments, MOST_GATHERED))
        batch = self._roster.gathered
        gathering = Gathering(batch * max(self._roster.seats, 1), batch)
        # What is known is not told again: the channels have no bound, and a step may say this as often as it likes.
        if gathering != self._told_gathering:
            self._told_gathering = gathering
            self._to_handout.send_nowait(gathering)
            self._news.send_nowait(gathering)

    async def _take(self, result: Result, size: int, source: int) -> None:
        """Make the result ours, give it its identity, and send it on; `size` is that of its message in bytes."""
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
            self._refuse(predecessors, str(refusal), source)
            return
        output = self._ledger.take_result(
            predecessors, channel, [file.name for file in result.files], source
        )
        # Of a stray one whose fragments are settled the path may be in use again: for the next of whoever was overtaken.
        if entries or not output.stray:
            self._remember_paths(taken, entries)
        if output.stray:
            self._tally.stray_results += 1
            _log.info(
                "a result of a hand-out that is over is dropped", predecessors=list(predecessors)
            )
        if output.stray or output.repeated:
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
        await self._freight.let_on(output, size)
        cargo = OutputCargo(output, result, taken, queue, target, since)
        await send_promptly(self._to_upload, cargo)

    async def _take_files_patiently(
        self, result: Result, entries: Sequence[FragmentEntry]
    ) -> list[TakenFile]:
        """Take the files; where this process has no descriptor free, wait for the uploads to give some back."""
        give_up_at: float | None = None
        while True:
            try:
                return self._take_files(result, entries)
            except OSError as error:
                want = error
            now = trio.current_time()
            if give_up_at is None or self._volume.holds_results:
                give_up_at = now + DESCRIPTOR_PATIENCE
            elif now >= give_up_at:
                raise VolumeUnusable(
                    f"a result of {len(result.files)} files cannot be opened: {want.strerror};"
                    " the sidecar must be allowed more open files (ulimit -n)"
                )
            await self._shortages.wait(want, result.files[0].path)

    def _take_files(self, result: Result, entries: Sequence[FragmentEntry]) -> list[TakenFile]:
        allowed = {entry.work.workspace.name for entry in entries if entry.work.workspace}
        taken: list[TakenFile] = []
        try:
            self._volume.take([file.path for file in result.files], taken, allowed)
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
            self._volume.remove_results(list(taken))

    def _refuse(self, predecessors: Sequence[str], reason: str, source: int) -> None:
        self._tally.refused_results += 1
        refused = self._ledger.refuse_result(predecessors, reason, source=source)
        _log.warning(
            "a result is refused; its fragments become dead letters",
            reason=reason,
            fragments=refused,
            predecessors=list(predecessors),
        )
