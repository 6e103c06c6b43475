"""`iterum-sidecar probe`: what the marker on the volume says of the sidecar, as a kubelet asks.

It runs every few seconds on a fraction of a processor, so it imports next to nothing; `marker.py` writes what is read here.
"""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LONGEST_MARKER", "MARKER", "OWN_DIRECTORY", "PROBES", "Verdict", "probe"]

OWN_DIRECTORY = ".iterum-sidecar"
MARKER = "state"
#: Bytes of the marker; a reason is a line or two.
LONGEST_MARKER = 4096
#: Seconds without a heart-beat after which the sidecar is not alive; it beats every five.
LONGEST_SILENCE = 30.0

#: What can be asked, and in which states the answer is yes, if the heart beats. At its end the sidecar is alive for as long as it takes
#: to exit, and no longer.
PROBES = {
    "live": ("starting", "ready", "waiting", "draining", "done", "stopped", "failed"),
    "ready": ("ready",),
    "startup": ("ready", "waiting", "draining"),
}


class Verdict(NamedTuple):
    """The answer to a probe, and why it is so."""

    passed: bool
    why: str


def probe(question: str, environment: Mapping[str, str]) -> Verdict:
    """Answer one of `PROBES` for the sidecar of this volume."""
    volume = environment.get("DATA_VOLUME_PATH", "")
    if not volume:
        return Verdict(
            False, "DATA_VOLUME_PATH is missing: the directory that both containers share"
        )
    path = f"{volume}/{OWN_DIRECTORY}/{MARKER}"
    try:
        lines, changed = _read(path)
    except OSError as error:
        return Verdict(False, f"{path} cannot be read ({error.strerror}): no sidecar has started")
    state, detail = (*lines, "", "")[:2]
    told = f"{state}: {detail}" if detail else state
    silence = time.time() - changed
    if silence > LONGEST_SILENCE:
        return Verdict(False, f"{told}; but no heart-beat for {silence:.0f} s")
    if silence < -LONGEST_SILENCE:
        # The clock was set back. Who lives beats again within seconds; of who does not this would say that it lives, for hours.
        return Verdict(False, f"{told}; but its last heart-beat is {-silence:.0f} s in the future")
    return Verdict(state in PROBES[question], told)


def _read(path: str) -> tuple[list[str], float]:
    """Return the lines of the marker, and when it was changed or touched, in seconds since the epoch."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is no regular file")
        return os.read(file, LONGEST_MARKER).decode(errors="replace").splitlines(), status.st_mtime
    finally:
        os.close(file)
