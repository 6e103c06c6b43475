"""The transformation of the benchmarks: it copies every file, and costs as little as a Python program can.

It waits for the sidecar's sockets by trying every 5 ms, so that none of the time measured is its sleep.
Started with the environment of a transformation; ends with 0 when the sidecar has said that all is done.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

LENGTH = struct.Struct("<I")
RETRY_SECONDS = 0.005
READ_SIZE = 65536


def connect(path: str) -> socket.socket:
    """Connect to a Unix socket, as soon as somebody listens there."""
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
        except OSError:
            connection.close()
            time.sleep(RETRY_SECONDS)
        else:
            return connection


def frames(connection: socket.socket) -> Iterator[Any]:
    """Yield the JSON values that arrive, until the other side closes."""
    buffer = bytearray()
    while data := connection.recv(READ_SIZE):
        buffer += data
        while len(buffer) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(buffer)[0]
            if len(buffer) < end:
                break
            message = json.loads(buffer[LENGTH.size : end])
            del buffer[:end]
            yield message


def frame(message: object) -> bytes:
    """Return a message as a frame."""
    body = json.dumps(message).encode()
    return LENGTH.pack(len(body)) + body


def work(fragment: dict[str, Any], directory: str) -> list[dict[str, str]]:
    """Copy a fragment's files and return what the output fragment's `files` says."""
    fragment_id = fragment["metadata"]["fragment_id"]
    results = []
    for position, file in enumerate(fragment["files"]):
        path = f"{directory}/{fragment_id}-{position}"
        shutil.copyfile(file["path"], path)
        results.append({"name": file["name"], "path": path})
    return results


def main() -> None:
    """Serve one sidecar."""
    volume = os.environ["DATA_VOLUME_PATH"]
    directory = os.path.join(volume, "output")
    os.makedirs(directory, exist_ok=True)
    receiver = connect(os.path.join(volume, os.environ["TRANSFORMATION_STEP_INPUT"]))
    sender = connect(os.path.join(volume, os.environ["TRANSFORMATION_STEP_OUTPUT"]))
    for message in frames(receiver):
        if "status" in message:
            break
        fragment_id = message["metadata"]["fragment_id"]
        result = {
            "files": work(message, directory),
            "metadata": {"output_channel": None, "custom": None, "predecessors": [fragment_id]},
        }
        sender.sendall(frame(result))
        sender.sendall(frame({"fragment_id": fragment_id}))
    sender.sendall(frame({"status": "complete"}))


if __name__ == "__main__":
    main()
