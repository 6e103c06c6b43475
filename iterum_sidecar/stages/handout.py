"""Handout: give ready fragments to the transformation's connections, one at a time to each, and say kill at the end.

It lives until the ledger is empty, because a fragment whose transformation has died comes back to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from iterum_sidecar.cargo import News, Parting
from iterum_sidecar.entries import State, Verdict
from iterum_sidecar.exit_codes import TransformationLost, TransformationNeverCame
from iterum_sidecar.framing import encode_frame
from iterum_sidecar.input_connection import InputConnection, describe
from iterum_sidecar.messages import KILL_MESSAGE
from iterum_sidecar.prompt_channels import promptly
from iterum_sidecar.telemetry.logs import get_log

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from iterum_sidecar.cargo import FragmentEntry, FragmentLedger, FragmentRoster, HandoutNews
    from iterum_sidecar.hangs import Hangs
    from iterum_sidecar.roster import Seat
    from iterum_sidecar.telemetry.tally import Tally
    from iterum_sidecar.unix_sockets import Listener, Peer

__all__ = ["Handout"]

_log = get_log(__name__)

#: Seconds between looks at whether the step is starved, or gone.
TICK = 1.0
#: The same once nothing new comes and only the end is waited for, or for a step that has said that it gathers.
LAST_TICK = 0.1
#: Seconds without a hand-out or a done after which the done of a void hand-out is not waited for any longer.
VOID_PATIENCE = 10.0
#: Seconds that a step which waits for input is given to read the length of its next frame; microseconds do, on a machine that is free.
ANNOUNCEMENT_PATIENCE = 0.05
#: Seconds that the kill message may take to leave when the program ends.
GOODBYE_DEADLINE = 1.0
#: Seconds between two lines about the same wait for the transformation.
SAY_EVERY = 60.0


class Handout:
    """The third stage, and the input socket's side of the transformation."""

    def __init__(
        self,
        *,
        listener: Listener,
        ledger: FragmentLedger,
        roster: FragmentRoster,
        tally: Tally,
        start_timeout: float,
        return_timeout: float,
        kill_timeout: float,
        hangs: Hangs,
        kill_on_error: bool = True,
    ) -> None:
        self._hangs = hangs
        self._kill_timeout = kill_timeout
        self._kill_on_error = kill_on_error
        self._listener = listener
        self._ledger = ledger
        self._roster = roster
        self._times = tally.times
        self._start_timeout = start_timeout
        self._return_timeout = return_timeout
        self._connections: dict[Seat[Any, Any], InputConnection] = {}
        self._ever_connected = False
        self._nothing_new = False
        self._killing = False
        self._kill_due = trio.Event()
        self._say_at = SAY_EVERY

    # -- the input socket, served until the program ends

    async def serve(self, to_collect: trio.MemorySendChannel[Parting]) -> None:
        """Accept the transformation's input connections until cancelled; then let each hear the kill message."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    peer = await self._listener.accept()
                    nursery.start_soon(self._attend, peer, to_collect)
        finally:
            # Whoever connected in the last moment would otherwise connect again for ever.
            while (late := self._listener.accept_nowait()) is not None:
                if self._says_kill():
                    late.send(encode_frame(KILL_MESSAGE))
                late.close()

    async def _attend(self, peer: Peer, to_collect: trio.MemorySendChannel[Parting]) -> None:
        """Look after one connection until either side closes it."""
        seat = self._roster.sit(trio.current_time())
        connection = self._connections[seat] = InputConnection(peer, seat)
        if not self._ever_connected:
            self._ever_connected = True
            _log.info("the transformation is connected")
        closed_by_peer = False
        try:
            if self._killing:
                self._say_kill(connection)
            self._dispatch()
            self._reconsider()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.run_sender)
                await connection.until_closed()
                closed_by_peer = True
                nursery.cancel_scope.cancel("the connection is closed")
        finally:
            if not closed_by_peer and self._says_kill():
                connection.kill()
                with trio.move_on_after(GOODBYE_DEADLINE, shield=True):
                    await peer.flush()
            peer.close()
            del self._connections[seat]
            self._part(connection, to_collect)

    def _part(
        self, connection: InputConnection, to_collect: trio.MemorySendChannel[Parting]
    ) -> None:
        """Tell collect of a connection that is gone; what it held after its kill may still be finished by its output."""
        if connection.given_up:
            return
        held = self._roster.leave(connection.seat)
        # An announcement is made only when all before it has been read.
        unread = connection.peer.was_reset and not connection.is_announced
        if connection.killed and not unread:
            held, death = [], False
        else:
            # What was never read killed nobody; a kill message that was never read asked for nothing.
            was_read = connection.killed or not (unread and len(held) == 1)
            death = was_read and not connection.seat.is_doubtful
        to_collect.send_nowait(Parting([(entry, entry.hand_outs) for entry in held], death=death))

    def _says_kill(self) -> bool:
        """Whether the transformation is to be told that this is the end: if the step is done, and otherwise if wished."""
        return self._kill_on_error or self._killing

    # -- the stage

    async def run(
        self,
        *,
        from_download: trio.MemoryReceiveChannel[FragmentEntry],
        from_collect: trio.MemoryReceiveChannel[HandoutNews],
        from_settle: trio.MemoryReceiveChannel[FragmentEntry],
        to_settle: trio.MemorySendChannel[FragmentEntry],
        news: trio.MemorySendChannel[News],
        killed: trio.Event,
    ) -> None:
        """Hand out what comes; when no more comes and all is done, say kill, wait for the output to end, and give back the rest."""
        self._to_settle = to_settle
        with to_settle, news:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take_back, from_settle)
                nursery.start_soon(self._take_ready, from_download)
                nursery.start_soon(self._watch, news)
                nursery.start_soon(self._say_kill_when_due, killed)
                async for _ in promptly(from_collect):
                    self._dispatch()
                    self._reconsider()
                nursery.cancel_scope.cancel("the transformation's output has ended")
            self._give_back_all()

    async def _take_ready(self, from_download: trio.MemoryReceiveChannel[FragmentEntry]) -> None:
        async for entry in promptly(from_download):
            self._roster.add(entry)
            self._dispatch()
        self._nothing_new = True
        if self._roster.closed:
            self._give_back_all(but_out=True)
        self._reconsider()

    async def _take_back(self, from_settle: trio.MemoryReceiveChannel[FragmentEntry]) -> None:
        async for entry in from_settle:
            if entry.verdict is not Verdict.AGAIN:
                continue  # it was given back while it was on its way here
            if self._roster.closed:
                self._give_back(entry)
            else:
                self._ledger.again(entry)
                self._times.enter(entry.work, "ready")
                self._roster.add(entry)
                self._dispatch()
            self._reconsider()

    def _dispatch(self) -> None:
        if self._hangs.is_ending:
            return
        for seat, entry in self._roster.assign(trio.current_time(), self._fits):
            self._ledger.hand_out(entry)
            self._times.enter(entry.work, "transformation")
            self._connections[seat].send(describe(entry))

    def _fits(self, seat: Seat[Any, Any], entry: FragmentEntry) -> bool:
        connection = self._connections[seat]
        return not connection.is_announced or connection.fits(describe(entry))

    # -- the end

    def _reconsider(self) -> None:
        """Say kill if it is time: nothing new comes, all is handed out, and nothing is owed or the step starves.

        On a drain what is not with the transformation does not count.
        """
        if not self._nothing_new or self._kill_due.is_set() or self._roster.waiting:
            return
        if self._roster.closed:
            due = self._ledger.out() == 0 or self._may_hold_a_batch()
        else:
            settled = len(self._ledger) == 0
            left = self._may_hold_a_batch() or self._is_stuck()
            due = self._ever_connected and (settled or left)
        if due:
            self._kill_due.set()

    async def _say_kill_when_due(self, killed: trio.Event) -> None:
        await self._kill_due.wait()
        # Told to stop, and another sidecar will go on with this transformation: it would take a kill message for the step's end.
        if self._kill_on_error or not self._roster.closed:
            self._killing = self._roster.told_kill = True
            for connection in list(self._connections.values()):
                self._say_kill(connection)
        self._roster.take_back()
        killed.set()

    def _say_kill(self, connection: InputConnection) -> None:
        self._roster.kills_said += not connection.given_up
        connection.seat.told_kill = True
        connection.kill()

    def _give_back_all(self, *, but_out: bool = False) -> None:
        """Return to the queue what will not be worked here: everything, or what is not with the transformation."""
        self._roster.take_back()
        for entry in self._ledger:
            if entry.state is not State.OUT or not but_out:
                self._give_back(entry)

    def _give_back(self, entry: FragmentEntry) -> None:
        for fallen in self._ledger.give_back(entry):
            self._to_settle.send_nowait(fallen)

    # -- time

    async def _watch(self, news: trio.MemorySendChannel[News]) -> None:
        """Look at every tick whether the step is starved, whether it is there at all, and whether the end has come."""
        absent_since = trio.current_time()
        said = absent_since
        while True:
            tick = LAST_TICK if self._nothing_new or self._roster.gathered else TICK
            await trio.sleep(min(tick, self._hangs.tick))
            now = trio.current_time()
            self._reconsider()
            if self._roster.seats:
                absent_since = said = now
                self._tell_of_long_work(now)
                self._give_up_doubted(now)
                self._dispatch()  # a suspect that waits to be alone waits only so long
                if not self._killing:
                    await self._hangs.look(self._connections, now)
                await self._feed(now, news)
                self._close_what_fits_nothing()
                continue
            if self._ever_connected and not self._is_missed():
                absent_since = now
            elif not self._killing:
                self._check_absence(now - absent_since)
            if now - said >= SAY_EVERY:
                said = now
                _log.warning("waiting for the transformation", seconds=round(now - absent_since))

    def _tell_of_long_work(self, now: float) -> None:
        """Say at the first minute without a hand-out or a done, and then each time that the wait has doubled."""
        idle = self._roster.idle_for(now)
        if not self._roster.held or idle < SAY_EVERY:
            self._say_at = SAY_EVERY
        elif idle >= self._say_at:
            self._say_at *= 2
            _log.warning(
                "the transformation is at work and finishes nothing",
                seconds=round(idle),
                holds=self._roster.held,
                has_read_all=self._unread() == 0,
            )

    def _check_absence(self, absent: float) -> None:
        if not self._ever_connected and absent >= self._start_timeout:
            raise TransformationNeverCame(
                f"the transformation did not connect to {self._listener.path} within {absent:.0f} s"
                " (SIDECAR_TRANSFORMATION_START_TIMEOUT)"
            )
        if self._ever_connected and absent >= self._return_timeout:
            raise TransformationLost(
                f"the transformation left with {len(self._ledger)} fragments undone and did not return within"
                f" {absent:.0f} s (SIDECAR_TRANSFORMATION_RETURN_TIMEOUT)"
            )

    def _is_missed(self) -> bool:
        """Whether there is work for a transformation that has left."""
        return bool(self._roster.waiting or len(self._ledger) or self._nothing_new)

    def _is_starved(self) -> bool:
        return self._roster.is_starved(trio.current_time(), self._unread())

    def _may_hold_a_batch(self) -> bool:
        """Whether only the kill message can bring out what the transformation still holds: it starves, and all that hold something wait for input."""
        if not self._is_starved() or self._roster.unsure_held():
            return False
        # What is out and held by nobody was held by what has died, and is handed out again when that is judged.
        all_is_held = self._ledger.out() == self._roster.held
        return all_is_held and all(each.waits_for_input() for each in self._holding())

    def _is_stuck(self) -> bool:
        """Whether it is busy, as it seems, for so long that it is told kill all the same when nothing else is left."""
        idle = self._roster.idle_for(trio.current_time())
        return self._roster.held > 0 and idle >= max(self._kill_timeout, 1)

    def _holding(self) -> list[InputConnection]:
        return [each for each in self._connections.values() if each.seat.held]

    def _unread(self) -> int:
        others = [each for each in self._connections.values() if not each.is_announced]
        return sum(each.peer.unread() for each in others)

    async def _feed(self, now: float, news: trio.MemorySendChannel[News]) -> None:
        """Find out who waits for input while nothing is finished, and give more to them.

        The length of the next frame is sent, and not the frame. Who reads it waits in its read, so it gathers. Who is
        busy does not read it, and gets the rest when its done has come.
        """
        if not self._roster.waiting and self._is_stuck():
            news.send_nowait(News.ALL_STARVED)
        if self._killing or not self._is_starved():
            return
        self._give_up_void(now)
        for connection in self._holding():
            connection.announce()
        await trio.sleep(ANNOUNCEMENT_PATIENCE)
        holding = self._holding()
        waiting = [each for each in holding if each.waits_for_input()]
        if not waiting or self._kill_due.is_set():
            return
        if not self._roster.waiting:
            news.send_nowait(News.STARVED if len(waiting) < len(holding) else News.ALL_STARVED)
            return
        for connection in waiting:
            self._roster.deepen(connection.seat)
        _log.info("the transformation gathers: more at a time", depth=waiting[0].seat.depth)
        self._dispatch()

    def _give_up_void(self, now: float) -> None:
        if self._roster.idle_for(now) < VOID_PATIENCE:
            return
        for entry in self._roster.unsure_held():
            if entry.void:
                self._give_up(entry, now, self._ledger.give_up_void)

    def _give_up_doubted(self, now: float) -> None:
        """Hand out again what a done has come for that did not count, once its connection waits for input and so has finished it."""
        for connection in self._holding():
            doubted = [entry for entry in connection.seat.held if entry.doubted]
            if doubted and not connection.waits_for_input():
                connection.announce()
                continue
            for entry in doubted:
                self._give_up(entry, now, self._ledger.give_up_doubted)

    def _give_up(
        self,
        entry: FragmentEntry,
        now: float,
        give_up: Callable[[FragmentEntry], list[FragmentEntry]],
    ) -> None:
        self._roster.done(entry, now)
        if entry.state is not State.OUT:
            return  # its done has come, and is on its way here
        _log.warning(
            "a done is not waited for any longer; its fragment is handed out again",
            fragment_id=entry.fragment_id,
        )
        self._times.enter(entry.work, "results")
        for fallen in give_up(entry):
            self._to_settle.send_nowait(fallen)

    def _close_what_fits_nothing(self) -> None:
        """Close a connection that holds nothing and was announced less than the next fragment's description needs."""
        for connection in list(self._connections.values()):
            fits = all(self._fits(connection.seat, entry) for entry in self._roster.next_waiting())
            if not connection.seat.held and not fits:
                _log.info(
                    "closing an input connection: the next fragment is longer than was announced"
                )
                connection.peer.close()
