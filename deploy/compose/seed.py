"""Put a folder's files into the store and on the first queue, each as a fragment; then answer as the manager."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from manager import serve_answers, watch
from peers import LINEAGE, PIPELINE, RESULTS, open_broker, open_store, steps

from iterum_sidecar.file_turns import FileTurns
from iterum_sidecar.messages import RemoteFile, RemoteFragment, RemoteMetadata, encode_message
from iterum_sidecar.patience import Patience
from iterum_sidecar.stores.port import StoreError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iterum_sidecar.stores.s3 import S3Store

INPUT = Path("/input")
BUCKET = f"{PIPELINE}-input"
#: Files that are uploaded at a time.
UPLOADS = 8
#: Characters of a file's name that its fragment's ID begins with, so that people know it again.
READABLE = 40


async def main() -> None:
    """Seed, and serve until stopped."""
    copies = int(os.environ.get("SEED_COPIES") or 1)
    files = sorted(path for path in INPUT.rglob("*") if path.is_file())
    if not files:
        raise SystemExit("INPUT_FOLDER has no files: name a folder that has some")
    pipeline = steps()
    queues = [*(step.input_queue for step in pipeline), RESULTS, LINEAGE]
    async with open_store() as store, open_broker("seed", queues) as broker:
        await store_files(store, files)
        confirmations = [
            await broker.publish(pipeline[0].input_queue, encode_message(fragment))
            for fragment in fragments(files, copies)
        ]
        for confirmation in confirmations:
            await confirmation.wait()
        print(f"{len(confirmations)} fragments of {len(files)} files are on the queue", flush=True)
        finished: set[str] = set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_answers, finished)
            nursery.start_soon(watch, broker, pipeline, finished)


async def store_files(store: S3Store, files: list[Path]) -> None:
    """Upload every file into a bucket of their own, once the store is there."""
    patience = Patience("the store", timeout=0)
    while True:
        try:
            await store.ensure_bucket(BUCKET)
            break
        except StoreUnavailable as error:
            await patience.wait(str(error))

    async def upload(path: Path) -> None:
        with path.open("rb") as file:
            descriptor = file.fileno()
            await store.put(BUCKET, key_of(path), descriptor, os.fstat(descriptor).st_size)

    await FileTurns(UPLOADS, UPLOADS).for_each(files, upload, refusal=StoreError)


def fragments(files: list[Path], copies: int) -> Iterator[RemoteFragment]:
    """Describe each file as a fragment, `copies` times under different names; the object is the same."""
    for copy in range(1, copies + 1):
        for path in files:
            name = path.relative_to(INPUT)
            if copy > 1:
                name = name.with_stem(f"{name.stem}-{copy}")
            file = RemoteFile(name=str(name), path=key_of(path), bucket=BUCKET)
            yield RemoteFragment([file], RemoteMetadata(fragment_id_of(str(name)), []))


def key_of(path: Path) -> str:
    """Return the key of a file's object."""
    return f"iterum_data/{path.relative_to(INPUT)}"


def fragment_id_of(name: str) -> str:
    """Return 64 characters that are the same for the same name, and begin much like it."""
    readable = re.sub("[^A-Za-z0-9_]+", "-", name)[:READABLE]
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()}"[:64]


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        trio.run(main)
