"""The state of the sidecar in a file on the volume, where the other container of the pod can read it, and probes do.

    <volume>/.iterum-sidecar/state      line 1: one word; line 2, if there is more to say: what is waited for, or why it ended

Its time of change is a heart-beat. The volume is shared with a program that may do there what it likes: the file is found from
the volume's own descriptor, no symlink is followed, and what stands in its place is replaced, or told once and left alone.
"""

from __future__ import annotations

import math
import os
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.removal import OPEN_DIRECTORY
from iterum_sidecar.telemetry.logs import get_log
from iterum_sidecar.telemetry.probe import LONGEST_MARKER, MARKER, OWN_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn, Self

    from iterum_sidecar.telemetry.health import State

__all__ = ["Marker", "keep_marker"]

_log = get_log(__name__)

#: Seconds between looks at the state, and between heart-beats; a probe allows six of them to be missed.
LOOK_EVERY = 1.0
BEAT_EVERY = 5.0

AT_WORK = ("ready", "waiting", "draining")

_NEW = MARKER + ".new"
# O_NONBLOCK: opening a FIFO must not wait for its writer.
_EXISTING_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Marker:
    """The file. Use as a context manager; it stays when that is left.

    That it cannot be written never ends the program. It is told in the log, once, while the sidecar is at work; before that,
    whoever opens the volume tells what is wrong with it.
    """

    def __init__(self, volume: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Open the volume, whose path may be empty: then there is no file."""
        self._clock = clock
        self._root: int | None = None
        self._beat_at = -math.inf
        self._told = False
        if volume:
            with suppress(OSError, ValueError):
                self._root = os.open(volume, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        root, self._root = self._root, None
        if root is not None:
            os.close(root)

    def show(self, state: State) -> None:
        """Let the file say this: written if it says something else, otherwise touched, every five seconds."""
        if self._root is None:
            return
        lines = (state.word, " ".join(state.detail.split()))
        text = "".join(f"{line}\n" for line in lines if line).encode(errors="backslashreplace")
        try:
            self._show(text[:LONGEST_MARKER], self._root)
        except OSError as error:
            if not self._told and state.word in AT_WORK:
                self._told = True
                _log.warning(
                    "the state cannot be written to the volume; this is not told again",
                    file=f"{OWN_DIRECTORY}/{MARKER}",
                    reason=error.strerror,
                )

    def _show(self, text: bytes, root: int) -> None:
        with suppress(FileExistsError):
            os.mkdir(OWN_DIRECTORY, dir_fd=root)
        own = os.open(OWN_DIRECTORY, OPEN_DIRECTORY, dir_fd=root)
        try:
            now = self._clock()
            if not _says(text, own):
                _write(text, own)
            elif now - self._beat_at >= BEAT_EVERY:
                os.utime(MARKER, dir_fd=own, follow_symlinks=False)
            else:
                return
            self._beat_at = now
        finally:
            os.close(own)


def _says(text: bytes, own: int) -> bool:
    """Whether the marker is a file that says this, whoever wrote it."""
    try:
        file = os.open(MARKER, _EXISTING_FILE, dir_fd=own)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return False
        return os.read(file, len(text) + 1) == text
    finally:
        os.close(file)


def _write(text: bytes, own: int) -> None:
    """Write it whole under another name, and put that in the marker's place."""
    with suppress(FileNotFoundError):
        os.unlink(_NEW, dir_fd=own)
    file = os.open(_NEW, _NEW_FILE, 0o644, dir_fd=own)
    try:
        # The other container's user reads it, whatever the umask is here.
        os.fchmod(file, 0o644)
        os.write(file, text)
    finally:
        os.close(file)
    os.rename(_NEW, MARKER, src_dir_fd=own, dst_dir_fd=own)


async def keep_marker(marker: Marker, state: Callable[[], State]) -> NoReturn:
    """Let the marker say what `state` does, once a second, until cancelled."""
    while True:
        marker.show(state())
        await trio.sleep(LOOK_EVERY)
