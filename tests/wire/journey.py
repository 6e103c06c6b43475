"""Drive one real sidecar from outside: real broker, real store, real pyterum, and independent observers.

A `Journey` is one step of a pipeline of its own. A test seeds inputs, starts the sidecar and steps, waits for
the end with a deadline, and gets an `Outcome`, on which everything that the contract promises of every run
has been checked already (`checks.py`).

The variable WIRE_SIDECAR names another program to run instead of ours, to see what the tests say of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.contents import list_keys, make_bucket
from testbed.fragments import Queues, RemoteFragment, connected, put_fragment
from testbed.manager import Manager, running_manager
from testbed.process import Exit, Process
from testbed.step import Step, make_step

from .checks import Outcome, check

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from testbed.object_stores import ObjectStore
    from testbed.rabbitmq import RabbitMQ

ROOT = Path(__file__).parents[2]
STEPS = Path(__file__).with_name("steps")
SIDECAR = shlex.split(
    os.environ.get("WIRE_SIDECAR", f"{shlex.quote(sys.executable)} -m iterum_sidecar run")
)
START_SECONDS = 20
END_SECONDS = 40
ACCEPTS_CONNECTIONS = 0x10000


def listens(socket: Path) -> bool:
    """Tell whether a process listens on a Unix socket, without connecting to it: that would be noticed."""
    for line in Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == str(socket):
            return bool(int(fields[3], 16) & ACCEPTS_CONNECTIONS)
    return False


class Journey:
    """One step of a pipeline, its inputs, its sidecars and transformations. Use `journey_of`."""

    def __init__(
        self,
        step: Step,
        broker: RabbitMQ,
        store: ObjectStore,
        queues: Queues,
        manager: Manager,
        stack: contextlib.ExitStack,
        directory: Path,
    ) -> None:
        self.step = step
        self.broker = broker
        self.store = store
        self.queues = queues
        self.manager = manager
        self.inputs: dict[str, RemoteFragment] = {}
        self.contents: dict[str, dict[str, bytes]] = {}
        self.config: dict[str, object] = {}
        self.variables: dict[str, str] = {}
        self.directory = directory
        self._stack = stack
        self._started = 0

    def seed(
        self,
        contents: Mapping[str, bytes],
        *,
        predecessors: Sequence[str] = (),
        custom: Mapping[str, object] | None = None,
        directly: bool = False,
    ) -> RemoteFragment:
        """Store one input's files by name; it is queued with the others by `queue_inputs`."""
        fragment = put_fragment(
            self.store,
            self.step.input_bucket,
            contents,
            predecessors=predecessors,
            custom=custom,
            directly=directly and self.store.directory is not None,
        )
        self.inputs[fragment.fragment_id] = fragment
        self.contents[fragment.fragment_id] = dict(contents)
        return fragment

    def queue_inputs(self) -> None:
        """Declare the step's queues as its peers do, and put all inputs on the first."""
        self.queues.declare(self.step.input_queue, self.step.output_queue, self.step.lineage_queue)
        self.queues.publish(
            self.step.input_queue, [fragment.body() for fragment in self.inputs.values()]
        )

    def publish(self, description: Mapping[str, object]) -> None:
        """Put one message on the input queue, which has been declared."""
        self.queues.publish(self.step.input_queue, [json.dumps(description).encode()])

    def _log(self, name: str) -> Path:
        self._started += 1
        return self.directory / f"{self._started}-{name}.log"

    def start_sidecar(
        self,
        *,
        prefetch: int | None = None,
        managed: bool = True,
        command: Sequence[str] = SIDECAR,
        **variables: str,
    ) -> Process:
        """Start a sidecar with this step's environment, and with further variables; `command` runs it in another way."""
        environment = self.step.sidecar_environment(
            self.broker,
            self.store,
            manager_url=self.manager.url if managed else "",
            prefetch=prefetch,
            config=self.config,
        )
        environment |= {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        self._sidecar = self._start(command, "sidecar", environment | self.variables | variables)
        return self._sidecar

    def start_step(self, name: str, *arguments: object) -> Process:
        """Start a program of `steps/`, once the sidecar listens: pyterum tries again only after 5 s."""
        self.wait_for_sockets()
        return self.start_step_now(name, *arguments)

    @property
    def state_file(self) -> Path:
        """Where the sidecar says what it is doing."""
        return self.step.volume / ".iterum-sidecar" / "state"

    def wait_for_sockets(self) -> None:
        """Wait until the sidecar listens on both of its sockets."""
        sockets = (self.step.input_socket, self.step.output_socket)
        self._sidecar.wait_until(
            lambda: all(listens(socket) for socket in sockets),
            seconds=START_SECONDS,
            what="it listened on both sockets",
        )

    def start_step_now(self, name: str, *arguments: object) -> Process:
        """Start a program of `steps/`, whether the sidecar listens or not."""
        command = [sys.executable, str(STEPS / f"{name}.py"), *map(str, arguments)]
        return self._start(command, name, self.step.transformation_environment(self.config))

    def _start(self, command: Sequence[str], name: str, environment: dict[str, str]) -> Process:
        process = Process(command, log=self._log(name), environment=environment, cwd=self.directory)
        self._stack.callback(process.close)
        return process

    def wait_for_outputs(self, count: int, sidecar: Process, queue: str = "") -> None:
        """Wait until so many outputs at least are in the output queue, or in another."""
        queue = queue or self.step.output_queue
        sidecar.wait_until(
            lambda: self.queues.count(queue) >= count, seconds=END_SECONDS, what=f"{count} outputs"
        )

    def end(
        self, sidecar: Process, *steps: Process, code: int = 0, seconds: float = END_SECONDS
    ) -> Exit:
        """Wait for the sidecar to end with the exit code that is expected, and for its steps to end with 0."""
        ended = sidecar.wait(seconds)
        assert ended.code == code, f"exit code {ended.code}\n{sidecar.last_lines()}"
        for step in steps:
            answer = step.wait(10)
            assert answer.code == 0, f"the step ended with {answer.code}\n{step.last_lines()}"
        return ended

    def take_outputs(self) -> dict[str, RemoteFragment]:
        """Take the outputs of a life that has ended, with their lineage, and return each by its input."""
        outputs = [
            RemoteFragment.of_body(message.body)
            for message in self.queues.take(self.step.output_queue)
        ]
        self.queues.take(self.step.lineage_queue)
        return {output.predecessors[0]: output for output in outputs}

    def outcome(self, *queues: str, once: bool = True, refused: int = 0) -> Outcome:
        """Take everything from the output queue (or the queues given) and check it against the contract.

        `once` says that each input has led to exactly one output or one dead letter. No file may be left in the
        volume, but for so many results at most that the sidecar refused or never heard of: they are not its to delete.
        """
        taken = [
            (queue, message)
            for queue in queues or (self.step.output_queue,)
            for message in self.queues.take(queue)
        ]
        outcome = Outcome(
            taken,
            self.queues.take(self.step.lineage_queue),
            self.queues.take(self.step.dead_letter_queue),
        )
        check(outcome, self.step, self.inputs, once=once)
        assert self.queues.count(self.step.input_queue) == 0, "the input queue is not empty"
        assert self.queues.consumers(self.step.input_queue) == 0
        left = self.leftovers()
        assert len(left) <= refused, left
        assert all(path.startswith("output/") for path in left), left
        stored = set(list_keys(self.store, self.step.output_bucket))
        assert {file.path for output in outcome.outputs for file in output.files} <= stored
        return outcome

    def leftovers(self) -> list[str]:
        """Return what is left in the volume and is no directory, socket or config file, and not the state, which stays."""
        return sorted(
            str(path.relative_to(self.step.volume))
            for path in self.step.volume.rglob("*")
            if not stat.S_ISDIR(mode := path.lstat().st_mode)
            and not stat.S_ISSOCK(mode)
            and self.step.config_directory not in path.parents
            and path != self.state_file
        )

    def run(
        self, name: str, *arguments: object, prefetch: int | None = None, refused: int = 0
    ) -> Outcome:
        """Queue the inputs, run one sidecar and one step to their end, and return what came of it."""
        self.queue_inputs()
        sidecar = self.start_sidecar(prefetch=prefetch)
        step = self.start_step(name, *arguments)
        self.end(sidecar, step)
        return self.outcome(refused=refused)


@contextlib.contextmanager
def journey_of(
    broker: RabbitMQ, store: ObjectStore, volume: Path, directory: Path
) -> Iterator[Journey]:
    """Make a journey with names of its own, an input bucket, and a manager that says finished."""
    with contextlib.ExitStack() as stack:
        queues = stack.enter_context(connected(broker.url))
        manager = stack.enter_context(running_manager(finished=True))
        step = make_step(volume)
        make_bucket(store, step.input_bucket)
        stack.callback(
            queues.delete,
            step.input_queue,
            step.output_queue,
            step.lineage_queue,
            step.dead_letter_queue,
        )
        yield Journey(step, broker, store, queues, manager, stack, directory)
