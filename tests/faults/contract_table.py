"""What the Go sidecar does under faults (contract, section 11), done to this one: each row is a scenario, and what is lost is counted.

    python -m tests.faults.contract_table        runs all of them, and prints the table of docs/reliability.md

A scenario drives real processes (a RabbitMQ node, rclone's S3 server, pyterum) and returns the last exit code; the account is made
from the queues and the store, by whoever was not part of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import resource
import signal
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from testbed.contents import content, get_object
from testbed.faulty_proxy import running_faulty_proxy
from testbed.fragments import RemoteFragment
from testbed.object_stores import running_rclone
from testbed.rabbitmq import running_rabbitmq
from tests.wire.journey import Journey, journey_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from testbed.process import Process

COUNT: Final = 300
PREFETCH: Final = 20
END_SECONDS: Final = 90
#: Seconds that a slow step takes for each fragment, so that a fault meets it at work.
SLOW: Final = 0.02


@dataclasses.dataclass
class Account:
    """What became of the inputs of a scenario."""

    inputs: int
    lost: int
    """Inputs that led to neither a right output nor a dead letter."""
    stuck: int
    """Messages that are left in the input queue, those that somebody holds too."""
    second: int
    """Inputs that came out under more than one ID."""
    dead: int
    """Dead letters."""
    left: int
    """Files that are left on the volume."""
    code: int
    seconds: float = 0.0
    peak: int = 0
    """Bytes, of the sidecar's last life."""

    @property
    def cells(self) -> str:
        """The row's own columns."""
        return (
            f"{self.inputs} | {self.lost} | {self.stuck} | {self.second} | {self.dead} | {self.code}"
            f" | {self.seconds:.0f} s | {self.peak / 1e6:.0f} MB"
        )


class Life:
    """A sidecar and its step, which is started again when it dies, as a cluster would."""

    def __init__(self, journey: Journey, step: str, *arguments: object) -> None:
        self._journey = journey
        self._step = (step, *arguments)
        self._process: Process | None = None
        self.restart = True

    def start(self) -> Process:
        """Start the step."""
        name, *arguments = self._step
        self._process = self._journey.start_step_now(str(name), *arguments)
        return self._process

    def kill(self) -> None:
        """Kill the step at once."""
        if self._process is not None and self._process.poll() is None:
            self._process.signal(signal.SIGKILL)
            self._process.wait(10)

    def look(self) -> None:
        """Start it again if it has died."""
        if self._process is None:
            return
        ended = self._process.poll()
        if ended is not None and ended.code != 0 and self.restart:
            self.start()

    def wait(self, sidecar: Process, condition: Callable[[], object], seconds: float) -> None:
        """Wait for something, looking after the step meanwhile."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {seconds:g} s in vain\n{sidecar.last_lines()}")
            self.look()
            time.sleep(0.02)


def seed(journey: Journey, count: int = COUNT) -> None:
    """Store inputs and queue them."""
    for number in range(count):
        journey.seed({f"{number}.bin": content(number, 200)}, directly=True)
    journey.queue_inputs()


def outputs_of(journey: Journey) -> int:
    """How many outputs are in the queue."""
    return journey.queues.count(journey.step.output_queue)


def run_to_end(journey: Journey, life: Life, prefetch: int | None = PREFETCH) -> tuple[int, int]:
    """Run one life to its end, and return its exit code and its peak memory."""
    sidecar = journey.start_sidecar(prefetch=prefetch)
    journey.wait_for_sockets()
    life.start()
    return end(life, sidecar)


def end(life: Life, sidecar: Process, seconds: float = END_SECONDS) -> tuple[int, int]:
    """Wait for the sidecar to end."""
    life.wait(sidecar, lambda: sidecar.poll() is not None, seconds)
    life.restart = False
    ended = sidecar.wait(1)
    return ended.code, ended.peak_memory


# -- the scenarios


def killed_five_times(journey: Journey) -> tuple[int, int]:
    """Kill sidecar and step -9, five times, and start both again."""
    seed(journey)
    for number in range(5):
        life = Life(journey, "mirror", SLOW)
        sidecar = journey.start_sidecar(prefetch=PREFETCH)
        journey.wait_for_sockets()
        life.start()
        life.wait(sidecar, lambda: outputs_of(journey) >= 15 + 40 * number, 60)  # noqa: B023
        sidecar.signal(signal.SIGKILL)
        sidecar.wait(10)
        life.kill()
    return run_to_end(journey, Life(journey, "mirror"))


def cut_three_times(journey: Journey) -> tuple[int, int]:
    """Reset the connections to the broker three times."""
    seed(journey)
    with running_faulty_proxy(f"127.0.0.1:{journey.broker.port}") as proxy:
        life = Life(journey, "mirror", SLOW)
        sidecar = behind(journey, proxy.endpoint)
        life.start()
        for number in range(3):
            life.wait(sidecar, lambda: outputs_of(journey) >= 20 + 60 * number, 60)  # noqa: B023
            proxy.cut()
        return end(life, sidecar)


def unreachable_for_8_seconds(journey: Journey) -> tuple[int, int]:
    """Refuse every connection to the broker for 8 s."""
    seed(journey)
    with running_faulty_proxy(f"127.0.0.1:{journey.broker.port}") as proxy:
        life = Life(journey, "mirror", SLOW)
        sidecar = behind(journey, proxy.endpoint)
        life.start()
        life.wait(sidecar, lambda: outputs_of(journey) >= 60, 60)
        proxy.refuse()
        time.sleep(8)  # the outage itself
        proxy.pass_on()
        return end(life, sidecar)


def behind(journey: Journey, endpoint: str) -> Process:
    """Start a sidecar that reaches the broker there."""
    sidecar = journey.start_sidecar(
        prefetch=PREFETCH, MQ_BROKER_URL=f"amqp://guest:guest@{endpoint}/"
    )
    journey.wait_for_sockets()
    return sidecar


def step_killed(journey: Journey) -> tuple[int, int]:
    """Kill the step -9 in the middle, and start it again."""
    seed(journey)
    life = Life(journey, "mirror", SLOW)
    sidecar = journey.start_sidecar(prefetch=PREFETCH)
    journey.wait_for_sockets()
    life.start()
    life.wait(sidecar, lambda: outputs_of(journey) >= 100, 60)
    life.kill()
    return end(life, sidecar)


def malformed_messages(journey: Journey) -> tuple[int, int]:
    """Put 16 messages that are no fragments among the good ones."""
    for number in range(COUNT):
        journey.seed({f"{number}.bin": content(number, 200)}, directly=True)
    bodies = [fragment.body() for fragment in journey.inputs.values()]
    good = json.loads(bodies[0])
    for number in range(16):
        more = {"number": number}
        bad: Any = (b"not JSON %d" % number, more, good | more | {"files": []}, good | more)[
            number % 4
        ]
        if number % 4 == 3:
            bad["metadata"] = {}
        bodies.insert(18 * number, bad if isinstance(bad, bytes) else json.dumps(bad).encode())
    step = journey.step
    journey.queues.declare(step.input_queue, step.output_queue, step.lineage_queue)
    journey.queues.publish(step.input_queue, bodies)
    return run_to_end(journey, Life(journey, "mirror"))


def bad_frame(way: str) -> Callable[[Journey], tuple[int, int]]:
    """Return a scenario in which the step does something that it may not, once."""

    def scenario(journey: Journey) -> tuple[int, int]:
        for number in range(COUNT):
            name = "bad" if number == COUNT // 2 else f"{number}.bin"
            journey.seed({name: content(number, 200)}, directly=True)
        journey.queue_inputs()
        canary = journey.directory / "canary"
        canary.write_bytes(b"not yours")
        code = run_to_end(journey, Life(journey, "naughty", way, canary))
        if canary.read_bytes() != b"not yours":
            raise AssertionError("a file outside the volume was touched")
        return code

    return scenario


def many_without_prefetch(journey: Journey) -> tuple[int, int]:
    """Leave the prefetch unset with 5,000 fragments."""
    seed(journey, 5000)
    return run_to_end(journey, Life(journey, "mirror"), prefetch=None)


def told_to_stop(journey: Journey) -> tuple[int, int]:
    """Send SIGTERM in the middle, and start another life."""
    seed(journey)
    life = Life(journey, "mirror", SLOW)
    sidecar = journey.start_sidecar(prefetch=PREFETCH)
    journey.wait_for_sockets()
    life.start()
    life.wait(sidecar, lambda: outputs_of(journey) >= 100, 60)
    sidecar.signal(signal.SIGTERM)
    code, _ = end(life, sidecar)
    if code != 143:
        raise AssertionError(f"SIGTERM ended it with {code}")
    return run_to_end(journey, Life(journey, "mirror"))


def killed_without_prefetch(journey: Journey) -> tuple[int, int]:
    """Leave the prefetch unset, and kill sidecar and step -9 at 500 of 2,000 outputs."""
    seed(journey, 2000)
    life = Life(journey, "mirror")
    sidecar = journey.start_sidecar()
    journey.wait_for_sockets()
    life.start()
    life.wait(sidecar, lambda: outputs_of(journey) >= 500, 60)
    sidecar.signal(signal.SIGKILL)
    sidecar.wait(10)
    life.kill()
    return run_to_end(journey, Life(journey, "mirror"), prefetch=None)


def few_open_files(journey: Journey) -> tuple[int, int]:
    """Leave the prefetch unset with 1,024 open files allowed."""
    seed(journey, 2000)
    sidecar = journey.start_sidecar()
    resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (1024, 1024))
    journey.wait_for_sockets()
    life = Life(journey, "mirror")
    life.start()
    return end(life, sidecar)


def missing_objects(journey: Journey) -> tuple[int, int]:
    """Have one object that is not there, and one ID that is too short."""
    for number in range(COUNT):
        journey.seed({f"{number}.bin": content(number, 200)}, directly=True)
    bodies = [fragment.description() for fragment in journey.inputs.values()]
    bodies[7]["files"][0]["path"] = "iterum_data/nowhere"
    bodies[9]["metadata"]["fragment_id"] = "short"
    step = journey.step
    journey.queues.declare(step.input_queue, step.output_queue, step.lineage_queue)
    journey.queues.publish(step.input_queue, [json.dumps(each).encode() for each in bodies])
    return run_to_end(journey, Life(journey, "mirror"))


def large_and_ambiguous(journey: Journey) -> tuple[int, int]:
    """Have a fragment with two files of one name, and one with 1,500 files."""
    for number in range(10):
        journey.seed({f"{number}.bin": content(number, 200)})
    journey.seed({f"{number}.bin": content(number, 40) for number in range(1500)})
    bodies = [fragment.description() for fragment in journey.inputs.values()]
    bodies[3]["files"] *= 2
    step = journey.step
    journey.queues.declare(step.input_queue, step.output_queue, step.lineage_queue)
    journey.queues.publish(step.input_queue, [json.dumps(each).encode() for each in bodies])
    return run_to_end(journey, Life(journey, "mirror"))


def nothing_at_all(journey: Journey) -> tuple[int, int]:
    """Do nothing to it."""
    seed(journey, 150)
    return run_to_end(journey, Life(journey, "mirror"))


@dataclasses.dataclass(frozen=True)
class Row:
    """A fault, what the Go sidecar made of it, what is done here, and how many dead letters are right."""

    fault: str
    go: str
    scenario: Callable[[Journey], tuple[int, int]]
    dead: int = 0
    runs: int = 1


ROWS: Final = (
    Row(
        "SIGKILL of sidecar and step, five times",
        "2 of 300 lost",
        killed_five_times,
    ),
    Row("broker connections cut three times", "206 never processed", cut_three_times),
    Row("broker unreachable for 8 s", "177 never processed", unreachable_for_8_seconds),
    Row(
        "the transformation is killed and started again",
        "177 never processed, hangs",
        step_killed,
    ),
    Row(
        "16 malformed messages among 300 good ones",
        "203 never processed, hangs",
        malformed_messages,
        dead=16,
    ),
    Row("a frame that is not JSON", "the sidecar dies", bad_frame("garbage-frame")),
    Row("an empty frame", "the sidecar dies", bad_frame("empty-frame")),
    Row(
        "half a frame, and the end, three times",
        "the sidecar dies",
        bad_frame("half-frame"),
        dead=1,
    ),
    Row(
        "a result that names a file outside the volume",
        "uploaded, then **deleted**",
        bad_frame("outside"),
        dead=1,
    ),
    Row("prefetch unset, 5,000 fragments", "352 MB, half the speed", many_without_prefetch),
    Row("SIGTERM", "dies with what is in flight", told_to_stop),
    Row(
        "prefetch unset, SIGKILL at 500 of 2,000 outputs",
        "378 lost",
        killed_without_prefetch,
    ),
    Row(
        "prefetch unset, 1,024 open files allowed",
        "388 lost, hangs",
        few_open_files,
    ),
    Row(
        "a missing object; an ID that is too short",
        "never acknowledged, hangs; exit 1",
        missing_objects,
        dead=2,
    ),
    Row(
        "two files of one name; 1,500 files in one",
        "one lost silently; exit 1",
        large_and_ambiguous,
        dead=1,
    ),
    Row(
        "no fault at all, 36 runs of 150",
        "messages left in 2 of 36 runs",
        nothing_at_all,
        runs=36,
    ),
)


# -- the account


def account_of(journey: Journey, row: Row) -> Account:
    """Run a row's scenario once, and say what became of its inputs."""
    began = time.monotonic()
    code, peak = row.scenario(journey)
    seconds = time.monotonic() - began
    step, queues = journey.step, journey.queues
    stuck = sum(journey.broker.depth(step.input_queue))
    found: defaultdict[str, set[str]] = defaultdict(set)
    for message in queues.take(step.output_queue):
        output = RemoteFragment.of_body(message.body)
        (origin,) = output.predecessors
        if is_right(journey, origin, output):
            found[origin].add(output.fragment_id)
    lineage = {
        json.loads(message.body)["description"]["metadata"]["fragment_id"]
        for message in queues.take(step.lineage_queue)
    }
    letters = [message.body for message in queues.take(step.dead_letter_queue)]
    told = {each for identities in found.values() for each in identities if each in lineage}
    accounted = {origin for origin, identities in found.items() if identities <= told}
    accounted |= {origin for origin in journey.inputs if is_dead(journey, origin, letters)}
    return Account(
        inputs=len(journey.inputs),
        lost=len(journey.inputs.keys() - accounted),
        stuck=stuck,
        second=sum(len(identities) > 1 for identities in found.values()),
        dead=len(set(letters)),
        left=len(journey.leftovers()),
        code=code,
        seconds=seconds,
        peak=peak,
    )


def is_right(journey: Journey, origin: str, output: RemoteFragment) -> bool:
    """Whether an output has the content that it should have: its input's bytes turned round, or the same."""
    given = journey.contents[origin]
    for file in output.files[:20]:
        got = get_object(journey.store, file.bucket, file.path)
        if got not in {given[file.name], given[file.name][::-1]}:
            return False
    return [file.name for file in output.files] == list(given)


def is_dead(journey: Journey, origin: str, letters: list[bytes]) -> bool:
    """Whether an input is a dead letter: by its ID, or, where that is what is wrong with it, by its object."""
    file = journey.inputs[origin].files[0]
    return any(origin.encode() in each or file.path.encode() in each for each in letters)


# -- the table


@contextlib.contextmanager
def services() -> Iterator[Callable[[], contextlib.AbstractContextManager[Journey]]]:
    """Run a broker and a store, and give what makes a journey between them."""
    memory = Path("/dev/shm")
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(
            tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        )
        directory = Path(where)
        directory.chmod(0o755)
        broker = stack.enter_context(running_rabbitmq(directory / "rabbitmq"))
        store = stack.enter_context(running_rclone(directory / "rclone"))

        @contextlib.contextmanager
        def journey() -> Iterator[Journey]:
            with tempfile.TemporaryDirectory(prefix="t-", dir=directory) as own:
                volume = Path(own) / "v"
                volume.mkdir()
                logs = Path(own) / "logs"
                logs.mkdir()
                with journey_of(broker, store, volume, logs) as one:
                    yield one

        yield journey


def main() -> int:
    """Run every row and print the table; 1 where anything was lost, stuck or doubled."""
    failed = 0
    print(
        "| fault | Go sidecar | inputs | lost | stuck | second ID | dead letters | exit | time | memory |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    with services() as journeys:
        for row in ROWS:
            accounts = []
            for _ in range(row.runs):
                with journeys() as journey:
                    accounts.append(account_of(journey, row))
            whole = whole_of(accounts)
            print(f"| {row.fault} | {row.go} | {whole.cells} |", flush=True)
            failed += not is_as_promised(row, whole)
    return 1 if failed else 0


def whole_of(accounts: list[Account]) -> Account:
    """Return the account of several runs together: the worst exit code and peak, the sum of all else."""
    return Account(
        inputs=sum(each.inputs for each in accounts),
        lost=sum(each.lost for each in accounts),
        stuck=sum(each.stuck for each in accounts),
        second=sum(each.second for each in accounts),
        dead=sum(each.dead for each in accounts),
        left=sum(each.left for each in accounts),
        code=max(each.code for each in accounts),
        seconds=sum(each.seconds for each in accounts),
        peak=max(each.peak for each in accounts),
    )


def is_as_promised(row: Row, account: Account) -> bool:
    """Whether nothing was lost, stuck or doubled, and the dead letters are those that should be."""
    return (account.lost, account.stuck, account.second, account.code, account.dead) == (
        0,
        0,
        0,
        0,
        row.dead * row.runs,
    )


if __name__ == "__main__":
    sys.exit(main())
