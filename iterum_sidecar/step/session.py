"""One pair of connections, without any I/O: bytes that arrived go in, work and the bytes to be sent come out.

The rules of the protocol are here and nowhere else; `blocking` and `on_anyio` only move bytes and call the function.
A session lives as long as its connections. What was in work when they broke is forgotten with it, because the sidecar
hands it out again.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from iterum_sidecar.framing import FrameReader, FrameTooLong
from iterum_sidecar.step.fragments import Batch, Fragment
from iterum_sidecar.step.making import Making, frames_of
from iterum_sidecar.step.wire import (
    FRAME_LIMIT,
    KILL_FRAME,
    Kill,
    SidecarRefused,
    decode_sidecar_message,
    done_frame,
    failed_frame,
    gathers_frame,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iterum_sidecar.step.making import Result
    from iterum_sidecar.step.volume import Volume
    from iterum_sidecar.step.wire import Handout

__all__ = ["Session", "Work"]

Work = Fragment | Batch

#: Frames are joined up to this size, so that a fragment's results and its done cost one call and wake the sidecar once.
_JOINED = 64 * 1024


class Session:
    """The transformation's side of one input and one output connection.

    Feed it with `receive` until `next_work` gives something, then report with `done` or `failed`. Everything that a
    method returns is to be sent on the output connection, each piece by a call of its own.
    """

    def __init__(self, volume: Volume, gather: int | None = None) -> None:
        """`gather` is how many fragments make a batch; None for a function of one fragment."""
        self._volume = volume
        self._gather = gather
        self._frames = FrameReader(FRAME_LIMIT)
        self._waiting: deque[Handout] = deque()
        self._accepts: frozenset[str] = frozenset()
        self._said_gathers = False
        self._killed = False
        self.heard = False
        """Whether anything has arrived."""

    @property
    def killed(self) -> bool:
        """Whether the sidecar has said that nothing more comes."""
        return self._killed

    @property
    def is_over(self) -> bool:
        """Whether all is done that will come: `goodbye` is next."""
        return self._killed and not self._waiting

    def receive(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """Take what has arrived on the input connection.

        Raises:
            SidecarRefused: it is no message of the contract; nothing after it can be read.
        """
        to_send: list[bytes] = []
        self.heard = True
        try:
            for payload in self._frames.feed(data):
                message = decode_sidecar_message(payload)
                if isinstance(message, Kill):
                    self._killed = True
                elif not self._killed:
                    self._accepts = message.accepts
                    self._waiting.append(message)
                    to_send += self._say_gathers()
        except FrameTooLong as error:
            raise SidecarRefused(str(error)) from None
        return to_send

    def _say_gathers(self) -> list[bytes]:
        if self._gather is None or self._said_gathers or "gathers" not in self._accepts:
            return []
        self._said_gathers = True
        return [gathers_frame(self._gather)]

    def next_work(self) -> Work | None:
        """Return what the function is to be called with, or None: more must arrive first, or it `is_over`."""
        if not self._waiting:
            return None
        making = Making(self._volume)
        if self._gather is None:
            return Fragment(self._waiting.popleft(), making)
        if len(self._waiting) < self._gather and not self._killed:
            return None
        size = min(self._gather, len(self._waiting))
        return Batch([self._waiting.popleft() for _ in range(size)], making)

    def done(self, work: Work, results: Sequence[Result]) -> list[bytes]:
        """The function has ended well: send its results, all of them, then that it is done."""
        return self._joined(frames_of(results) + [done_frame(each) for each in ids_of(work)])

    def failed(self, work: Work, reason: str) -> list[bytes] | None:
        """The function has failed; None when this sidecar cannot be told, other than by the end of the process."""
        if "failed" not in self._accepts:
            return None
        return self._joined([failed_frame(each, reason) for each in ids_of(work)])

    def goodbye(self) -> list[bytes]:
        """Nothing more will be sent."""
        return [KILL_FRAME]

    def _joined(self, frames: list[bytes]) -> list[bytes]:
        """Join frames for a sidecar that names what it accepts, which reads them in any pieces; others get them one by one."""
        if not self._accepts or sum(map(len, frames)) > _JOINED:
            return frames
        return [b"".join(frames)]


def ids_of(work: Work) -> list[str]:
    """Return the IDs of the fragments that the function was called with."""
    return [work.id] if isinstance(work, Fragment) else [each.id for each in work]
