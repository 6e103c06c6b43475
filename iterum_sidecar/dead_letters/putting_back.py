"""Putting dead letters back on the queue that they came from.

A letter is published again, and acknowledged when the broker has confirmed that. A crash in between leaves it in both places: it is
worked once more, and never lost.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, NamedTuple, TextIO

import trio

from iterum_sidecar import amqp
from iterum_sidecar.brokers.amqp import carriable
from iterum_sidecar.dead_letters.choosing import by_kind, what_stays
from iterum_sidecar.dead_letters.connecting import count_ready
from iterum_sidecar.dead_letters.errors import Misunderstood, NotDone
from iterum_sidecar.dead_letters.letter import fresh_properties, read_letter
from iterum_sidecar.dead_letters.reading import without_body
from iterum_sidecar.exit_codes import ServiceLost
from iterum_sidecar.local.progress import count, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iterum_sidecar.dead_letters.choosing import Choosing
    from iterum_sidecar.dead_letters.letter import Letter
    from iterum_sidecar.dead_letters.listing import Form, Listing
    from iterum_sidecar.dead_letters.place import Place
    from iterum_sidecar.dead_letters.reading import Reading

__all__ = ["PuttingBack"]

#: Letters that are published and not confirmed at a time.
_ON_THE_WAY: Final = 128
#: Seconds for the confirms of those, at an end before the end.
_LAST_WORDS: Final = 3.0


class _Sent(NamedTuple):
    """A letter that is published, and not acknowledged."""

    letter: Letter
    queue: str
    delivery: amqp.Delivery
    confirmation: amqp.Confirmation


class PuttingBack:
    """Puts letters back, and knows how far it is. `to` is the queue for all of them; empty: each goes where it came from.

    With `instead` it only finds out where each would go, and puts it down there.
    """

    changes: Final = True

    def __init__(
        self,
        form: Form,
        place: Place,
        *,
        to: str,
        seconds: float,
        instead: Listing | None = None,
    ) -> None:
        self._form = form
        self._place = place
        self._to = to
        self._seconds = seconds
        self._instead = instead
        self._is_there: dict[str, bool] = {}
        self._sent: deque[_Sent] = deque()
        self.back: Counter[str] = Counter()
        """Those that are on their queues again, or would be, by kind."""
        self.queues: Counter[str] = Counter()
        """The same by queue."""
        self.stranded: Counter[str] = Counter()
        """Those that stay because there is no such queue, by its name."""
        self.without_headers = 0
        """Those of `back` that have lost headers which no message of ours can carry."""
        self._reading: Reading | None = None

    async def run(self, reading: Reading, choosing: Choosing) -> None:
        """Go through the queue, and put back what is chosen.

        Raises:
            NotDone: nothing is chosen, or a queue takes no more.
            Misunderstood: the letters would go where they are.
            ServiceLost: the broker was lost, or gave no answer in time.
        """
        self._reading = reading
        if self._to == reading.queue:
            raise Misunderstood(f"{printable(self._to)} is where they are; --to another queue")
        if self._to and not await self._exists(self._to):
            raise NotDone(f"there is no queue {printable(self._to)}; {_HOW_TO_MAKE_IT}")
        async with reading.connection.open_channel(confirms=True) as channel:
            try:
                await self._go_through(reading, choosing, channel)
                while self._sent:
                    await self._take_off(reading)
            finally:
                with trio.move_on_after(_LAST_WORDS, shield=True):
                    await self._end(reading)

    async def _go_through(
        self, reading: Reading, choosing: Choosing, channel: amqp.Channel
    ) -> None:
        """Put back each that is chosen, as soon as it is certain that it is."""
        held: list[tuple[Letter, amqp.Delivery]] = []
        async with aclosing(reading.letters()) as letters:
            async for delivery in letters:
                letter = read_letter(delivery)
                if choosing.takes(letter):
                    if choosing.can_be_taken_back:
                        held.append((letter, delivery))
                    else:
                        await self._put_back(channel, reading, letter, delivery)
                if choosing.is_ambiguous:
                    held.clear()
        choosing.conclude()
        for letter, delivery in held:
            await self._put_back(channel, reading, letter, delivery)

    async def _put_back(
        self, channel: amqp.Channel, reading: Reading, letter: Letter, delivery: amqp.Delivery
    ) -> None:
        queue = self._to or self._home(letter)
        if not await self._exists(queue):
            self.stranded[queue] += 1
        elif self._instead is not None:
            self._instead.add(letter)
            self._count(letter, queue)
        else:
            await self._publish(channel, letter, queue, delivery)
            while len(self._sent) >= _ON_THE_WAY:
                await self._take_off(reading)

    def _home(self, letter: Letter) -> str:
        """Return the queue that a letter came from; where it does not say, that to which this dead-letter queue belongs."""
        return (
            letter.queue if letter.queue not in {"", self._place.queue} else self._place.input_queue
        )

    async def _exists(self, queue: str) -> bool:
        if queue not in self._is_there and self._reading is not None:
            self._is_there[queue] = await count_ready(self._reading.connection, queue) is not None
        return self._is_there[queue]

    async def _publish(
        self, channel: amqp.Channel, letter: Letter, queue: str, delivery: amqp.Delivery
    ) -> None:
        properties = fresh_properties(delivery.properties)
        with trio.move_on_after(self._seconds):
            try:
                confirmation = await channel.publish_soon(
                    delivery.body, routing_key=queue, properties=properties
                )
            except ValueError:
                # Another publisher's client has put there what ours cannot carry.
                self.without_headers += 1
                properties = properties._replace(headers=carriable(properties.headers))
                confirmation = await channel.publish_soon(
                    delivery.body, routing_key=queue, properties=properties
                )
            self._sent.append(_Sent(letter, queue, without_body(delivery), confirmation))
            return
        raise self._stuck()

    async def _take_off(self, reading: Reading) -> None:
        """Wait for the oldest confirm, and take that letter off the dead letters."""
        sent = self._sent[0]
        with trio.move_on_after(self._seconds):
            try:
                await sent.confirmation.wait()
            except (amqp.MessageReturned, amqp.PublishNacked) as error:
                self._sent.popleft()
                raise NotDone(
                    f"{printable(sent.queue)} did not take {sent.letter.name}: {error}; see whether the queue is full (its policy) or was"
                    " deleted"
                ) from None
            self._sent.popleft()
            reading.acknowledge(sent.delivery)
            self._count(sent.letter, sent.queue)
            return
        raise self._stuck()

    def _stuck(self) -> ServiceLost:
        return ServiceLost(
            f"the broker has taken no message for {self._seconds:g} s; it may be short of memory or disk (rabbitmqctl status, alarms)"
        )

    def _count(self, letter: Letter, queue: str) -> None:
        self.back[letter.kind] += 1
        self.queues[queue] += 1

    async def _end(self, reading: Reading) -> None:
        """Take off what is confirmed yet, however this ends: each that is not is in both places, and is worked twice."""
        while self._sent:
            try:
                await self._take_off(reading)
            except NotDone:
                continue  # it stays, and the first one is told
            except (ServiceLost, amqp.AmqpError):
                break

    @property
    def in_doubt(self) -> int:
        """How many may be on their queues again and are dead letters still, or may be: the broker was lost before it said so."""
        unheard = self._reading.unheard if self._reading is not None else 0
        return len(self._sent) + unheard

    def tell(self, output: TextIO, choosing: Choosing) -> None:
        """Write what was done, or would be, in a sentence or two, or as one object of JSON; nothing where nothing was begun."""
        if self._reading is None:
            return
        seen = self._reading.count
        if self._form == "json":
            fields = {
                "queue": self._place.queue,
                "total": seen,
                "back": self.back.total(),
                "by_kind": dict(self.back),
                "by_queue": dict(self.queues),
                "stranded": dict(self.stranded),
                "in_doubt": self.in_doubt,
            }
            if self._instead is not None:
                self._instead.write_json(output, {"dry_run": True} | fields)
            else:
                output.write(f"{json.dumps(fields)}\n")
            return
        if self._instead is not None and self.back:
            self._instead.write_table(output)
            output.write("\n")
        output.writelines(f"{line}\n" for line in self._told(seen))

    def _told(self, seen: int) -> Iterator[str]:
        total = self.back.total()
        if total:
            would_be = "would be" if self._instead else "is" if total == 1 else "are"
            shares = len(self.queues) > 1
            where = " and ".join(
                f"{printable(queue)} ({number:,})" if shares else printable(queue)
                for queue, number in sorted(self.queues.items())
            )
            yield f"{count(total, 'dead letter')} {would_be} on {where} again: {by_kind(self.back)}"
            yield what_stays(total, seen, self._place.queue)
        if self.without_headers:
            yield f"{self.without_headers:,} have lost headers that we cannot write"

    @property
    def problems(self) -> list[str]:
        """What of the request could not be done, or may not have been."""
        doubts = [f"{self.in_doubt:,} may be in both places: {_NOT_SAID}"] if self.in_doubt else []
        return doubts + [
            f"there is no queue {printable(queue)}, so {count(number, 'dead letter')} of it"
            f" {'stays' if number == 1 else 'stay'}; {_HOW_TO_MAKE_IT}"
            for queue, number in sorted(self.stranded.items())
        ]


_NOT_SAID: Final = "the broker did not say which"
_HOW_TO_MAKE_IT: Final = (
    "start a sidecar of the step, which declares it, or name another queue with --to"
)
