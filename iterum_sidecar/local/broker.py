"""The broker of a local run: queues in memory in front of the journal.

A page of each queue is in memory, the rest is read from the journal when it is needed. Whatever a sidecar publishes,
acknowledges or dead-letters is told to the journal at once, in that order, so a confirmation has nothing to wait for: a
crash that loses the one loses what came after it too.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, final

import msgspec
from msgspec import Meta, Struct

from iterum_sidecar.brokers.memory import MemoryBroker, MemoryConfirmation, Message
from iterum_sidecar.editions import ATTEMPTS_HEADER
from iterum_sidecar.local.journal import JournalState, StepRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from iterum_sidecar.brokers.memory import MemoryConsumer, MemoryDelivery
    from iterum_sidecar.local.journal import Journal

__all__ = ["JournalBroker", "SetAside", "StepBroker", "fragment_id_of"]

#: Messages of a queue that are in memory at most, besides those in flight; a window of the sidecar is 32 to begin with.
PAGE = 256


class _Identified(Struct):
    """As much of a remote fragment as says who it is."""

    class Metadata(Struct):
        """Its ID and what it came of."""

        fragment_id: str
        predecessors: Annotated[list[str], Meta(max_length=1_000_000)] = []

    metadata: Metadata


_decoder = msgspec.json.Decoder(_Identified)


def fragment_id_of(description: bytes) -> str:
    """Return the ID of a fragment by its description."""
    return _decoder.decode(description).metadata.fragment_id


@dataclass(frozen=True, slots=True)
class SetAside:
    """A fragment that a step cannot finish."""

    step: str
    description: bytes
    reason: str


class _Backlog:
    """What the journal has for a channel, as the rest of its queue."""

    def __init__(self, journal: Journal, channel: str) -> None:
        self._journal = journal
        self._channel = channel
        self._after = 0
        self._left = journal.count(channel, JournalState.WAITING)

    def __len__(self) -> int:
        return self._left

    def take(self) -> list[Message]:
        """Remove a page."""
        page = self._journal.waiting(self._channel, self._after, PAGE)
        self._left = self._left - len(page) if page else 0
        if page:
            self._after = page[-1].number
        return [
            Message(row.body, {ATTEMPTS_HEADER: row.attempts} if row.attempts else {}, row.number)
            for row in page
        ]

    def add(self, number: int, *, here: bool) -> None:
        """A fragment was written to the journal behind all others; `here` if its message is in memory already."""
        if here:
            self._after = number
        else:
            self._left += 1


@final
class JournalBroker(MemoryBroker):
    """All queues of one local run. `queues` tells the channel of each."""

    def __init__(self, journal: Journal, queues: Mapping[str, str]) -> None:
        super().__init__()
        self._journal = journal
        self._channels = dict(queues)
        self._backlogs = {queue: _Backlog(journal, channel) for queue, channel in queues.items()}
        for queue, backlog in self._backlogs.items():
            self.back(queue, backlog)

    def channel_of(self, queue: str) -> str:
        """Return the channel that a queue is."""
        return self._channels[queue]

    def enqueue(self, queue: str, number: int, body: bytes) -> None:
        """Queue what has just been written to the journal under this number."""
        backlog = self._backlogs[queue]
        here = not backlog and self.waiting(queue) < PAGE
        backlog.add(number, here=here)
        if here:
            self.put_numbered(queue, Message(body, {}, number))
        else:
            self.deliver(queue)


@final
class StepBroker:
    """`brokers.port.Broker` as one sidecar of a local run sees it.

    Every output is told to the journal as made by `step`, whose fingerprint is `made_by`; `ancestry` is what a gathered one depends on besides its
    predecessors. `gathers` is whether the step is known to gather, and `says_gathers` whether it has said so by now: a batch of one counts
    as gathered too. `is_premature` tells of a result of so many predecessors whether it was made only because the run is being stopped.
    """

    def __init__(
        self,
        broker: JournalBroker,
        journal: Journal,
        *,
        step: str,
        made_by: str,
        ancestry: str,
        input_queue: str,
        dead_letter_queue: str,
        set_aside: Callable[[SetAside], None],
        gathers: bool,
        says_gathers: Callable[[], bool],
        is_premature: Callable[[int], bool],
    ) -> None:
        self._broker = broker
        self._journal = journal
        self._step = step
        self._made_by = made_by
        self._ancestry = ancestry
        self._input_queue = input_queue
        self._dead_letter_queue = dead_letter_queue
        self._set_aside = set_aside
        self._gathers = gathers
        self._says_gathers = says_gathers
        self._is_premature = is_premature
        self._fruitful: set[str] = set()
        """What gathered results came of, until it is acknowledged."""
        self._unfinished: Counter[str] = Counter()
        """Fragments that were struck or set aside, or gathered too early: to acknowledge them is not to finish them."""

    def trouble(self) -> str:
        """As `Broker.trouble`."""
        return self._broker.trouble()

    async def look(self, queue: str) -> int:
        """As `Broker.look`."""
        return await self._broker.look(queue)

    async def ensure_queue(self, queue: str, *, durable: bool = False) -> None:
        """As `Broker.ensure_queue`."""
        await self._broker.ensure_queue(queue, durable=durable)

    def consume(self, queue: str, window: int) -> AbstractAsyncContextManager[MemoryConsumer]:
        """As `Broker.consume`."""
        return self._broker.consume(queue, window)

    async def publish(
        self, queue: str, body: bytes, headers: Mapping[str, Any] | None = None
    ) -> MemoryConfirmation:
        """As `Broker.publish`; it is in the journal when this returns."""
        described = _decoder.decode(body).metadata
        if queue == self._dead_letter_queue:
            reason = str((headers or {}).get("x-iterum-reason", ""))
            self._unfinished[described.fragment_id] += 1
            self._journal.fail(described.fragment_id, self._made_by, reason)
            self._set_aside(SetAside(self._step, body, reason))
        elif queue == self._input_queue and headers:
            self._unfinished[described.fragment_id] += 1
            self._journal.strike(described.fragment_id, int(headers.get(ATTEMPTS_HEADER, 0)))
            self._broker.put(queue, body, headers)
        elif self._is_premature(len(described.predecessors)):
            # An incomplete batch: the next run gathers its fragments again, together with those that are to come.
            self._unfinished.update(described.predecessors)
        else:
            self._publish_output(queue, body, described)
        return MemoryConfirmation()

    def _publish_output(self, queue: str, body: bytes, described: _Identified.Metadata) -> None:
        self._note_gathering(len(described.predecessors))
        if self._gathers:
            self._fruitful.update(described.predecessors)
        published = self._journal.publish(
            described.fragment_id,
            producer=self._step,
            made_by=self._made_by,
            channel=self._broker.channel_of(queue),
            body=body,
            predecessors=described.predecessors,
            gathered=self._ancestry if self._gathers else None,
        )
        if published.number is not None:
            self._broker.enqueue(queue, published.number, body)

    def _note_gathering(self, predecessors: int) -> None:
        """A step that has said that it gathers, or that is seen to, does so for good."""
        if not self._gathers and (predecessors > 1 or self._says_gathers()):
            self._gathers = True
            record = StepRecord(complete=False, gathers=True, ancestry=self._ancestry)
            self._journal.note_step(self._made_by, record)

    def acknowledge(self, delivery: MemoryDelivery) -> None:
        """As `Broker.acknowledge`; the journal has the fragment as finished, unless it was struck or set aside."""
        fragment_id = fragment_id_of(delivery.body)
        self._note_gathering(0)
        fruitless = self._gathers and fragment_id not in self._fruitful
        self._fruitful.discard(fragment_id)
        if self._unfinished[fragment_id]:
            self._unfinished[fragment_id] -= 1
        else:
            del self._unfinished[fragment_id]
            # Of a batch that was cut short nothing may have come because it was too short.
            if not (fruitless and self._is_premature(0)):
                self._journal.finish(fragment_id, self._made_by)
        self._broker.acknowledge(delivery)

    def give_back(self, delivery: MemoryDelivery) -> None:
        """As `Broker.give_back`."""
        self._broker.give_back(delivery)

    async def flush(self) -> None:
        """As `Broker.flush`."""
        await self._broker.flush()
