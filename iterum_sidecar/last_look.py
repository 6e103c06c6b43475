"""The last look at the input queue, when nothing is owed to it any more and the step would be done."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.brokers.port import LineLost
from iterum_sidecar.editions import was_worked
from iterum_sidecar.exit_codes import WorkLeft

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from iterum_sidecar.brokers.port import Broker, Consumer
    from iterum_sidecar.cargo import FragmentLedger

__all__ = ["look_once_more"]

#: Seconds that what came back to the queue after the end has to be recognised as settled, the broker being there.
LAST_LOOK_DEADLINE = 10.0
_LOOK_EVERY = 1.0


async def look_once_more(broker: Broker, consumer: Consumer, ledger: FragmentLedger) -> None:
    """See that the queue is still empty now that nothing is owed to it any more.

    A quorum queue can drop an acknowledgement that was sent just before its channel was closed; what comes back of what
    was worked here is recognised and acknowledged again.

    Raises:
        WorkLeft: something that was not worked here came to the queue.
    """
    give_up_at = trio.current_time() + LAST_LOOK_DEADLINE
    while (waiting := await consumer.reopen()) or consumer.may_get_back():
        if not waiting:
            await trio.sleep(_LOOK_EVERY)
            give_up_at = trio.current_time() + LAST_LOOK_DEADLINE
            continue
        if trio.current_time() >= give_up_at:
            return
        await consumer.resume()
        arrived: Sequence[Any] = ()
        # Another sidecar of this step may take it first.
        with suppress(LineLost), trio.move_on_after(_LOOK_EVERY):
            arrived = await consumer.receive()
        for delivery in arrived:
            if not was_worked(delivery, ledger):
                raise WorkLeft(
                    "messages came to the input queue after the transformation had been told to stop;"
                    " they are left there"
                )
            broker.acknowledge(delivery)
