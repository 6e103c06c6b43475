"""A SIGTERM that comes before anybody receives signals, or after: the first process of a container is spared what it does not handle.

Such a pod would go on until its grace period is over and SIGKILL comes.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["end_at_sigterm", "receive_instead"]

_ends = True


def end_at_sigterm() -> None:
    """From now on a SIGTERM ends the program at once, until signals are received elsewhere."""
    signal.signal(signal.SIGTERM, _take)


def receive_instead() -> None:
    """Signals are received elsewhere from now on. What comes when that is over changes nothing: how the program ends is settled."""
    global _ends
    _ends = False


def _take(number: int, _frame: FrameType | None) -> None:
    if _ends:
        print("told to stop before anything was begun", file=sys.stderr, flush=True)
        # Nothing has been opened that would want to be closed, and an exception could be caught on its way.
        os._exit(128 + number)
