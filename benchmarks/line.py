"""One request by the floor's client, for the line rate of a store: python -m benchmarks.line METHOD BUCKET KEY FILE.

GET writes the file, PUT reads it; MINIO_URL, MINIO_ACCESS_KEY and MINIO_SECRET_KEY say where. Prints the seconds, and those of CPU.
"""

from __future__ import annotations

import os
import sys
import time

import trio

from benchmarks.floor import Store


async def request(method: str, bucket: str, key: str, path: str) -> None:
    """Send one request, and read its answer to its end."""
    store = Store(*(os.environ[f"MINIO_{each}"] for each in ("URL", "ACCESS_KEY", "SECRET_KEY")))
    flags = os.O_RDONLY if method == "PUT" else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    file = os.open(path, flags, 0o666)
    if method == "PUT":
        await store.request(method, bucket, key, source=file)
    else:
        await store.request(method, bucket, key, target=file)
    os.close(file)


if __name__ == "__main__":
    method, bucket, key, path = sys.argv[1:]
    started, cpu = time.monotonic(), time.process_time()
    trio.run(request, method, bucket, key, path)
    print(time.monotonic() - started, time.process_time() - cpu)
