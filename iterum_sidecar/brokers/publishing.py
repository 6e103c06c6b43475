"""Publishing one message until it is safe, whatever becomes of its queue meanwhile."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.brokers.port import MessageUnroutable
from iterum_sidecar.telemetry.logs import get_log

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iterum_sidecar.brokers.port import Broker

__all__ = ["LONGEST_DELAY", "RETRY_DELAY", "SAY_EVERY", "Refusals", "publish_until_safe"]

_log = get_log(__name__)

#: Seconds before a message that the broker would not take is offered again; doubled each time. A queue that has room again is to be
#: found out within 5 s.
RETRY_DELAY = 1.0
LONGEST_DELAY = 4.0
#: Seconds between two lines about refusals.
SAY_EVERY = 60.0


class Refusals:
    """Tells of messages that the broker would not take: of one a minute, however many are refused together."""

    def __init__(self) -> None:
        self._told_at = -math.inf

    def tell(self, queue: str, error: MessageUnroutable) -> None:
        """A message for a queue was refused, and is offered again."""
        now = trio.current_time()
        if now - self._told_at >= SAY_EVERY:
            self._told_at = now
            _log.warning(
                "the broker did not take a message; offering it again",
                queue=queue,
                reason=str(error),
            )


async def publish_until_safe(
    broker: Broker,
    queue: str,
    body: bytes,
    headers: Mapping[str, object] | None = None,
    *,
    durable: bool = False,
    refusals: Refusals | None = None,
) -> None:
    """Publish one message and wait for its confirm; a queue that has vanished is made again.

    `refusals` is who tells of refusals, where several messages have one.

    Raises:
        BrokerLost.
        MessageTooLarge.
    """
    delay = RETRY_DELAY
    refusals = refusals or Refusals()
    while True:
        await broker.ensure_queue(queue, durable=durable)
        try:
            await (await broker.publish(queue, body, headers)).wait()
            return
        except MessageUnroutable as error:
            refusals.tell(queue, error)
            await trio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)
