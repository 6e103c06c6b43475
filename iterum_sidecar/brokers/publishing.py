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

__all__ = ["LONGEST_DELAY", "RETRY_DELAY", "SAY_EVERY", "publish_until_safe"]

_log = get_log(__name__)

#: Seconds before a message that the broker would not take is offered again; doubled each time. A queue that has room again is to be
#: found out within 5 s.
RETRY_DELAY = 1.0
LONGEST_DELAY = 4.0
#: Seconds between two lines about the same message.
SAY_EVERY = 60.0


async def publish_until_safe(
    broker: Broker,
    queue: str,
    body: bytes,
    headers: Mapping[str, object] | None = None,
    *,
    durable: bool = False,
) -> None:
    """Publish one message and wait for its confirm; a queue that has vanished is made again.

    Raises:
        BrokerLost.
        MessageTooLarge.
    """
    delay = RETRY_DELAY
    told = -math.inf
    while True:
        await broker.ensure_queue(queue, durable=durable)
        try:
            await (await broker.publish(queue, body, headers)).wait()
            return
        except MessageUnroutable as error:
            if trio.current_time() - told >= SAY_EVERY:
                told = trio.current_time()
                _log.warning(
                    "the broker did not take a message; offering it again",
                    queue=queue,
                    reason=str(error),
                )
            await trio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)
