"""Messages that came in, and what is owed for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from iterum_sidecar.amqp.errors import ProtocolViolation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from iterum_sidecar.amqp.consumer import Consumer
    from iterum_sidecar.amqp.properties import Headers, Properties


@final
class Delivery:
    """One message as it came to a consumer; not to be changed.

    `epoch` is that of the connection and `channel_identity` that of the channel it came on: unique in the
    process, so that an acknowledgement can never reach a channel that knows nothing of the delivery.
    """

    __slots__ = (
        "body",
        "channel_identity",
        "delivery_tag",
        "epoch",
        "exchange",
        "properties",
        "redelivered",
        "routing_key",
    )

    def __init__(
        self,
        body: bytes,
        properties: Properties,
        delivery_tag: int,
        redelivered: bool,
        exchange: str,
        routing_key: str,
        epoch: int,
        channel_identity: int,
    ) -> None:
        self.body: Final = body
        self.properties: Final = properties
        self.delivery_tag: Final = delivery_tag
        self.redelivered: Final = redelivered
        self.exchange: Final = exchange
        self.routing_key: Final = routing_key
        self.epoch: Final = epoch
        self.channel_identity: Final = channel_identity

    def __repr__(self) -> str:
        return (
            f"<Delivery {self.delivery_tag} of connection {self.epoch}, {len(self.body)} bytes,"
            f" routing key {self.routing_key!r}{', redelivered' if self.redelivered else ''}>"
        )

    @property
    def headers(self) -> Headers:
        """The headers of the message; empty when it has none."""
        return self.properties.headers


class Unacknowledged:
    """The delivery tags of one channel for which the broker still waits, in the order they came.

    The dict keeps that order, which is what makes it cheap to tell whether a `multiple` would take too much.
    """

    def __init__(self) -> None:
        self._consumers: dict[int, Consumer] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._consumers)

    def add(self, tag: int, consumer: Consumer) -> None:
        """Note a delivery; raises ProtocolViolation if its tag does not grow."""
        if tag <= self._last:
            raise ProtocolViolation(f"delivery tag {tag} after {self._last}")
        self._last = tag
        self._consumers[tag] = consumer

    def remove(self, tag: int) -> bool:
        """Forget a delivery; False when it is not outstanding."""
        return self._consumers.pop(tag, None) is not None

    def remove_many(self, tags: Iterable[int]) -> tuple[list[int], int]:
        """Forget deliveries, and return the tags of those that were outstanding, in order.

        The second is how many of them, from the first, may be acknowledged together because nothing else lies
        below the last of these.
        """
        mine = sorted({tag for tag in tags if tag in self._consumers})
        together = 0
        for tag, lowest in zip(mine, self._consumers, strict=False):
            if tag != lowest:
                break
            together += 1
        for tag in mine:
            del self._consumers[tag]
        return mine, together

    def forget_consumer(self, consumer: Consumer) -> None:
        """Forget the deliveries of a consumer, which the broker has taken back."""
        for tag in [tag for tag, owner in self._consumers.items() if owner is consumer]:
            del self._consumers[tag]

    def clear(self) -> None:
        """Forget everything: the channel is closed, and the broker has taken all back."""
        self._consumers.clear()
