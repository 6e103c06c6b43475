"""A sidecar that follows a test's script, and keeps every promise of the contract only if it is told to."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import struct
import tempfile
import termios
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from iterum_sidecar.framing import FrameReader, encode_frame
from tests.unit.row import fragment_id

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ALL", "FakeSidecar", "Pair", "fake_sidecar"]

ALL = ("failed", "gathers")


class Pair:
    """The sidecar's ends of one input and one output connection."""

    def __init__(
        self,
        volume: Path,
        accepts: tuple[str, ...],
        inputs: trio.SocketStream,
        outputs: trio.SocketStream,
    ) -> None:
        self._volume = volume
        self._accepts = accepts
        self.inputs = inputs
        self.outputs = outputs
        self._frames = FrameReader()
        self._arrived: list[dict[str, Any]] = []

    def description(self, number: int, content: str = "", **metadata: object) -> bytes:
        """Write an input file and return the message that hands it out."""
        path = self._volume / f"{number}.txt"
        path.write_text(content or f"content {number}")
        message: dict[str, object] = {
            "files": [{"name": path.name, "path": str(path)}],
            "metadata": {"fragment_id": fragment_id(number), "predecessors": [], **metadata},
        }
        if self._accepts:
            message["accepts"] = self._accepts
        return json.dumps(message).encode()

    async def hand_out(self, number: int, content: str = "", **metadata: object) -> None:
        await self.inputs.send_all(encode_frame(self.description(number, content, **metadata)))

    async def kill(self, status: str = "complete") -> None:
        await self.inputs.send_all(encode_frame(json.dumps({"status": status}).encode()))

    async def read(self) -> dict[str, Any] | None:
        """Return the next message of the step, or None at its close."""
        while not self._arrived:
            try:
                data = await self.outputs.receive_some()
            except trio.BrokenResourceError:
                return None
            if not data:
                assert self._frames.buffered == 0
                return None
            self._arrived += map(json.loads, self._frames.feed(data))
        return self._arrived.pop(0)

    async def read_all(self) -> list[dict[str, Any]]:
        """Return everything that comes until the step closes."""
        messages = []
        while (message := await self.read()) is not None:
            messages.append(message)
        return messages

    def unread(self) -> int:
        """Return whether anything that was sent is unread, in the kernel's own measure."""
        waiting = fcntl.ioctl(self.inputs.socket.fileno(), termios.TIOCOUTQ, bytes(4))
        return int.from_bytes(waiting, "little")

    async def close(self) -> None:
        await self.inputs.aclose()
        await self.outputs.aclose()

    def reset(self) -> None:
        """Close the output first, at once: what the step sends after it has found its input closed cannot arrive."""
        self.outputs.socket.close()
        self.inputs.socket.close()


class FakeSidecar:
    """The two listening sockets in a volume."""

    def __init__(self, volume: Path, accepts: tuple[str, ...] = ()) -> None:
        self.volume = volume
        self._accepts = accepts
        self._listeners = [_listen(volume / name) for name in ("in.sock", "out.sock")]

    async def accept(self) -> Pair:
        """Return the next pair of connections; steps connect to the input first."""
        inputs, outputs = [await listener.accept() for listener in self._listeners]
        return Pair(self.volume, self._accepts, inputs, outputs)

    def close(self) -> None:
        for listener, name in zip(self._listeners, ("in.sock", "out.sock"), strict=True):
            listener.socket.close()
            (self.volume / name).unlink(missing_ok=True)

    def left(self) -> list[str]:
        """Return the results' files that are on the volume."""
        output = self.volume / "output"
        return sorted(os.listdir(output)) if output.is_dir() else []


@contextmanager
def fake_sidecar(*accepts: str) -> Iterator[FakeSidecar]:
    """Yield a false sidecar in a directory with a short path."""
    volume = Path(tempfile.mkdtemp(prefix="step-", dir="/dev/shm"))
    sidecar = FakeSidecar(volume, accepts)
    try:
        yield sidecar
    finally:
        sidecar.close()
        shutil.rmtree(volume)


def _listen(path: Path) -> trio.SocketListener:
    listening = trio.socket.from_stdlib_socket(socket.socket(socket.AF_UNIX))
    listening._sock.bind(str(path))  # type: ignore[attr-defined]
    listening.listen(8)
    return trio.SocketListener(listening)


def length(size: int) -> bytes:
    """Return a frame's length alone."""
    return struct.pack("<I", size)
