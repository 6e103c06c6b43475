"""A transformation that speaks the two sockets itself, and so can break every rule of them; and what must not have been touched by it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from iterum_sidecar.framing import FrameReader, encode_frame
from testbed.contents import content, get_object, list_keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from testbed.process import Exit, Process
    from tests.wire.journey import Journey

__all__ = [
    "MOST_MEMORY",
    "SECRET",
    "SOON",
    "RawStep",
    "announced",
    "canary",
    "check_sound",
    "seed_good",
    "warnings_of",
]

#: Seconds that anything may take which comes at all.
SOON: Final = 60
#: Bytes of resident memory that a sidecar at work stays below: 60 MB that it always has, and room for what is on its way.
MOST_MEMORY: Final = 160 * 1024 * 1024

SECRET: Final = b"nobody's business"


class RawStep:
    """One pair of connections to a sidecar. Use as a context manager."""

    def __init__(self, journey: Journey) -> None:
        self.volume = journey.step.volume
        self._journey = journey
        self._stack = contextlib.ExitStack()
        self.inputs = self.connect(journey.step.input_socket)
        self.outputs = self.connect(journey.step.output_socket)
        self._reader = FrameReader(1 << 30)
        self._arrived: list[dict[str, Any]] = []
        self.last_workspace = ""
        """The sidecar's directory for the files of the last fragment."""
        (self.volume / "output").mkdir(exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def connect(self, path: Path) -> socket.socket:
        """Return another connection, which is closed with this step."""
        connection = self._stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX)))
        # A call with a timeout does not wait where the queue of those to be accepted is full.
        connection.connect(str(path))
        connection.settimeout(SOON)
        return connection

    def connect_outputs(self) -> socket.socket:
        """Return another output connection."""
        return self.connect(self._journey.step.output_socket)

    # -- reading

    def next_message(self) -> dict[str, Any]:
        """Return the next message of the input socket."""
        while not self._arrived:
            data = self.inputs.recv(1 << 16)
            assert data, "the sidecar closed the input connection"
            self._arrived += map(json.loads, self._reader.feed(data))
        return self._arrived.pop(0)

    def fragments(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Yield the ID of each fragment, and its files' contents by name, until kill."""
        while "status" not in (message := self.next_message()):
            self.last_workspace = Path(message["files"][0]["path"]).parent.name
            files = {file["name"]: Path(file["path"]).read_bytes() for file in message["files"]}
            yield message["metadata"]["fragment_id"], files

    # -- writing

    def send(self, *messages: object, to: socket.socket | None = None) -> None:
        """Send messages, each in a frame of its own."""
        frames = b"".join(encode_frame(json.dumps(message).encode()) for message in messages)
        (to or self.outputs).sendall(frames)

    def result_of(
        self, own: str, path: str | os.PathLike[str], name: str = "good", **metadata: object
    ) -> dict[str, object]:
        """Return the message of a result: the file at this path, under this name."""
        file = {"name": name, "path": os.fspath(path)}
        return {"files": [file], "metadata": {"predecessors": [own], **metadata}}

    def write(self, name: str, data: bytes) -> Path:
        """Write a file of a result."""
        path = self.volume / "output" / name
        path.write_bytes(data)
        return path

    def answer(self, own: str, files: dict[str, bytes]) -> None:
        """Send the one good result of a fragment (its files turned round), and done."""
        described = [
            {"name": name, "path": os.fspath(self.write(f"{own}-{number}", data[::-1]))}
            for number, (name, data) in enumerate(files.items())
        ]
        result = {"files": described, "metadata": {"predecessors": [own]}}
        self.send(result, {"fragment_id": own})

    def answer_rest(self) -> int:
        """Answer all further fragments until kill, and that too; returns how many they were."""
        count = 0
        for own, files in self.fragments():
            self.answer(own, files)
            count += 1
        self.send({"status": "complete"})
        return count


def seed_good(journey: Journey, count: int) -> None:
    """Seed so many fragments that every step can do."""
    for number in range(count):
        journey.seed({"good": content(number, 100)})


def announced(length: int, begun: bytes = b"") -> bytes:
    """Return the length of a frame, and as much of the frame as is given."""
    return struct.pack("<I", length) + begun


def warnings_of(sidecar: Process, message: str = "") -> list[dict[str, Any]]:
    """Return the warnings of a sidecar's log, those with this message where one is given."""
    lines = [json.loads(line) for line in sidecar.log_text().splitlines() if line.startswith("{")]
    return [
        line for line in lines if line["severity"] == "WARNING" and message in {"", line["message"]}
    ]


def check_sound(journey: Journey, sidecar: Process, ended: Exit, most: int = MOST_MEMORY) -> None:
    """Assert what is true of a sidecar's life beside any transformation: little memory, no fault of its own, no secret taken."""
    assert ended.peak_memory < most, f"{ended.peak_memory:,} bytes"
    assert "raceback" not in sidecar.log_text()
    for line in sidecar.log_text().splitlines():
        assert len(line) < 10_000, "a line is for reading"
    for key in list_keys(journey.store, journey.step.output_bucket):
        assert SECRET not in get_object(journey.store, journey.step.output_bucket, key)


@contextlib.contextmanager
def canary(volume: Path) -> Iterator[Path]:
    """A tree beside the volume, on its file system, with a file that is nobody's business; nothing of it is touched."""
    directory = Path(tempfile.mkdtemp(prefix="beside-", dir=volume.parent))
    try:
        (directory / "secret").write_bytes(SECRET)
        (directory / "deep" / "er").mkdir(parents=True)
        (directory / "deep" / "er" / "secret").write_bytes(SECRET)
        (directory / "deep" / "link").symlink_to("er/secret")
        os.mkfifo(directory / "fifo")
        before = list(_look(directory))
        yield directory
        assert list(_look(directory)) == before
    finally:
        shutil.rmtree(directory)


def _look(directory: Path) -> Iterable[tuple[object, ...]]:
    for path in (directory, *sorted(directory.rglob("*"))):
        found = path.lstat()
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        yield (
            str(path),
            *(found.st_mode, found.st_ino, found.st_nlink, found.st_uid, found.st_size),
            *(found.st_mtime_ns, found.st_ctime_ns),
            data,
        )
