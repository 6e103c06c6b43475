"""What a run that was told to stop still waits for: without a word of it, a step that never ends looks like a fault of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from iterum_sidecar.local.progress import as_time, count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Never

__all__ = ["tell_of_waiting"]

#: Seconds until the first word; each further one takes twice as long.
TELL_AFTER = 5.0


async def tell_of_waiting(
    in_work: Callable[[], Mapping[str, int]], say: Callable[[str], None]
) -> Never:
    """Tell now and then, more and more seldom, what is waited for; begun at the signal, and cancelled at the end.

    `in_work` returns how many fragments each instance of a step has that has any.
    """
    began = trio.current_time()
    pause = TELL_AFTER
    while True:
        await trio.sleep(pause)
        pause *= 2
        told = [f"{name} ({count(each, 'fragment')} in work)" for name, each in in_work().items()]
        waited = as_time(trio.current_time() - began, whole=True)
        what = ", ".join(told) or "the steps to end"
        say(f"waiting for {what}, {waited} now; Ctrl-C again ends at once")
