"""The last look at the input queue: nothing that was not worked here is acknowledged, and no end is believed too early."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio

from iterum_sidecar.brokers.port import LineLost
from iterum_sidecar.cargo import FragmentCargo
from iterum_sidecar.exit_codes import WorkLeft
from iterum_sidecar.identity import OutputIdentity
from iterum_sidecar.last_look import LAST_LOOK_DEADLINE, look_once_more
from iterum_sidecar.ledger import Ledger
from iterum_sidecar.messages import decode_remote_fragment, signature_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iterum_sidecar.brokers.port import Broker, Consumer

TestLedger = Ledger[Any, FragmentCargo]


@dataclass(eq=False)
class Message:
    """One delivery of a fragment of that ID."""

    letter: str
    headers: dict[str, Any] = field(default_factory=dict)
    redelivered: bool = True

    @property
    def body(self) -> bytes:
        file = {"name": "x", "path": "iterum_data/x", "bucket": "b"}
        return json.dumps({"files": [file], "metadata": {"fragment_id": self.letter * 64}}).encode()


class Queue:
    """The queue, the place in its line, and the broker of both."""

    def __init__(self, *messages: Message) -> None:
        self.messages = list(messages)
        self.acknowledged: list[Message] = []
        self.owed_until = 0.0
        """When the broker has noticed the loss of a connection."""
        self.coming: tuple[Message, ...] = ()
        """What is in the queue when it has."""
        self.lines_to_lose = 0
        self.delivers = True
        self.looks: list[float] = []
        self.in_line = False

    async def reopen(self) -> int:
        await trio.lowlevel.checkpoint()
        self.looks.append(trio.current_time())
        self.in_line = False
        if not self.may_get_back() and self.coming:
            self.messages += self.coming
            self.coming = ()
        return len(self.messages)

    async def resume(self) -> None:
        await trio.lowlevel.checkpoint()
        self.in_line = True

    async def receive(self) -> Sequence[Message]:
        assert self.in_line
        if self.lines_to_lose:
            self.lines_to_lose -= 1
            raise LineLost("cut", refused=False)
        if not self.delivers:
            await trio.sleep_forever()
        arrived, self.messages = self.messages, []
        return arrived

    def may_get_back(self) -> bool:
        return trio.current_time() < self.owed_until

    def acknowledge(self, message: Message) -> None:
        self.acknowledged.append(message)


@pytest.fixture
def ledger() -> TestLedger:
    """A ledger that has settled the fragments a and b."""
    ledger: TestLedger = Ledger(OutputIdentity("pipeline", "step"), attempts_allowed=3)
    for letter in "ab":
        message = decode_remote_fragment(Message(letter).body)
        _, entry = ledger.admit(letter * 64, signature_of(message), None, FragmentCargo(message))
        assert entry is not None
        ledger.is_ready(entry)
        ledger.hand_out(entry)
        ledger.done(letter * 64)
        ledger.close(entry)
    return ledger


async def look(queue: Queue, ledger: TestLedger) -> None:
    await look_once_more(cast("Broker", queue), cast("Consumer", queue), ledger)


async def test_an_empty_queue_is_looked_at_once(ledger: TestLedger, autojump_clock: object) -> None:
    queue = Queue()
    await look(queue, ledger)
    assert queue.looks == [0.0]


async def test_what_was_settled_here_and_came_back_is_acknowledged_again(
    ledger: TestLedger, autojump_clock: object
) -> None:
    first, second = Message("a"), Message("b")
    queue = Queue(first, second)
    queue.lines_to_lose = 2
    await look(queue, ledger)
    assert queue.acknowledged == [first, second]
    assert queue.messages == []


async def test_what_was_not_worked_here_is_not_acknowledged_and_the_step_is_not_done(
    ledger: TestLedger, autojump_clock: object
) -> None:
    settled, other = Message("a"), Message("c")
    queue = Queue(settled, other)
    with pytest.raises(WorkLeft):
        await look(queue, ledger)
    assert queue.acknowledged == [settled]


async def test_what_the_broker_still_holds_for_a_lost_connection_is_waited_for(
    ledger: TestLedger, autojump_clock: object
) -> None:
    """However long that is; what comes back then has its time from then on."""
    queue = Queue()
    queue.owed_until = 3 * LAST_LOOK_DEADLINE
    queue.coming = (Message("c"),)
    with pytest.raises(WorkLeft):
        await look(queue, ledger)
    assert trio.current_time() >= 3 * LAST_LOOK_DEADLINE
    assert len(queue.looks) <= 3 * LAST_LOOK_DEADLINE + 2, "a look takes a second"


async def test_what_another_sidecar_takes_is_waited_for_no_longer_than_the_deadline(
    ledger: TestLedger, autojump_clock: object
) -> None:
    queue = Queue(Message("c"))
    queue.delivers = False
    await look(queue, ledger)
    assert trio.current_time() == pytest.approx(LAST_LOOK_DEADLINE)
    assert queue.acknowledged == []
