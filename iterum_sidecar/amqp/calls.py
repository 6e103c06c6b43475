"""Methods that are answered: one at a time on each channel, each with a deadline."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import ParkingLot

from iterum_sidecar.amqp.codec import encode_method
from iterum_sidecar.amqp.errors import ProtocolViolation, ReplyTimeout
from iterum_sidecar.amqp.methods import spec_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from pamqp.base import Frame as Method

    from iterum_sidecar.amqp.errors import AmqpError
    from iterum_sidecar.amqp.link import Link

# Declaring a quorum queue while its cluster elects can take RabbitMQ its own 15 s timeout; twice that is an outage.
REPLY_SECONDS = 30.0


class Calls:
    """The calls of one channel.

    AMQP answers in order and without a number, so the next request waits until the last has its reply. A reply that
    nobody awaits any more (its caller was cancelled, or the deadline passed) would be taken for the next one's:
    `abandon` is then called with the reason, and has to close the channel.
    """

    def __init__(self, link: Link, number: int, abandon: Callable[[str], None]) -> None:
        self._link = link
        self._number = number
        self._abandon = abandon
        self._request: Method | None = None
        self._reply: Method | None = None
        self._failure: AmqpError | None = None
        self._replied = ParkingLot()
        self._is_busy = False
        self._turn_over = ParkingLot()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Have the channel's calls to oneself, to make several closely one after the other.

        Unlike a trio.Lock, this tells those who wait what the channel ended with.
        """
        while self._is_busy:
            self._check()
            await self._turn_over.park()
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False
            self._turn_over.unpark()

    async def call(self, request: Method) -> Method:
        """Send a request and return its reply; raises ReplyTimeout, or what the channel ended with."""
        async with self.turn():
            return await self.call_in_turn(request)

    async def call_in_turn(self, request: Method) -> Method:
        """Do the same for a task that has the `turn` already."""
        self._check()
        frame = encode_method(request, self._number)
        self._request = request
        self._reply = None
        self._link.outbox.write(frame)
        try:
            return await self._wait_for_reply(request)
        except BaseException:
            # Also when the reply has come meanwhile: nobody has acted on what it says.
            if self._failure is None:
                self._abandon(f"nobody awaits the answer to {spec_name(request.name)} any more")
            raise
        finally:
            self._request = None

    async def _wait_for_reply(self, request: Method) -> Method:
        while True:
            with trio.move_on_after(REPLY_SECONDS):
                return await self._next_reply()
            # A broker that is short of memory or disk does not read from those who publish until that is over.
            if self._link.blocked is None:
                raise ReplyTimeout(spec_name(request.name), REPLY_SECONDS)

    async def _next_reply(self) -> Method:
        while self._reply is None:
            self._check()
            await self._replied.park()
        return self._reply

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure.again()

    def answer(self, reply: Method) -> None:
        """Take a method that is nothing else than a reply; raises ProtocolViolation if none was asked for."""
        if (
            self._request is None
            or self._reply is not None
            or reply.name not in self._request.valid_responses
        ):
            raise ProtocolViolation(f"{spec_name(reply.name)} was not asked for")
        self._reply = reply
        self._replied.unpark_all()

    def fail(self, failure: AmqpError) -> None:
        """End the call that waits, and all that are still to come, with `failure`."""
        self._failure = failure
        self._replied.unpark_all()
        self._turn_over.unpark_all()
