"""Settle: carry out the verdicts that have fallen in the ledger, and remove what the fragment left on the volume.

This is the only place where a delivery of a fragment is acknowledged or given back.
"""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.brokers.port import MessageTooLarge
from iterum_sidecar.brokers.publishing import SAY_EVERY, publish_until_safe
from iterum_sidecar.cargo import News
from iterum_sidecar.editions import TIME_HEADER
from iterum_sidecar.entries import DeadLetterKind, State, Verdict
from iterum_sidecar.prompt_channels import promptly
from iterum_sidecar.telemetry.logs import get_log

if TYPE_CHECKING:
    from iterum_sidecar.brokers.port import Broker
    from iterum_sidecar.cargo import FragmentEntry, FragmentLedger
    from iterum_sidecar.telemetry.tally import Tally
    from iterum_sidecar.volume import Volume

__all__ = ["Settle"]

_log = get_log(__name__)

#: Dead letters and struck fragments whose confirm is waited for at a time.
SLOW_VERDICTS = 16
#: The longest reason in a header, in bytes: a broker's frame must hold all of them.
_LONGEST_REASON = 2000


class Settle:
    """The last stage."""

    def __init__(
        self,
        *,
        broker: Broker,
        volume: Volume,
        ledger: FragmentLedger,
        tally: Tally,
        step: str,
        input_queue: str,
        dead_letter_queue: str,
        attempts_header: str,
    ) -> None:
        self._broker = broker
        self._volume = volume
        self._ledger = ledger
        self._tally = tally
        self._step = step
        self._input_queue = input_queue
        self._dead_letter_queue = dead_letter_queue
        self._attempts_header = attempts_header
        self._being_settled: set[FragmentEntry] = set()

    async def run(
        self,
        *,
        fallen: trio.MemoryReceiveChannel[FragmentEntry],
        to_handout: trio.MemorySendChannel[FragmentEntry],
        news: trio.MemorySendChannel[News],
    ) -> None:
        """Carry out every verdict that comes; return when no more can come and all are carried out."""
        limiter = trio.CapacityLimiter(SLOW_VERDICTS)
        with to_handout, news:
            async with trio.open_nursery() as nursery:
                async for entry in promptly(fallen):
                    if entry.state is State.CLOSED or entry in self._being_settled:
                        continue  # its verdict changed on the way here, and came twice by that
                    if entry.verdict is Verdict.AGAIN:
                        self._volume.remove_results(entry.work.results)
                        to_handout.send_nowait(entry)
                    elif entry.verdict in {Verdict.DEAD_LETTER, Verdict.STRIKE}:
                        self._being_settled.add(entry)
                        nursery.start_soon(self._settle_slowly, entry, news, limiter)
                    else:
                        self._settle(entry, news)

    async def _settle_slowly(
        self,
        entry: FragmentEntry,
        news: trio.MemorySendChannel[News],
        limiter: trio.CapacityLimiter,
    ) -> None:
        async with limiter:
            original = entry.deliveries[0]
            headers = dict(original.headers)
            if entry.verdict is Verdict.STRIKE:
                headers[self._attempts_header] = entry.attempts
                if entry.lost_to is DeadLetterKind.TIMED_OUT:
                    _log.warning(
                        "a fragment was not finished in time; it is tried again",
                        fragment_id=entry.fragment_id,
                        attempts=entry.attempts,
                    )
                else:
                    _log.warning(
                        "the transformation died; its fragment is tried again",
                        fragment_id=entry.fragment_id,
                        attempts=entry.attempts,
                    )
                await self._publish(self._input_queue, original.body, headers)
            else:
                headers |= self._why(entry)
                _log.warning(
                    "dead letter",
                    fragment_id=entry.fragment_id or None,
                    kind=entry.kind,
                    reason=entry.reason,
                    queue=self._dead_letter_queue,
                )
                await self._publish(self._dead_letter_queue, original.body, headers, durable=True)
        self._settle(entry, news)
        self._being_settled.discard(entry)

    async def _publish(
        self, queue: str, body: bytes, headers: dict[str, object], *, durable: bool = False
    ) -> None:
        """Publish a message until it is safe, even if the broker has come to take only smaller ones than when it took this one."""
        while True:
            try:
                await publish_until_safe(self._broker, queue, body, headers, durable=durable)
                return
            except MessageTooLarge as error:
                _log.warning(
                    "the broker does not take back a message that it has delivered; offering it again once a minute",
                    queue=queue,
                    reason=str(error),
                )
            await trio.sleep(SAY_EVERY)

    def _why(self, entry: FragmentEntry) -> dict[str, object]:
        return {
            "x-iterum-kind": str(entry.kind),
            "x-iterum-reason": entry.reason.encode()[:_LONGEST_REASON].decode(errors="ignore"),
            TIME_HEADER: datetime.now(UTC).isoformat(timespec="milliseconds"),
            "x-iterum-step": self._step,
            "x-iterum-queue": self._input_queue,
            "x-iterum-host": socket.gethostname(),
            self._attempts_header: entry.attempts,
        }

    def _settle(self, entry: FragmentEntry, news: trio.MemorySendChannel[News]) -> None:
        verdict = entry.verdict
        if verdict is Verdict.GIVE_BACK:
            self._tally.given_back += 1
            for delivery in entry.deliveries:
                self._broker.give_back(delivery)
        else:
            if verdict is Verdict.ACKNOWLEDGE:
                self._tally.fragments += 1
            elif verdict is Verdict.STRIKE:
                self._tally.struck += 1
            else:
                self._tally.dead_letters += 1
                self._tally.dead_letters_by_kind[str(entry.kind)] += 1
            for delivery in entry.deliveries:
                self._broker.acknowledge(delivery)
        self._tally.times.end(entry)
        self._clean(entry)
        self._ledger.close(entry)
        if len(self._ledger) == 0:
            news.send_nowait(News.IDLE)

    def _clean(self, entry: FragmentEntry) -> None:
        work = entry.work
        self._volume.remove_results(work.results)
        work.remove_files(self._volume)
        if work.share is not None:
            work.share.release()
            work.share = None
