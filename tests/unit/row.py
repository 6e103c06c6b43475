"""The whole row of stages in one process: the embedded broker and store, and a transformation that is a task."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from iterum_sidecar.brokers.memory import MemoryBroker, MemoryConfirmation, MemoryDelivery
from iterum_sidecar.framing import FrameReader, encode_frame
from iterum_sidecar.patience import Patience
from iterum_sidecar.settings import Settings, read_settings
from iterum_sidecar.sidecar import Sidecar, queues_of
from iterum_sidecar.stores.directory import DirectoryStore
from iterum_sidecar.telemetry.tally import Tally

if TYPE_CHECKING:
    from iterum_sidecar.hangs import EndTransformation

INPUT, OUTPUT, LINEAGE, DEAD = "in", "out", "hash-lineage", "in-dead-letter"


def fragment_id(number: int) -> str:
    return f"{number:064d}"


class RecordingBroker(MemoryBroker):
    """The embedded broker, which notes what was confirmed and what was acknowledged, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, str, bytes]] = []

    async def publish(
        self, queue: str, body: bytes, headers: Mapping[str, Any] | None = None
    ) -> MemoryConfirmation:
        confirmation = await super().publish(queue, body, headers)
        return _RecordingConfirmation(self, confirmation, queue, body)

    def acknowledge(self, delivery: MemoryDelivery) -> None:
        self.events.append(("acknowledged", INPUT, delivery.body))
        super().acknowledge(delivery)


class _RecordingConfirmation(MemoryConfirmation):
    __slots__ = ("_body", "_broker", "_inner", "_queue")

    def __init__(
        self, broker: RecordingBroker, inner: MemoryConfirmation, queue: str, body: bytes
    ) -> None:
        super().__init__()
        self._broker, self._inner, self._queue, self._body = broker, inner, queue, body

    async def wait(self) -> None:
        await self._inner.wait()
        self._broker.events.append(("confirmed", self._queue, self._body))


class FinishedOnRequest:
    """An upstream that is finished when the test says so."""

    def __init__(self) -> None:
        self.finished = trio.Event()

    async def wait_until_finished(self) -> None:
        await self.finished.wait()


Step = Callable[["StepConnection"], Any]


class StepConnection:
    """One pair of connections of a transformation, with the contract's frames on them."""

    def __init__(self, volume: Path, inputs: trio.SocketStream, outputs: trio.SocketStream) -> None:
        self.volume = volume
        self.inputs = inputs
        self.outputs = outputs
        self._reader = FrameReader()
        self._arrived: deque[dict[str, Any]] = deque()
        self.ended_by_kill = False

    def fragments(self) -> StepConnection:
        """Iterate over each fragment that is handed out, until kill."""
        return self

    def __aiter__(self) -> StepConnection:
        return self

    async def __anext__(self) -> dict[str, Any]:
        while not self._arrived:
            data = await self.inputs.receive_some()
            if not data:
                raise StopAsyncIteration
            self._arrived.extend(map(json.loads, self._reader.feed(data)))
        message: dict[str, Any] = self._arrived.popleft()
        if "status" in message:
            self.ended_by_kill = True
            raise StopAsyncIteration
        return message

    async def result(
        self, predecessors: list[str], name: str, content: bytes, **metadata: object
    ) -> None:
        path = self.volume / "output" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        await self.send_result(predecessors, [(name, str(path))], **metadata)

    async def send_result(
        self, predecessors: list[str], files: list[tuple[str, str]], **metadata: object
    ) -> None:
        described: dict[str, object] = {"predecessors": predecessors, **metadata}
        await self.send(
            {
                "files": [{"name": name, "path": path} for name, path in files],
                "metadata": described,
            }
        )

    async def done(self, fragment_id: str) -> None:
        await self.send({"fragment_id": fragment_id})

    async def kill(self) -> None:
        await self.send({"status": "complete"})

    async def send(self, message: object) -> None:
        await self.outputs.send_all(encode_frame(json.dumps(message).encode()))


async def copy_step(connection: StepConnection) -> None:
    """A transformation that makes of each fragment one result with the same content, in upper case."""
    async for fragment in connection.fragments():
        (file,) = fragment["files"]
        own = fragment["metadata"]["fragment_id"]
        content = Path(file["path"]).read_bytes().upper()
        await connection.result([own], f"out-{file['name']}", content)
        await connection.done(own)
    await connection.kill()


@dataclass
class Row:
    """A broker, a store and a volume, which outlive the sidecars that are run on them."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    broker: RecordingBroker = field(default_factory=RecordingBroker)

    def __post_init__(self) -> None:
        self.volume = self.directory / "v"
        self.volume.mkdir()
        self.store_root = self.directory / "objects"
        self.store_root.mkdir()
        self.tally = Tally()

    def settings(self) -> Settings:
        return read_settings(
            {
                "DATA_VOLUME_PATH": str(self.volume),
                "TRANSFORMATION_STEP_INPUT": "in.sock",
                "TRANSFORMATION_STEP_OUTPUT": "out.sock",
                "ITERUM_NAME": "hash-step",
                "PIPELINE_HASH": "hash",
                "ITERUM_CONFIG_PATH": "config",
                "MQ_BROKER_URL": "amqp://guest:guest@nowhere",
                "MQ_INPUT_QUEUE": INPUT,
                "MQ_OUTPUT_QUEUE": OUTPUT,
                "MINIO_URL": "nowhere:9000",
                "MINIO_ACCESS_KEY": "key",
                "MINIO_SECRET_KEY": "secret",
                "MINIO_OUTPUT_BUCKET": "results",
                **self.environment,
            }
        )

    async def put(self, count: int, *, start: int = 0) -> None:
        """Put objects and descriptions of so many one-file fragments."""
        store = DirectoryStore(self.store_root)
        await store.ensure_bucket("source")
        for number in range(start, start + count):
            await self.put_object(f"iterum_data/{number}.txt", f"content {number}".encode())
            self.describe(number, [(f"{number}.txt", f"iterum_data/{number}.txt")])

    async def put_object(self, key: str, content: bytes) -> None:
        store = DirectoryStore(self.store_root)
        await store.ensure_bucket("source")
        with tempfile.TemporaryFile(dir=self.directory) as file:
            file.write(content)
            file.flush()
            await store.put("source", key, file.fileno(), len(content))

    def describe(self, number: int, files: list[tuple[str, str]], custom: object = None) -> None:
        """Put a description on the input queue."""
        self.broker.put(
            INPUT,
            json.dumps(
                {
                    "files": [
                        {"name": name, "path": key, "bucket": "source"} for name, key in files
                    ],
                    "metadata": {
                        "fragment_id": fragment_id(number),
                        "predecessors": None,
                        "custom": custom,
                    },
                }
            ).encode(),
        )

    def make_sidecar(
        self,
        upstream: FinishedOnRequest,
        *,
        standstill_after: float = math.inf,
        end_transformation: EndTransformation | None = None,
    ) -> Sidecar:
        settings = self.settings()

        @asynccontextmanager
        async def open_broker() -> AsyncIterator[RecordingBroker]:
            for queue in queues_of(settings):
                await self.broker.ensure_queue(queue)
            yield self.broker

        return Sidecar(
            settings,
            open_broker=open_broker,
            store=DirectoryStore(self.store_root),
            store_patience=Patience("the store", 0),
            upstream=lambda _ledger: upstream,
            tally=self.tally,
            standstill_after=standstill_after,
            end_transformation=end_transformation,
        )

    async def connect(self) -> StepConnection:
        """Connect to both sockets as soon as they are there."""
        streams: list[trio.SocketStream] = []
        try:
            for name in ("in.sock", "out.sock"):
                while len(streams) < 2:
                    try:
                        streams.append(await trio.open_unix_socket(self.volume / name))
                        break
                    except OSError:
                        await trio.sleep(0.01)
        except trio.Cancelled:
            for stream in streams:
                stream.socket.close()
            raise
        return StepConnection(self.volume, *streams)

    async def run_step(self, step: Step) -> None:
        """Run a transformation over one pair of connections, to its end or the sidecar's."""
        connection = await self.connect()
        try:
            await step(connection)
        except (trio.BrokenResourceError, ConnectionError):
            pass  # the sidecar has gone
        finally:
            # Asked for anew: a step may have opened others.
            connection.inputs.socket.close()
            connection.outputs.socket.close()

    async def run(self, *steps: Step, upstream: FinishedOnRequest | None = None) -> None:
        """Run a sidecar beside transformations until it ends; upstream is finished at once unless given."""
        if upstream is None:
            upstream = FinishedOnRequest()
            upstream.finished.set()
        sidecar = self.make_sidecar(upstream)
        async with trio.open_nursery() as nursery:
            for step in steps:
                nursery.start_soon(self.run_step, step)
            await sidecar.run()
            nursery.cancel_scope.cancel()

    # -- what came of it

    def outputs(self) -> list[dict[str, Any]]:
        return [json.loads(message.body) for message in self.broker.messages(OUTPUT)]

    def contents(self) -> dict[str, bytes]:
        """Return the content of every output file by its name."""
        found = {}
        for output in self.outputs():
            for file in output["files"]:
                found[file["name"]] = self.object(file["bucket"], file["path"])
        return found

    def object(self, bucket: str, key: str) -> bytes:
        store = DirectoryStore(self.store_root)
        return Path(store._object_path(bucket, key)).read_bytes()

    def left_on_volume(self) -> list[str]:
        """Return every file and socket that is left, but for the transformation's own directories."""
        return [
            str(Path(where, name).relative_to(self.volume))
            for where, _, names in os.walk(self.volume)
            for name in names
        ]

    def check_acknowledgements(self, results_of: Callable[[str], int] = lambda _: 1) -> None:
        """Nothing was acknowledged before all that came of it, and its lineage, was confirmed.

        `results_of` tells how many results the transformation makes of a fragment.
        """
        dead: set[bytes] = set()
        struck: Counter[bytes] = Counter()
        confirmed: dict[tuple[str, str], set[str]] = {}
        for kind, queue, body in self.broker.events:
            if kind == "confirmed" and queue == DEAD:
                dead.add(body)
            elif kind == "confirmed" and queue == INPUT:
                struck[body] += 1
            elif kind == "confirmed":
                message = json.loads(body)
                description = message["description"] if queue == LINEAGE else message
                for ancestor in description["metadata"]["predecessors"]:
                    identities = confirmed.setdefault((queue, ancestor), set())
                    identities.add(description["metadata"]["fragment_id"])
            elif struck[body]:
                struck[body] -= 1  # it is in the queue again
            elif body not in dead:
                own = json.loads(body)["metadata"]["fragment_id"]
                for each in (OUTPUT, LINEAGE):
                    safe = len(confirmed.get((each, own), ()))
                    assert safe >= results_of(own), f"{own} was acknowledged too early"


@asynccontextmanager
async def temporary_row(**environment: str) -> AsyncIterator[Row]:
    """Yield a row in a directory in memory, with a short path."""
    directory = Path(tempfile.mkdtemp(prefix="row-", dir="/dev/shm"))
    try:
        yield Row(directory, environment)
    finally:
        shutil.rmtree(directory)
