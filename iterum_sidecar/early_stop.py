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

__all__ = ["EarlyStop"]


class EarlyStop:
    """Ends the program at once at a SIGTERM, from its making until `receive_instead`; after that a SIGTERM to it changes nothing.

    So it is to be told when signals are received elsewhere, and takes what comes when that is over: how the program ends is
    settled by then.
    """

    def __init__(self) -> None:
        self._ends = True
        signal.signal(signal.SIGTERM, self._take)

    def receive_instead(self) -> None:
        """Signals are received elsewhere from now on."""
        self._ends = False

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if self._ends:
            print("told to stop before anything was begun", file=sys.stderr, flush=True)
            # Nothing has been opened that would want to be closed, and an exception could be caught on its way.
            os._exit(128 + number)
