"""Drive a sidecar whose broker fails, and hold what came of it against what a fault may bring about.

The queues are declared by the sidecar, of the kind that the test asks for. The observer connects anew at each look, because the
broker is another each time; it reaches the broker itself, while the sidecar may be behind a proxy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from testbed.contents import content, make_bucket
from testbed.fragments import Message, Queues, connected
from testbed.manager import running_manager
from testbed.process import ProcessFailed, wait_until
from testbed.step import make_step
from tests.wire.checks import Outcome, check, check_mirrored
from tests.wire.journey import Journey

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from testbed.faulty_proxy import FaultyProxy
    from testbed.object_stores import ObjectStore
    from testbed.process import Process
    from testbed.rabbitmq import RabbitMQ

FRAGMENTS: Final = 300
PREFETCH: Final = 20
#: Seconds that the step takes for each fragment until the faults are over, so that there is work left when the broker is back.
EACH_SECONDS: Final = 0.1
#: Work goes on within 5 s of the broker's return; what is asserted leaves room for a machine under load.
RETURN_SECONDS, ASSERTED_RETURN_SECONDS = 5.0, 8.0
END_SECONDS: Final = 120
#: What a broker that is `strict` takes: bytes in one message, and milliseconds until an acknowledgement.
LARGEST_MESSAGE: Final = 2048
LONGEST_UNACKNOWLEDGED: Final = 3000
#: What a queue of each kind is declared with; `transient` is how Iterum's peers have it.
KINDS: Final[dict[str, dict[str, str]]] = {
    "transient": {},
    "durable": {"SIDECAR_QUEUE_DURABLE": "true"},
    "quorum": {"SIDECAR_QUEUE_DURABLE": "true", "SIDECAR_QUEUE_TYPE": "quorum"},
}


@dataclasses.dataclass(frozen=True)
class World:
    """Which of the brokers of `conftest.py`, and the kind of the queues on it."""

    broker: str
    kind: str

    def __str__(self) -> str:
        return f"{self.broker}-{self.kind}"


def worlds(*names: str) -> pytest.MarkDecorator:
    """Run a test in some worlds, each named `<broker> <kind of queue>`, with the fixture `broken_journey` in them."""
    them = [World(*name.split()) for name in names]
    return pytest.mark.parametrize("broken_journey", them, ids=str, indirect=True)


class PassingQueues(Queues):
    """The observer's queues, over a connection of its own for each call."""

    def __init__(self, url: str) -> None:
        self._url = url

    def declare(self, *queues: str, durable: bool = False) -> None:
        """Declare queues."""
        with connected(self._url) as now:
            now.declare(*queues, durable=durable)

    def publish(self, queue: str, bodies: Iterable[bytes]) -> None:
        """Put messages on a queue, each with the broker's confirm: without, one that is killed may forget it."""
        with connected(self._url) as now:
            now._channel.confirm_delivery()
            now.publish(queue, bodies)

    def exists(self, queue: str) -> bool:
        """Tell whether a queue has been declared."""
        with connected(self._url) as now:
            return now.exists(queue)

    def count(self, queue: str) -> int:
        """Return how many messages are ready in a queue."""
        with connected(self._url) as now:
            return now.count(queue)

    def consumers(self, queue: str) -> int:
        """Return how many consumers a queue has."""
        with connected(self._url) as now:
            return now.consumers(queue)

    def take(self, queue: str) -> list[Message]:
        """Take all messages that are ready in a queue."""
        with connected(self._url) as now:
            return now.take(queue)

    def delete(self, *queues: str) -> None:
        """Delete queues."""
        with connected(self._url) as now:
            now.delete(*queues)


class BrokerJourney(Journey):
    """A journey whose broker fails. Use `broker_journey_of`."""

    def begin(
        self,
        count: int = FRAGMENTS,
        *,
        seconds: float = EACH_SECONDS,
        prefetch: int = PREFETCH,
        proxy: FaultyProxy | None = None,
        finished: bool = True,
        **variables: str,
    ) -> tuple[Process, Process]:
        """Start a sidecar and a step that takes its time, let it declare the queues, and put so many inputs on the first.

        `finished` is what the manager says of upstream then.
        """
        for number in range(count):
            self.seed({f"{number}.bin": content(number, 200)}, directly=True)
        self.manager.finished = False
        sidecar = self.start_consuming(prefetch=prefetch, proxy=proxy, **variables)
        self.queues.publish(
            self.step.input_queue, [fragment.body() for fragment in self.inputs.values()]
        )
        transformation = self.start_step("paced", seconds, self.hurry)
        self.manager.finished = finished
        return sidecar, transformation

    def start_consuming(
        self, *, prefetch: int = PREFETCH, proxy: FaultyProxy | None = None, **variables: str
    ) -> Process:
        """Start a sidecar, by way of a proxy or not, and return when it has declared its queues and consumes."""
        if proxy is not None:
            variables["MQ_BROKER_URL"] = f"amqp://guest:guest@{proxy.endpoint}/"
        sidecar = self.start_sidecar(prefetch=prefetch, managed=True, **variables)
        sidecar.wait_until(lambda: told(sidecar, "at work"), seconds=30, what="it was at work")
        return sidecar

    def beside(self, volume: Path, directory: Path) -> BrokerJourney:
        """Return the same step in another pod: with a volume of its own, and the same inputs and queues."""
        directory.mkdir()
        step = dataclasses.replace(self.step, volume=volume)
        other = BrokerJourney(
            step, self.broker, self.store, self.queues, self.manager, self._stack, directory
        )
        other.inputs, other.contents, other.variables = self.inputs, self.contents, self.variables
        return other

    @property
    def hurry(self) -> Path:
        """The file that lets the step take its time no more."""
        return self.directory / "hurry"

    def outputs_now(self) -> int:
        """How many outputs are in the output queue."""
        return self.queues.count(self.step.output_queue)

    def wait_for_more(self, sidecar: Process, count: int = 1) -> None:
        """Wait until there are so many more outputs than now."""
        self.wait_for_outputs(self.outputs_now() + count, sidecar)

    def wait_for_return(self, sidecar: Process, what: str) -> None:
        """Wait for the first output after the broker's return, which is now, and hold the time against the promise."""
        returned = time.monotonic()
        before = self.outputs_now()
        sidecar.wait_until(
            lambda: self.outputs_now() > before, seconds=60, what=f"an output after {what}"
        )
        seconds = time.monotonic() - returned
        print(f"{what}: {seconds:.1f} s to the next output (promised: {RETURN_SECONDS:g} s)")
        assert seconds <= ASSERTED_RETURN_SECONDS, f"{seconds:.1f} s\n{sidecar.last_lines()}"

    def finish(
        self,
        sidecar: Process,
        *steps: Process,
        repeats: bool = False,
        once: bool = True,
        dead: int = 0,
    ) -> Outcome:
        """Wait for the end with exit code 0, and return what came of it, every check made.

        `repeats` permits that a message came twice, word by word: a confirm was lost with a connection. Without `once`,
        inputs may be missing: the broker lost them. `dead` is how many are dead letters.
        """
        self.hurry.touch()
        self.end(sidecar, *steps, seconds=END_SECONDS)
        assert_well_told(sidecar, errors=1 if dead else 0)
        return self.what_came(repeats=repeats, once=once, dead=dead)

    def what_came(self, *, repeats: bool, once: bool = True, dead: int = 0) -> Outcome:
        """Return what came of all sidecars of the step, which have ended, every check made; see `finish`."""
        names = (self.step.output_queue, self.step.lineage_queue, self.step.dead_letter_queue)
        taken, lineage, dead_letters = map(self.queues.take, names)
        if repeats:
            taken, lineage, dead_letters = map(without_repeats, (taken, lineage, dead_letters))
        outcome = Outcome([(self.step.output_queue, each) for each in taken], lineage, dead_letters)
        assert len(dead_letters) == dead
        check(outcome, self.step, self.inputs, once=once)
        check_mirrored(outcome, self.contents, self.store)
        wait_until(
            lambda: self.broker.depth(self.step.input_queue) == (0, 0),
            seconds=20,
            what="nothing to be left in the input queue",
        )
        assert self.leftovers() == []
        return outcome


def without_repeats(messages: list[Message]) -> list[Message]:
    """Return messages without those that are the same word by word as one before."""
    return list({message.body: message for message in messages}.values())


def events(sidecar: Process) -> list[dict[str, Any]]:
    """Return the lines of a sidecar's log so far."""
    lines = sidecar.log_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def told(sidecar: Process, message: str) -> list[dict[str, Any]]:
    """Return the lines of the log whose message begins so."""
    return [event for event in events(sidecar) if event["message"].startswith(message)]


def assert_well_told(sidecar: Process, errors: int = 0) -> None:
    """Assert that a fault of the world is told in lines of the log, in no traceback, and with so many errors."""
    text = sidecar.log_text()
    assert "Traceback" not in text, text
    assert '"traceback"' not in text, text
    strange = [line for line in text.splitlines() if not line.startswith("{")]
    assert strange == []
    assert sum(event["severity"] == "ERROR" for event in events(sidecar)) == errors, text


def assert_outages(sidecar: Process, count: int) -> None:
    """Assert that the log tells of so many lost connections: what happened and what is done, and that work goes on.

    Where they follow each other within half a minute, only the end of each but the first is told.
    """
    text = sidecar.log_text()
    waits, returns = told(sidecar, "waiting for the broker"), told(sidecar, "the broker is back")
    assert len(told(sidecar, "in the queue's line again")) == count, text
    assert min(count, 1) <= len(returns) <= count, text
    assert len(waits) >= len(returns), text
    assert all(event["reason"] for event in waits), text


@contextlib.contextmanager
def broker_journey_of(
    broker: RabbitMQ, kind: str, store: ObjectStore, volume: Path, directory: Path
) -> Iterator[BrokerJourney]:
    """Make a journey on queues of a kind, with names of its own and a manager."""
    with contextlib.ExitStack() as stack:
        queues = PassingQueues(broker.url)
        manager = stack.enter_context(running_manager(finished=True))
        step = make_step(volume)
        make_bucket(store, step.input_bucket)
        names = (step.input_queue, step.output_queue, step.lineage_queue, step.dead_letter_queue)
        stack.callback(queues.delete, *names)
        journey = BrokerJourney(step, broker, store, queues, manager, stack, directory)
        journey.variables.update(KINDS[kind])
        try:
            yield journey
        except ProcessFailed as error:
            error.add_note(f"the broker's log: {broker.log}")
            raise
