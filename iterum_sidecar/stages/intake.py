"""Intake: take deliveries from the input queue, hold them against the contract, and let them in.

It also keeps the window (design, "The window of fragments in flight") and knows when the queue is at its end.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from iterum_sidecar.brokers.port import LineLost
from iterum_sidecar.cargo import FragmentCargo, Gathering, News
from iterum_sidecar.editions import (
    ATTEMPTS_HEADER,
    comes_again,
    count_in,
    fragment_edition,
    refusal_edition,
)
from iterum_sidecar.entries import Admission, DeadLetterKind, State
from iterum_sidecar.exit_codes import PrefetchTooSmall
from iterum_sidecar.messages import (
    MOST_GATHERED,
    MessageRefused,
    decode_remote_fragment,
    signature_of,
)
from iterum_sidecar.telemetry.logs import get_log

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from iterum_sidecar.brokers.port import Broker, Consumer
    from iterum_sidecar.cargo import FragmentEntry, FragmentLedger, IntakeNews
    from iterum_sidecar.telemetry.tally import Tally

__all__ = ["FIRST_WINDOW", "Intake"]

_log = get_log(__name__)

#: What a quorum queue counts by itself; deaths of connections count there too, so it makes a suspect at most.
_ACQUIRED_HEADER = "x-acquired-count"

#: The window when the operator set none: enough to keep 16 downloads and a connection busy.
FIRST_WINDOW = 32
LARGEST_WINDOW = 4096

#: So many dead letters in a row, with nothing processed between, are taken for a fault of the world.
DEAD_LETTERS_IN_A_ROW = 20
#: Seconds of the pause after that; doubled each time.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0

#: Seconds of starvation in one go before a window that cannot grow is called too small: what is dead-lettered or comes back
#: meanwhile may complete a batch.
TELL_OF_STARVATION_AFTER = 30.0
#: The news of it comes every second.
_STARVED_IN_ONE_GO = 2.5

#: Seconds between looks at the queue once upstream is finished, if nothing happens here.
_LOOK_EVERY = 1.0
#: Seconds between looks at what is in flight, where that is too much to take a new place in the line.
_COUNT_EVERY = 0.25


class Intake:
    """The first stage. `window` is the count of fragments that may be in flight; it grows unless `fixed`.

    `standstill_after` are the seconds of starvation after which a window that holds no whole batch is an error, and no warning.
    `allow_more_bytes` lets more onto the volume for a step that starves, and returns whether anything waited for that.
    """

    def __init__(
        self,
        *,
        consumer: Consumer,
        broker: Broker,
        ledger: FragmentLedger,
        tally: Tally,
        window: int,
        fixed: bool,
        attempts_allowed: int,
        pause_on_dead_letters: bool = True,
        standstill_after: float = math.inf,
        allow_more_bytes: Callable[[], bool] = lambda: False,
    ) -> None:
        self._standstill_after = standstill_after
        self._allow_more_bytes = allow_more_bytes
        self._most_dead_letters = DEAD_LETTERS_IN_A_ROW if pause_on_dead_letters else math.inf
        self._consumer = consumer
        self._broker = broker
        self._ledger = ledger
        self._tally = tally
        self._window = window
        self._fixed = fixed
        self._attempts_allowed = attempts_allowed
        self._arrived: deque[Any] = deque()
        """What was received and not looked at yet."""
        self._in_line = True
        self._places = 0
        """How many times a place in the line was taken again."""
        self._finished = False
        self._batch = 0
        """How many fragments the transformation has said that it gathers at a time."""
        self._allowed_for_repeats = 0
        """How many messages more than the window may be unacknowledged, because they were other messages of the same fragments."""
        self._told_of_starvation = False
        self._starved_since = self._starved_last = 0.0

    @property
    def window(self) -> int:
        """How many fragments may be in flight now."""
        return self._window

    async def run(
        self,
        *,
        news: trio.MemoryReceiveChannel[IntakeNews],
        to_download: trio.MemorySendChannel[FragmentEntry],
        to_settle: trio.MemorySendChannel[FragmentEntry],
        stop: trio.Event,
    ) -> None:
        """Let fragments in until the queue is at its end or `stop` is set; what had arrived by then is given back.

        Raises:
            PrefetchTooSmall: the window is fixed, there is more in the queue, and no batch can be complete.
        """
        self._to_download = to_download
        self._to_settle = to_settle
        with to_download, to_settle:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take)
                nursery.start_soon(self._steer, news, nursery.cancel_scope)
                await stop.wait()
                nursery.cancel_scope.cancel("told to take nothing more")
            for delivery in await self._consumer.stop():
                self._broker.give_back(delivery)

    async def _take(self) -> None:
        arrived = self._arrived
        pause = FIRST_PAUSE
        try:
            while True:
                try:
                    arrived.extend(await self._consumer.receive())
                except LineLost as loss:
                    arrived.clear()  # all of it comes again
                    await self._take_new_place(loss)
                while arrived:
                    if self._ledger.dead_letters_in_a_row < self._most_dead_letters:
                        pause = FIRST_PAUSE
                    else:
                        _log.warning(
                            "pausing: nothing but dead letters",
                            in_a_row=self._ledger.dead_letters_in_a_row,
                            pause_seconds=pause,
                        )
                        await trio.sleep(pause)
                        pause = min(pause * 2, LONGEST_PAUSE)
                    self._admit(arrived.popleft())
        finally:
            while arrived:
                self._broker.give_back(arrived.popleft())

    async def _take_new_place(self, loss: LineLost) -> None:
        """Take a place in the line again. What is in flight goes on meanwhile, and only its acknowledgements are void.

        It may not be more than a window, so that no more than two are in flight however often the place is lost.
        """
        if loss.refused:  # otherwise the broker is away, which is told where it is waited for
            _log.warning(
                "the broker took the place in the queue's line away; taking another, and going on with what is in flight",
                reason=str(loss),
                in_flight=len(self._ledger),
            )
        self._in_line = False
        # An event for this would cost every fragment a wake-up, and this is rare.
        while len(self._ledger) > self._window:  # noqa: ASYNC110
            await trio.sleep(_COUNT_EVERY)
        await self._consumer.resume()
        self._in_line = True
        self._places += 1
        _log.info("in the queue's line again", in_flight=len(self._ledger))

    def _admit(self, delivery: Any) -> None:  # noqa: ANN401 - each broker has deliveries of its own
        try:
            message = decode_remote_fragment(delivery.body)
        except MessageRefused as error:
            self._refuse(delivery, str(error), DeadLetterKind.UNREADABLE)
            return
        attempts = count_in(delivery.headers, ATTEMPTS_HEADER)
        edition = fragment_edition(message, delivery.headers)
        if self._comes_again(delivery, edition):
            return
        admission, entry = self._ledger.admit(
            message.metadata.fragment_id,
            signature_of(message),
            delivery,
            FragmentCargo(message),
            attempts=attempts,
            suspect=count_in(delivery.headers, _ACQUIRED_HEADER) > 1,
            edition=edition,
        )
        if admission is Admission.NEW and entry is not None:
            self._tally.times.begin(entry.work, delivery.headers)
            if attempts >= self._attempts_allowed:
                reason = f"the transformation died on it ({attempts} attempts)"
                kind = DeadLetterKind.TRANSFORMATION_DIED
                for fallen in self._ledger.reject(entry, reason, kind):
                    self._to_settle.send_nowait(fallen)
            else:
                self._to_download.send_nowait(entry)
        elif admission is Admission.SETTLED:
            self._tally.repeated += 1
            self._broker.acknowledge(delivery)
        elif admission is Admission.JOINED:
            self._tally.repeated += 1
        else:
            reason = "another fragment of this ID, with other files, is in flight or settled"
            self._refuse(delivery, reason, DeadLetterKind.CONFLICT)

    def _refuse(self, delivery: Any, reason: str, kind: DeadLetterKind) -> None:  # noqa: ANN401
        edition = refusal_edition(delivery, kind)
        if self._comes_again(delivery, edition):
            return
        cargo = FragmentCargo(None, stage="results")
        self._tally.times.begin(cargo, delivery.headers)
        entry = self._ledger.admit_unreadable(delivery, cargo, reason, kind, edition)
        self._to_settle.send_nowait(entry)

    def _comes_again(self, delivery: Any, edition: Hashable) -> bool:  # noqa: ANN401
        """Acknowledge, as it was before, what only `comes_again`."""
        if not comes_again(delivery, edition, self._ledger):
            return False
        self._tally.repeated += 1
        self._broker.acknowledge(delivery)
        return True

    async def _steer(
        self, news: trio.MemoryReceiveChannel[IntakeNews], scope: trio.CancelScope
    ) -> None:
        """Act on what the stages behind tell: let the window grow, and find the end of the queue."""
        while True:
            told: list[IntakeNews] = []
            with trio.move_on_after(_LOOK_EVERY if self._finished else float("inf")):
                told = await _receive_all(news)
            if News.FINISHED in told:
                self._finished = True
                _log.info("upstream is finished")
            for item in told:
                if isinstance(item, Gathering):
                    self._batch = max(self._batch, item.batch)
                    await self._hold(item.fragments)
            starved = [item for item in told if item in {News.STARVED, News.ALL_STARVED}]
            all_starved = starved[-1:] == [News.ALL_STARVED]
            if self._finished and await self._at_the_end(starved=all_starved):
                scope.cancel("the queue is at its end")
                return
            # Bytes come first: what waits for room on the volume is in the window already.
            if starved and not self._allow_more_bytes():
                await self._grow()

    async def _hold(self, fragments: int) -> None:
        """Let the window hold what the transformation gathers at a time, and as many again on their way to it."""
        wanted = min(2 * fragments, MOST_GATHERED)
        await self._consumer.hold(min(wanted, self._window))
        if self._window >= wanted:
            return
        if not self._fixed:
            increment, self._window = wanted - self._window, wanted
            await self._consumer.grow(increment)
            _log.info("the window grows: the transformation gathers", window=self._window)
        elif self._window < fragments and not self._standstill_is_an_error:
            self._tell_of_starvation(fragments)

    @property
    def _standstill_is_an_error(self) -> bool:
        """Whether no batch can be complete, whatever comes or goes, and that ends the program."""
        return self._batch > self._window and self._standstill_after < math.inf

    async def _grow(self) -> None:
        waiting = await self._consumer.waiting()
        if waiting and await self._allow_for_repeats():
            return
        if self._fixed or self._window >= LARGEST_WINDOW:
            seconds = self._starved_for(waiting)
            if self._standstill_is_an_error and seconds >= self._standstill_after:
                raise PrefetchTooSmall(self._batch, self._window)
            if seconds >= TELL_OF_STARVATION_AFTER:
                self._tell_of_starvation(self._window + 1)
            return
        if waiting:
            increment = min(self._window, LARGEST_WINDOW - self._window)
            await self._consumer.grow(increment)
            self._window += increment
            _log.info("the window grows: the transformation gathers", window=self._window)

    async def _allow_for_repeats(self) -> bool:
        """Let more messages in where several are of one fragment: the window is one of fragments. Returns whether that was needed."""
        repeats = sum(len(entry.deliveries) > 1 for entry in self._ledger)
        increment = repeats - self._allowed_for_repeats
        if increment <= 0:
            return False
        self._allowed_for_repeats = repeats
        await self._consumer.grow(increment)
        return True

    def _tell_of_starvation(self, needed: int) -> None:
        if not self._told_of_starvation:
            self._told_of_starvation = True
            _log.warning(
                "the transformation holds all that may be in flight and finishes none; if it gathers,"
                " it needs a larger MQ_PREFETCH_COUNT (prefetch_count of the step)",
                window=self._window,
                needed_at_least=needed,
            )

    def _starved_for(self, waiting: int) -> float:
        """Return for how many seconds the step has been starved in one go while there were messages for it."""
        now = trio.current_time()
        if not waiting or now - self._starved_last > _STARVED_IN_ONE_GO:
            self._starved_since = now
        self._starved_last = now
        return now - self._starved_since

    async def _at_the_end(self, *, starved: bool) -> bool:
        """Tell whether the queue is empty and nothing more is needed of it.

        Either nothing is in flight; then it is looked at twice, the second time on a channel that owes nothing.
        Or all that is in flight is with a starved transformation, which may hold an incomplete last batch.
        """
        ledger, consumer = self._ledger, self._consumer
        places = self._places
        if not self._may_end(places):
            return False
        if len(ledger) == 0:
            if await consumer.waiting() or len(ledger):
                return False
            if await consumer.reopen() == 0 and len(ledger) == 0 and self._may_end(places):
                return True
            await consumer.resume()
            return False
        if not starved or not self._all_is_with_the_step():
            return False
        if await consumer.waiting():
            return False
        arrived = await consumer.stop()
        # What came before that may have been let in meanwhile.
        if not arrived and self._all_is_with_the_step() and self._may_end(places):
            return True
        for delivery in arrived:
            self._admit(delivery)
        await consumer.resume()
        return False

    def _all_is_with_the_step(self) -> bool:
        return all(entry.state in {State.OUT, State.DONE} for entry in self._ledger)

    def _may_end(self, places: int) -> bool:
        """Whether all that the queue holds would be seen, and has been in the line since the count of places was `places`.

        While a place is taken again, and before the broker misses a connection, it shows less than it holds.
        """
        steady = self._in_line and self._places == places
        return steady and not self._arrived and not self._consumer.may_get_back()


async def _receive_all(news: trio.MemoryReceiveChannel[IntakeNews]) -> list[IntakeNews]:
    """Return what has been told, at least one item: starvation that was told each second while the broker was away counts once."""
    told = [await news.receive()]
    with suppress(trio.WouldBlock):
        while True:
            told.append(news.receive_nowait())
    return told
