"""Whoever feeds the input queue: it is never empty and never long, until production stops."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Final, Self

import pika

from testbed.contents import put_object

from .inputs import Input, Nature, input_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pika.adapters.blocking_connection import BlockingChannel

    from testbed.object_stores import ObjectStore
    from testbed.step import Step

__all__ = ["Producer"]

#: Messages that are ready in the queue: no more are put there than to make so many, and so many at a time.
BACKLOG: Final = 40
BATCH: Final = 10
LOOK_SECONDS: Final = 0.2
#: Seconds that the broker has to take what was begun: it may be about to start again.
STOP_SECONDS: Final = 90.0
#: Seconds until a broker that is away is tried again.
RETRY_SECONDS: Final = 0.5


class Producer:
    """A peer that reaches the broker and the store directly, and gives up on neither. Use as a context manager."""

    def __init__(self, seed: int, step: Step, broker_url: str, store: ObjectStore) -> None:
        self._seed = seed
        self._step = step
        self._broker_url = broker_url
        self._store = store
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="producer", daemon=True)
        self.made = 0
        """Inputs that are in the queue for certain: the numbers below this."""
        self.twice = 0
        """Inputs that may be there twice, because the broker went away before it had confirmed them."""
        self.ready = 0
        """How many messages waited at the last look, while production goes on."""
        self.failure: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Make no more, and return when what was begun is in the queue."""
        self._stop.set()
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            self.failure = TimeoutError("the broker does not take what was begun")
        self.ready = 0

    def _run(self) -> None:
        try:
            batch: list[Input] = []
            while batch or not self._stop.is_set():
                try:
                    self._produce(batch)
                except (pika.exceptions.AMQPError, OSError):
                    self.twice += bool(batch)
                    time.sleep(RETRY_SECONDS)
        except Exception as error:  # it is for the thread that asks
            self.failure = error

    def _produce(self, batch: list[Input]) -> None:
        """Produce over one connection until production stops. What is in `batch` was made before; what is left there was not confirmed."""
        with channel_to(self._broker_url) as channel:
            while True:
                while batch:
                    self._put(channel, batch[0])
                    batch.pop(0)
                    self.made += 1
                if self._stop.is_set():
                    return
                self.ready = count(channel, self._step.input_queue)
                if self.ready < BACKLOG:
                    batch += self._make()
                else:
                    self._stop.wait(LOOK_SECONDS)

    def _put(self, channel: BlockingChannel, each: Input) -> None:
        """Put one on the queue; the broker has written it when this returns."""
        properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
        channel.basic_publish("", self._step.input_queue, each.body, properties)

    def _make(self) -> list[Input]:
        """Store the files of the next inputs."""
        numbers = range(self.made, self.made + BATCH)
        batch = [input_of(self._seed, number, self._step.input_bucket) for number in numbers]
        for each in batch:
            if each.nature in {Nature.GOOD, Nature.POISON}:
                for position, file in enumerate(each.fragment.files):
                    put_object(self._store, file.bucket, file.path, each.content(position))
        return batch


@contextlib.contextmanager
def channel_to(url: str) -> Iterator[BlockingChannel]:
    """Open a channel on which a publish returns when the broker has confirmed it."""
    parameters = pika.URLParameters(url)
    parameters.heartbeat = 0
    connection = pika.BlockingConnection(parameters)
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel
    finally:
        if connection.is_open:
            with contextlib.suppress(pika.exceptions.AMQPError):
                connection.close()


def count(channel: BlockingChannel, queue: str) -> int:
    """Return how many messages are ready."""
    return int(channel.queue_declare(queue, passive=True).method.message_count)
