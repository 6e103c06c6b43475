"""Publisher confirms: which published message is safe, refused or returned."""

from __future__ import annotations

import secrets
from typing import TypeAlias, final

from trio.lowlevel import ParkingLot

from iterum_sidecar.amqp.errors import AmqpError, MessageReturned, ProtocolViolation, PublishNacked

MessageName: TypeAlias = tuple[str, str, str]
"""What a caller's own message is known by when it is returned: its message-id, exchange and routing key."""


@final
class Confirmation:
    """The broker's word on one published message, to come or given."""

    __slots__ = ("_done", "_error", "_name", "_waiters")

    def __init__(self, name: MessageName | None) -> None:
        self._done = False
        self._error: AmqpError | None = None
        self._name = name
        self._waiters: ParkingLot | None = None

    def __repr__(self) -> str:
        if not self._done:
            return "<Confirmation outstanding>"
        return f"<Confirmation {self._error or 'confirmed'}>"

    @property
    def done(self) -> bool:
        """Whether the word has been given, so that `wait` returns or raises at once."""
        return self._done

    async def wait(self) -> None:
        """Return when the broker has taken responsibility for the message.

        Any number of tasks may wait, and wait again; a word already given costs no checkpoint, so many
        confirmations are best awaited in the order of their publishing. Raises PublishNacked, MessageReturned,
        ConnectionLost or ChannelClosed; after the last two the message may or may not be in a queue.
        """
        while not self._done:
            if self._waiters is None:
                self._waiters = ParkingLot()
            await self._waiters.park()
        if self._error is not None:
            raise self._error.again()

    def _settle(self, error: AmqpError | None) -> None:
        self._done = True
        self._error = error
        if self._waiters is not None:
            self._waiters.unpark_all()


class Confirmations:
    """The outstanding confirmations of one channel, by the sequence number that both sides count.

    A basic.return names no number, only the message. So a message that may be returned carries its number in its
    message-id; where the caller has set that property, the first outstanding message with that id and address is
    meant, since returns come in the order of publishing.
    """

    def __init__(self) -> None:
        self._outstanding: dict[int, Confirmation] = {}
        self._last = 0
        self._lowest = 1
        self._prefix = secrets.token_hex(6) + "-"

    def next_message_id(self) -> str:
        """Return a message-id for the next message, which `returned` will know."""
        return f"{self._prefix}{self._last + 1}"

    def add(self, name: MessageName | None) -> Confirmation:
        """Count a message as published; with its `name` where the message-id is the caller's own."""
        self._last += 1
        confirmation = self._outstanding[self._last] = Confirmation(name)
        return confirmation

    def settle(self, number: int, multiple: bool, acknowledged: bool) -> None:
        """Take a basic.ack or basic.nack; raises ProtocolViolation for a number that was never published."""
        if number > self._last or not (number or multiple):
            raise ProtocolViolation(f"a confirm of message {number}, where {self._last} were sent")
        error = None if acknowledged else PublishNacked()
        if not multiple:
            confirmation = self._outstanding.pop(number, None)
            if confirmation is not None:
                confirmation._settle(error)
            return
        # Zero stands for all that are outstanding.
        last = number or self._last
        for each in range(self._lowest, last + 1):
            confirmation = self._outstanding.pop(each, None)
            if confirmation is not None:
                confirmation._settle(error)
        self._lowest = max(self._lowest, last + 1)

    def returned(self, message_id: str | None, error: MessageReturned) -> None:
        """Take a basic.return, which comes before the ack of its message; raises ProtocolViolation."""
        number = self._number_in(message_id)
        if number is None:
            name = (message_id, error.exchange, error.routing_key)
            number = next(
                (each for each, other in self._outstanding.items() if other._name == name), None
            )
        if number is None:
            raise ProtocolViolation(f"the return of a message that is not outstanding: {error}")
        self._outstanding.pop(number)._settle(error)

    def _number_in(self, message_id: str | None) -> int | None:
        """Return the number in a message-id that was made here, if its message is outstanding."""
        if message_id is None or not message_id.startswith(self._prefix):
            return None
        digits = message_id.removeprefix(self._prefix)
        # No more digits than the longest number has, so that nobody makes us read a very long one.
        if not digits.isdecimal() or len(digits) > len(str(self._last)):
            return None
        confirmation = self._outstanding.get(int(digits))
        # One that carries a name is a caller's, who published what had been received with this id.
        return int(digits) if confirmation is not None and confirmation._name is None else None

    def fail(self, error: AmqpError) -> None:
        """Settle all that are outstanding with `error`: nobody will speak about them any more."""
        for confirmation in self._outstanding.values():
            confirmation._settle(error)
        self._outstanding.clear()
