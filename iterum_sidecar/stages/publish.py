"""Publish: put the description of a stored output on its queue, and its lineage on the lineage queue.

Messages go out one behind the other without waiting; a second task waits for the broker's confirms, in the same order, and
tells the ledger which outputs are safe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import trio

from iterum_sidecar.brokers.port import MessageTooLarge, MessageUnroutable
from iterum_sidecar.brokers.publishing import Refusals, publish_until_safe
from iterum_sidecar.messages import encode_lineage
from iterum_sidecar.prompt_channels import promptly, send_promptly
from iterum_sidecar.telemetry.logs import get_log

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iterum_sidecar.brokers.port import Broker, Confirmation
    from iterum_sidecar.cargo import FragmentEntry, FragmentLedger, Parcel
    from iterum_sidecar.freight import Freight
    from iterum_sidecar.telemetry.tally import Tally

__all__ = ["Publish"]

_log = get_log(__name__)

#: Outputs that are published and not confirmed. A broker confirms in a millisecond or two; at a thousand outputs a second
#: a few dozen are on their way, and what goes beyond that is a broker that is busy, which more messages would not help.
UNCONFIRMED = 512


class _Sent(NamedTuple):
    """A message that the broker has been handed, and its promise."""

    queue: str
    body: bytes
    headers: Mapping[str, str] | None
    confirmation: Confirmation


class Publish:
    """The sixth stage. `lineage_queue` is None where lineage is off."""

    def __init__(
        self,
        *,
        broker: Broker,
        ledger: FragmentLedger,
        tally: Tally,
        freight: Freight,
        step: str,
        lineage_queue: str | None,
    ) -> None:
        self._broker = broker
        self._ledger = ledger
        self._tally = tally
        self._freight = freight
        self._step = step
        self._refusals = Refusals()
        self._lineage_queue = lineage_queue

    async def run(
        self,
        *,
        from_upload: trio.MemoryReceiveChannel[Parcel],
        to_settle: trio.MemorySendChannel[FragmentEntry],
    ) -> None:
        """Publish every output that comes; return when no more come and all are confirmed."""
        to_confirm, unconfirmed = trio.open_memory_channel[tuple["Parcel", list[_Sent]]](
            UNCONFIRMED
        )
        with to_settle:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._confirm, unconfirmed, to_settle)
                with to_confirm:
                    async for parcel in promptly(from_upload):
                        headers = self._tally.times.headers_of(parcel)
                        sent = [await self._send(parcel.queue, parcel.body, headers)]
                        if self._lineage_queue is not None:
                            lineage = encode_lineage(self._step, parcel.body)
                            sent.append(await self._send(self._lineage_queue, lineage))
                        await send_promptly(to_confirm, (parcel, sent))

    async def _send(
        self, queue: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> _Sent:
        return _Sent(queue, body, headers, await self._broker.publish(queue, body, headers))

    async def _confirm(
        self,
        unconfirmed: trio.MemoryReceiveChannel[tuple[Parcel, list[_Sent]]],
        to_settle: trio.MemorySendChannel[FragmentEntry],
    ) -> None:
        async for parcel, sent in promptly(unconfirmed):
            try:
                for each in sent:
                    await self._see_safe(each)
            except MessageTooLarge as refusal:
                self._tally.refused_results += 1
                _log.warning(
                    "a result is refused; its description is too long", reason=str(refusal)
                )
                fallen = self._ledger.output_refused(parcel.output, str(refusal))
            else:
                self._tally.outputs += 1
                self._tally.times.pass_output("publish", parcel)
                fallen = self._ledger.output_safe(parcel.output)
            self._freight.arrived(parcel.output)
            for entry in fallen:
                to_settle.send_nowait(entry)

    async def _see_safe(self, sent: _Sent) -> None:
        try:
            await sent.confirmation.wait()
        except MessageUnroutable as error:
            self._refusals.tell(sent.queue, error)
            # At once: it may have been refused together with one that was waited for and is taken by now.
            await publish_until_safe(
                self._broker, sent.queue, sent.body, sent.headers, refusals=self._refusals
            )
