"""Budgets of a volume for tests, with what is on them."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from iterum_sidecar.volume_budget import NoRoom, Room, Share, VolumeBudget

PLENTY = 10**12


def budget_of(limit: int | None, available: int | None = PLENTY) -> VolumeBudget:
    return VolumeBudget(limit, lambda: available)


def admitted(share: Share, size: int) -> bool:
    """Whether a file of this size is let onto the volume at once."""
    try:
        share.room().admit(size)
    except NoRoom:
        return False
    return True


def ready(budget: VolumeBudget, size: int) -> Share:
    """A fragment that is on the volume, and not settled."""
    share = budget.open()
    assert admitted(share, size)
    share.downloaded()
    return share


async def wait_in(nursery: trio.Nursery, share: Share, size: int) -> Room:
    """Let a file wait for room, and return when it does."""
    room = share.room()
    with pytest.raises(NoRoom):
        room.admit(size)
    nursery.start_soon(room.wait)
    await trio.testing.wait_all_tasks_blocked()
    return room
