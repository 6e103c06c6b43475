"""What the machine is short of now and may have again: room on the volume, a descriptor, memory.

It is waited for with backoff, and told once a minute by one line for all that wait. For a volume that nothing of ours will empty it
is waited only so long: the end of the program tells those who look at nothing else.
"""

from __future__ import annotations

import errno
import os
import random
from typing import TYPE_CHECKING, Final

import trio

from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.telemetry.logs import get_log

if TYPE_CHECKING:
    from collections.abc import Callable

    from iterum_sidecar.stores.port import StoreError

__all__ = ["NO_ROOM", "VOLUME_PATIENCE", "Shortages", "is_shortage", "shortage_in"]

_log = get_log(__name__)

#: A full file system, or a full share of one.
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
#: Neither a descriptor nor memory is free, in this process or on the machine (open(2), socket(2)).
_NO_DESCRIPTOR: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})

#: Seconds that a volume may be full before the program ends: a person who is told can make room meanwhile, and a node that is
#: cleaned up by itself has done so.
VOLUME_PATIENCE = 300.0
#: Seconds between attempts, at first and at most. A descriptor is given back by whatever we finish next.
_ROOM_DELAYS: Final = (0.5, 5.0)
_DESCRIPTOR_DELAYS: Final = (0.05, 1.0)
#: Seconds between two lines about the same shortage.
SAY_EVERY = 60.0


_CODES: Final = {errno.errorcode[number]: number for number in _NO_DESCRIPTOR}


def shortage_in(error: StoreError) -> OSError | None:
    """Return what was short here, if that is why the store could not be asked: neither it nor the object is to blame then."""
    number = _CODES.get(error.code)
    return None if number is None else OSError(number, os.strerror(number))


def is_shortage(error: OSError) -> bool:
    """Whether the same call may succeed later with nothing changed on our side."""
    return error.errno in NO_ROOM or error.errno in _NO_DESCRIPTOR


class Shortages:
    """The waits for what is short, shared by all stages. `volume_patience` and all times are in seconds."""

    def __init__(
        self,
        volume_patience: float = VOLUME_PATIENCE,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._volume_patience = volume_patience
        self._in_vain_since: float | None = None
        self._room = _Shortage(_ROOM_DELAYS, draw)
        self._descriptor = _Shortage(_DESCRIPTOR_DELAYS, draw)

    @property
    def are_felt(self) -> bool:
        """Whether anything has failed for want of something since the last that went well."""
        return self._room.since is not None or self._descriptor.since is not None

    async def wait(self, error: OSError, path: str, *, in_vain: bool = False) -> None:
        """Wait until it is time to try again what failed with this error, on this path.

        `in_vain` tells that nothing of ours will give back any of what is short, so that the patience with a full volume counts.

        Raises:
            VolumeUnusable: the volume has been full, in vain, for as long as is waited for that.
        """
        if error.errno in NO_ROOM:
            await self._wait_for_room(error, path, in_vain=in_vain)
        else:
            waited = self._descriptor.feel()
            if self._descriptor.is_to_be_said():
                _log.warning(
                    "waiting for a descriptor or memory to be free",
                    path=path,
                    reason=f"{error.strerror}; it goes on with fewer at a time, and is faster with more (ulimit -n)",
                    waited_seconds=round(waited),
                )
            await trio.sleep(self._descriptor.delay())

    async def _wait_for_room(self, error: OSError, path: str, *, in_vain: bool) -> None:
        now, waited = trio.current_time(), self._room.feel()
        if not in_vain:
            self._in_vain_since = None
        elif self._in_vain_since is None:
            self._in_vain_since = now
        in_vain_for = 0.0 if self._in_vain_since is None else now - self._in_vain_since
        if in_vain_for >= self._volume_patience:
            raise VolumeUnusable(
                f"the volume has been full for {in_vain_for:.0f} s: {path}: {error.strerror};"
                " make room on it, or make it larger"
            )
        if self._room.is_to_be_said():
            _log.warning(
                "waiting for room on the volume",
                path=path,
                reason=f"{error.strerror}; make room on it, or make it larger",
                waited_seconds=round(waited),
            )
        await trio.sleep(min(self._room.delay(), self._volume_patience - in_vain_for))

    def there_is_room(self) -> None:
        """Who waited for room on the volume has had it."""
        self._in_vain_since = None
        if (waited := self._room.end()) is not None:
            _log.info("there is room on the volume again", waited_seconds=waited)

    def there_is_a_descriptor(self) -> None:
        """Something went well that needs one."""
        self._descriptor.end()


class _Shortage:
    """One thing that is short: since when, when that was last said, and how long the next wait is."""

    def __init__(self, delays: tuple[float, float], draw: Callable[[], float]) -> None:
        self._delays = delays
        self._draw = draw
        self._delay = delays[0]
        self.since: float | None = None
        self._said_at = -SAY_EVERY
        self._said = False

    def feel(self) -> float:
        """Return for how long it has been short."""
        now = trio.current_time()
        if self.since is None:
            self.since = now
        return now - self.since

    def is_to_be_said(self) -> bool:
        """Whether a line about it is due; the time since the last counts across shortages that come and go."""
        now = trio.current_time()
        if now - self._said_at < SAY_EVERY:
            return False
        self._said_at, self._said = now, True
        return True

    def delay(self) -> float:
        """Return the next wait: half of it fixed and half drawn, so that not all that wait try in one moment."""
        delay = self._delay * (0.5 + self._draw() / 2)
        self._delay = min(self._delay * 2, self._delays[1])
        return delay

    def end(self) -> float | None:
        """It is not short any more; returns for how long it was, if that was said."""
        since, said = self.since, self._said
        self.since, self._said, self._delay = None, False, self._delays[0]
        if since is None or not said:
            return None
        return round(trio.current_time() - since, 1)
