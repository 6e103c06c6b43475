"""Every error of this package.

The tree is small on purpose: a supervisor asks `retryable`, a caller asks for the type.

    AmqpError
    ├── ConnectError                  the connection never came to be
    │   ├── HandshakeTimeout
    │   ├── EndedAfterTls
    │   └── AccessRefused
    ├── ConnectionLost                it was there, and is gone
    │   ├── ConnectionClosedByBroker
    │   └── ProtocolViolation
    ├── ChannelClosed
    ├── ChannelsExhausted
    ├── ReplyTimeout
    ├── ConsumerCancelled
    ├── PublishNacked
    └── MessageReturned
"""

from __future__ import annotations

import copy
from typing import Self

CONTENT_TOO_LARGE = 311
CONNECTION_FORCED = 320
ACCESS_REFUSED = 403
RESOURCE_LOCKED = 405
PRECONDITION_FAILED = 406
RESOURCE_ERROR = 506
NOT_ALLOWED = 530
INTERNAL_ERROR = 541

# An operator or a failing node ends connections with these; the next connection may well live.
_RETRYABLE_CONNECTION_CODES = frozenset({CONNECTION_FORCED, RESOURCE_ERROR, INTERNAL_ERROR})


class AmqpError(Exception):
    """The base of all errors that this package raises.

    `retryable` says whether the same thing may succeed on a new connection; `told` whether anybody has been told.
    """

    retryable: bool = True
    told: bool = False

    def again(self) -> Self:
        """Return a new exception that says the same.

        One event ends many waiters; each raises an object of its own, since a traceback belongs to one task.
        """
        self.told = True
        twin = copy.copy(self)
        twin.__cause__ = self.__cause__
        return twin


class ConnectError(AmqpError):
    """No connection could be made: no route, nobody listening, TLS refused, or no AMQP spoken there."""

    def __init__(self, text: str, retryable: bool = True) -> None:
        super().__init__(text, retryable)
        self.text = text
        self.retryable = retryable

    def __str__(self) -> str:
        return self.text


class HandshakeTimeout(ConnectError):
    """The broker did not answer one step of the handshake in time; `step` names it."""

    def __init__(self, step: str, seconds: float) -> None:
        super().__init__(f"no {step} from the broker within {seconds:g} s")
        self.args = (step, seconds)
        self.step = step
        self.seconds = seconds


class EndedAfterTls(ConnectError):
    """The broker ended the connection between the TLS handshake and its own first word.

    With TLS 1.3 it looks at the client's certificate only then. Its alert says what is wrong with it, but is overtaken
    by the reset of the connection as often as not.
    """


class AccessRefused(ConnectError):
    """The broker knows the user or the virtual host not, or not together; names both, never the password."""

    def __init__(self, user: str, vhost: str, code: int, text: str) -> None:
        super().__init__(f"user {user!r}, virtual host {vhost!r}: {code} {text}", retryable=False)
        self.args = (user, vhost, code, text)
        self.user = user
        self.vhost = vhost
        self.code = code


class ConnectionLost(AmqpError):
    """The connection ended while somebody still needed it."""


class ConnectionClosedByBroker(ConnectionLost):
    """The broker closed the connection and said why: its reply `code` and `text`."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text
        self.retryable = code in _RETRYABLE_CONNECTION_CODES

    def __str__(self) -> str:
        return f"the broker closed the connection: {self.code} {self.text}"


class ProtocolViolation(ConnectionLost):
    """The peer sent what AMQP 0-9-1 does not allow at this point, so the connection was dropped."""


class ChannelClosed(AmqpError):
    """The channel is closed.

    `code`, `text` and `method` (such as `"queue.declare"`) are the broker's; `code` is None when the channel was
    closed on this side, and `method` None when no single method was at fault.
    """

    def __init__(self, code: int | None, text: str, method: str | None = None) -> None:
        super().__init__(code, text, method)
        self.code = code
        self.text = text
        self.method = method
        # A 406 that blames no method is an acknowledgement that came too late, not a mismatch of declarations.
        self.retryable = (
            code is None
            or code == RESOURCE_LOCKED
            or (code == PRECONDITION_FAILED and method is None)
        )

    def __str__(self) -> str:
        if self.code is None:
            return f"the channel is closed: {self.text}"
        blamed = f" (in answer to {self.method})" if self.method else ""
        return f"the channel was closed: {self.code} {self.text}{blamed}"


class ChannelsExhausted(AmqpError):
    """All channels that were negotiated for this connection are open; `limit` is their number."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"all {self.limit} channels of the connection are in use"


class ReplyTimeout(AmqpError):
    """The broker did not answer `method` within `seconds`; the channel has been closed."""

    def __init__(self, method: str, seconds: float) -> None:
        super().__init__(method, seconds)
        self.method = method
        self.seconds = seconds

    def __str__(self) -> str:
        return f"no answer to {self.method} within {self.seconds:g} s"


class ConsumerCancelled(AmqpError):
    """The broker cancelled the consumer of `queue`: its queue was deleted, moved, or waited too long for it."""

    def __init__(self, queue: str) -> None:
        super().__init__(queue)
        self.queue = queue

    def __str__(self) -> str:
        return f"the broker cancelled the consumer of {self.queue!r}"


class PublishNacked(AmqpError):
    """The broker could not take responsibility for the message (basic.nack)."""

    def __str__(self) -> str:
        return "the broker refused responsibility for the message (basic.nack)"


class MessageReturned(AmqpError):
    """A mandatory message reached no queue; `code` and `text` are the broker's."""

    retryable = False

    def __init__(self, code: int, text: str, exchange: str, routing_key: str) -> None:
        super().__init__(code, text, exchange, routing_key)
        self.code = code
        self.text = text
        self.exchange = exchange
        self.routing_key = routing_key

    def __str__(self) -> str:
        return f"returned from exchange {self.exchange!r}, routing key {self.routing_key!r}: {self.code} {self.text}"
