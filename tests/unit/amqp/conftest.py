from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock

from tests.unit.amqp.false_broker import FalseBroker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from trio.abc import Instrument


def run_in_jumping_time(
    test: Callable[[], Awaitable[object]], instruments: Sequence[Instrument], **_: object
) -> object:
    clock = MockClock(autojump_threshold=0)
    return trio.run(test, clock=clock, instruments=instruments)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let time pass only when everybody waits, in each test that has a false broker."""
    if isinstance(item, pytest.Function) and "broker" in item.fixturenames:
        item.add_marker(pytest.mark.trio(run=run_in_jumping_time), append=False)


@pytest.fixture
async def broker(nursery: trio.Nursery) -> FalseBroker:
    """A false broker at work."""
    broker = FalseBroker()
    nursery.start_soon(broker.serve)
    return broker
