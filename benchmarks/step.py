"""The transformation of the benchmarks: it copies every file, and costs as little as a Python program can.

It waits for the sidecar's sockets by trying every 5 ms, so that none of the time measured is its sleep.
Started with the environment of a transformation; ends with 0 when the sidecar has said that all is done.
With BENCHMARK_LINK set it makes hard links instead of copies, and prints the path of each file before.
BENCHMARK_CONNECTIONS is the number of connections that it opens to each socket (default: 1), a thread for each pair.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import threading
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


def link(source: str, target: str) -> None:
    """Make a hard link, and let whoever watches know that the file is there."""
    print(source, flush=True)
    os.link(source, target)


def work(fragment: dict[str, Any], directory: str) -> list[dict[str, str]]:
    """Copy a fragment's files and return what the output fragment's `files` says."""
    fragment_id = fragment["metadata"]["fragment_id"]
    results = []
    copy = link if "BENCHMARK_LINK" in os.environ else shutil.copyfile
    for position, file in enumerate(fragment["files"]):
        path = f"{directory}/{fragment_id}-{position}"
        copy(file["path"], path)
        results.append({"name": file["name"], "path": path})
    return results


def serve(volume: str, directory: str) -> None:
    """Serve one sidecar over a pair of connections."""
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


def main() -> None:
    """Open the connections and serve over all of them."""
    volume = os.environ["DATA_VOLUME_PATH"]
    directory = os.path.join(volume, "output")
    os.makedirs(directory, exist_ok=True)
    others = [
        threading.Thread(target=serve, args=(volume, directory))
        for _ in range(int(os.environ.get("BENCHMARK_CONNECTIONS", "1")) - 1)
    ]
    for thread in others:
        thread.start()
    serve(volume, directory)
    for thread in others:
        thread.join()


if __name__ == "__main__":
    main()
