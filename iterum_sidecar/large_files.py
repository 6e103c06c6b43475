"""Letting go of large files without holding up everybody else.

The kernel gives a file's pages back where its last name or its last descriptor goes, and whoever lets go of that waits for it: 0.25 ms for
each MiB on tmpfs, 0.1 on ext4, so more than a second for 5 GiB. The loop would stand still for so long. Here a large file is held by
one descriptor more while it is removed, and a thread closes that.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from typing import Final, final

import trio

__all__ = ["LARGE", "LargeFiles"]

#: Bytes from which on a file is large: 4 to 8 ms, a hundred times what a thread costs.
LARGE: Final = 32 * 1024 * 1024


@final
class LargeFiles:
    """Closes descriptors of large files in a thread, one after the other, as long as `keep_closing` runs, and otherwise at once.

    No more than `most_waiting` are held for it; what goes beyond that is let go of at once.
    """

    def __init__(self, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._waiting: deque[int] = deque()
        self._changed = trio.Event()
        self._thread = trio.CapacityLimiter(1)
        self._is_kept = False

    def close(self, descriptor: int, size: int) -> None:
        """Let go of a file of so many bytes."""
        if size < LARGE or not self._takes_more:
            os.close(descriptor)
        else:
            self._waiting.append(descriptor)
            self._changed.set()

    def hold(self, name: str, parent: int) -> None:
        """See to it that the file of this name is freed in a thread once it is removed, which is up to the caller; no link is followed.

        Nothing is done where that cannot be, or need not.
        """
        if not self._takes_more:
            return
        with suppress(OSError):
            # O_PATH opens nothing that could notice: whatever is there may be anything.
            descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            self.close(descriptor, os.fstat(descriptor).st_size)

    @property
    def _takes_more(self) -> bool:
        return self._is_kept and len(self._waiting) < self._most_waiting

    @property
    def are_waiting(self) -> bool:
        """Whether any is held only until a thread has closed it."""
        return bool(self._waiting)

    async def keep_closing(self) -> None:
        """Close what comes, until cancelled; what is left then is closed at once."""
        self._is_kept = True
        try:
            while True:
                while self._waiting:
                    with suppress(OSError):  # nothing was written through it that could be lost
                        await trio.to_thread.run_sync(
                            os.close, self._waiting[0], limiter=self._thread
                        )
                    self._waiting.popleft()
                self._changed = trio.Event()
                await self._changed.wait()
        finally:
            self._is_kept = False
            while self._waiting:
                with suppress(OSError):
                    os.close(self._waiting.popleft())
