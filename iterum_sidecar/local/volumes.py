"""The folder that a step and its sidecar share, for as long as they run."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from iterum_sidecar.removal import remove_folder
from iterum_sidecar.settings import MAX_SOCKET_PATH_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["INPUT_SOCKET", "OUTPUT_SOCKET", "volume_folder"]

INPUT_SOCKET = "input.sock"
OUTPUT_SOCKET = "output.sock"

_LONGEST_NAME = max(len(INPUT_SOCKET), len(OUTPUT_SOCKET), len("fragmenter-output.sock"))


@contextmanager
def volume_folder(folder: Path) -> Iterator[str]:
    """Make an empty folder, give the path under which sockets can be made in it, and remove it in the end.

    What a killed run has left there is removed first. A Unix socket's path may have 107 bytes; where the folder's own is too
    long for that, it is reached through this process's open descriptor of it, which leaves nothing behind, as a link would.

    Raises:
        OSError: it cannot be made, or what is there cannot be removed.
    """
    remove_folder(folder)
    folder.mkdir(parents=True)
    try:
        if len(os.fsencode(folder)) + 1 + _LONGEST_NAME <= MAX_SOCKET_PATH_BYTES:
            yield str(folder)
        else:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                yield f"/proc/{os.getpid()}/fd/{descriptor}"
            finally:
                os.close(descriptor)
    finally:
        with suppress(OSError):
            remove_folder(folder)
