"""Remote fragments, and queues as the sidecar's peers see them; pika is the independent observer."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import string
from typing import TYPE_CHECKING, Any

import pika

from testbed.contents import put_directly, put_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pika.adapters.blocking_connection import BlockingChannel

    from testbed.object_stores import ObjectStore

__all__ = [
    "Message",
    "Queues",
    "RemoteFile",
    "RemoteFragment",
    "connected",
    "new_id",
    "put_fragment",
]

ALPHABET = string.ascii_lowercase + string.digits
JSON = "application/json"
NOT_FOUND = 404


def new_id() -> str:
    """Draw a fragment's ID as the Go programs do."""
    return "".join(secrets.choice(ALPHABET) for _ in range(64))


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file of a remote fragment."""

    name: str
    path: str
    bucket: str


@dataclasses.dataclass(frozen=True)
class RemoteFragment:
    """A fragment as it travels through queues."""

    fragment_id: str
    files: tuple[RemoteFile, ...]
    predecessors: tuple[str, ...] = ()
    custom: Mapping[str, object] | None = None
    target_queue: str | None = None

    def description(self) -> dict[str, Any]:
        """Return what its message says, as a JSON object."""
        metadata: dict[str, Any] = {
            "fragment_id": self.fragment_id,
            "predecessors": list(self.predecessors),
        }
        if self.custom is not None:
            metadata["custom"] = dict(self.custom)
        if self.target_queue is not None:
            metadata["target_queue"] = self.target_queue
        return {"files": [dataclasses.asdict(file) for file in self.files], "metadata": metadata}

    def body(self) -> bytes:
        """Return its message."""
        return json.dumps(self.description(), ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def of_body(cls, body: bytes) -> RemoteFragment:
        """Read a message; an assertion fails where it says something that no peer would understand."""
        return cls.of_description(json.loads(body))

    @classmethod
    def of_description(cls, description: Mapping[str, Any]) -> RemoteFragment:
        """Read a fragment's description, strictly: every key known, every value of its type."""
        assert description.keys() == {"files", "metadata"}, description
        metadata = description["metadata"]
        assert metadata.keys() <= {"fragment_id", "predecessors", "target_queue", "custom"}, (
            metadata
        )
        assert isinstance(metadata["predecessors"], list)
        for file in description["files"]:
            assert file.keys() == {"name", "path", "bucket"}, file
        return cls(
            metadata["fragment_id"],
            tuple(RemoteFile(**file) for file in description["files"]),
            tuple(metadata["predecessors"]),
            metadata.get("custom"),
            metadata.get("target_queue"),
        )


def put_fragment(
    store: ObjectStore,
    bucket: str,
    contents: Mapping[str, bytes],
    *,
    predecessors: Sequence[str] = (),
    custom: Mapping[str, object] | None = None,
    directly: bool = False,
) -> RemoteFragment:
    """Store a new fragment's files, by name, in a bucket that exists, and return its description.

    `directly` is fast, and for a bucket that nobody has read from or written to yet (`put_directly`).
    """
    put = put_directly if directly else put_object
    fragment_id = new_id()
    files = tuple(
        RemoteFile(name, f"iterum_data/{fragment_id}/{name}", bucket) for name in contents
    )
    for file in files:
        put(store, bucket, file.path, contents[file.name])
    return RemoteFragment(fragment_id, files, tuple(predecessors), custom)


@dataclasses.dataclass(frozen=True)
class Message:
    """A message taken from a queue."""

    body: bytes
    headers: Mapping[str, Any]
    content_type: str | None
    delivery_mode: int | None


class Queues:
    """A peer's view of the broker's queues. Use `connected`."""

    def __init__(self, channel: BlockingChannel) -> None:
        self._channel = channel

    def declare(self, *queues: str, durable: bool = False) -> None:
        """Declare queues exactly as Iterum's peers do, or durable."""
        for queue in queues:
            self._channel.queue_declare(queue, durable=durable, exclusive=False, auto_delete=False)

    def publish(self, queue: str, bodies: Iterable[bytes]) -> None:
        """Put messages on a queue, in order; the broker has them all when this returns."""
        properties = pika.BasicProperties(content_type=JSON, delivery_mode=2)
        for body in bodies:
            self._channel.basic_publish("", queue, body, properties)
        # The broker answers in order: the answer to this says that it has read everything before.
        self._channel.basic_qos(prefetch_count=0)

    def _look(self, queue: str) -> tuple[int, int]:
        """Return how many messages are ready and how many consumers there are; none when there is no queue."""
        try:
            answer = self._channel.queue_declare(queue, passive=True).method
        except pika.exceptions.ChannelClosedByBroker as error:
            if error.reply_code != NOT_FOUND:
                raise
            self._channel = self._channel.connection.channel()
            return -1, 0
        return int(answer.message_count), int(answer.consumer_count)

    def exists(self, queue: str) -> bool:
        """Tell whether a queue has been declared."""
        return self._look(queue)[0] >= 0

    def count(self, queue: str) -> int:
        """Return how many messages are ready in a queue; none when it does not exist.

        Those that a consumer holds unacknowledged are not counted, as long as it is connected.
        """
        return max(0, self._look(queue)[0])

    def consumers(self, queue: str) -> int:
        """Return how many consumers a queue has; none when it does not exist."""
        return self._look(queue)[1]

    def take(self, queue: str) -> list[Message]:
        """Take all messages that are ready in a queue, in order."""
        return self.take_first(queue, None)

    def take_first(self, queue: str, most: int | None) -> list[Message]:
        """Take the first messages that are ready in a queue, at most so many (None: all), in order."""
        messages: list[Message] = []
        if not self.exists(queue):
            return messages
        while most is None or len(messages) < most:
            method, properties, body = self._channel.basic_get(queue, auto_ack=True)
            if method is None:
                break
            messages.append(
                Message(
                    body,
                    properties.headers or {},
                    properties.content_type,
                    properties.delivery_mode,
                )
            )
        return messages

    def delete(self, *queues: str) -> None:
        """Delete queues with all that is in them; one that does not exist is no error."""
        for queue in queues:
            self._channel.queue_delete(queue)


@contextlib.contextmanager
def connected(url: str) -> Iterator[Queues]:
    """Connect to the broker as a peer."""
    parameters = pika.URLParameters(url)
    # Nothing is read between calls, so a heartbeat would be missed whenever a test waits for something else.
    parameters.heartbeat = 0
    connection = pika.BlockingConnection(parameters)
    try:
        yield Queues(connection.channel())
    finally:
        if connection.is_open:
            connection.close()
