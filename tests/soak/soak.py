"""One soak: two sidecars of one step on one queue, a producer, all faults of a plan, and what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import sys
import time
from typing import TYPE_CHECKING, Final

from testbed.process import wait_until
from testbed.step import make_step

from .account import Account, account_of, messages_of
from .faults import PODS, FaultLog, Kind, finishing_at, plan_of
from .logs import faults_of_log
from .pod import Life, Pod
from .producer import Producer
from .world import World, quiet_port, running_world

if TYPE_CHECKING:
    import collections
    from collections.abc import Callable
    from pathlib import Path

    from testbed.step import Step

__all__ = ["END_SECONDS", "Outcome", "soak"]

#: Seconds that both sidecars have to end when all faults are over.
END_SECONDS: Final = 90.0
#: Deaths on one fragment before it is a dead letter. The faults kill too, and whom they kill is chance: more than the default, so that an
#: innocent fragment does not meet so many.
ATTEMPTS: Final = 5
#: Less than a step hangs, and more than it is ever stopped for.
FRAGMENT_SECONDS: Final = 15
DRAIN_SECONDS: Final = 10
TOLD_EVERY: Final = 30.0
#: Each pod's own: prefetch, connections of its step, seconds for each fragment, and whether its step is told of an end that is not the last.
SHAPES: Final = {"a": ("8", 1, 0.03, "true"), "b": ("", 3, 0.15, "false")}


@dataclasses.dataclass
class Outcome:
    """What a soak has found."""

    account: Account
    injected: collections.Counter[Kind]
    lives: list[Life]
    steps: int
    stuck: int
    """Messages left in the input queue, those that somebody holds too."""
    left: list[str]
    """Files left in the sidecars' own directories on the volumes."""
    results_left: int
    """Files that steps have written and nobody was told of: those of the killed."""
    longest: dict[str, float]
    end_seconds: float
    observer_bytes: int
    problems: list[str]


def soak(
    seed: int, seconds: float, directory: Path, *, rabbitmq: int = 3, queues: str = "classic"
) -> Outcome:
    """Let all of a plan's faults happen in so many seconds, and return what was found; logs are in the directory.

    `rabbitmq` is the broker's version, and `queues` the type of the queues, which are durable.
    """
    steps = {pod: make_step(directory / pod, pipeline_hash=f"{seed:032x}") for pod in PODS}
    step = steps[PODS[0]]
    log = FaultLog(directory / "faults.log")
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(
            running_world(directory, step.input_bucket, log, rabbitmq=rabbitmq)
        )
        producer = stack.enter_context(Producer(seed, step, world.broker.url, world.store))
        pods = {
            name: stack.enter_context(_pod(name, steps[name], world, producer, directory, queues))
            for name in PODS
        }
        _let_it_happen(seed, seconds, world, producer, pods)
        end_seconds = _end(pods)
        problems = [*world.problems, *(each for pod in pods.values() for each in pod.problems)]
        if producer.failure is not None:
            problems.append(f"the producer: {producer.failure!r}")
        return _take_stock(seed, world, producer, pods, steps, end_seconds, problems)


def _pod(
    name: str, step: Step, world: World, producer: Producer, directory: Path, queues: str
) -> Pod:
    prefetch, connections, each, kill_on_error = SHAPES[name]
    step.volume.mkdir()
    environment = step.sidecar_environment(
        world.broker, world.store, manager_url=f"http://{world.to_manager.endpoint}"
    ) | {
        "MQ_BROKER_URL": f"amqp://guest:guest@{world.lines[name].endpoint}/",
        "MQ_PREFETCH_COUNT": prefetch,
        "MINIO_URL": world.to_store.endpoint,
        "SIDECAR_ATTEMPTS": str(ATTEMPTS),
        "SIDECAR_FRAGMENT_TIMEOUT": str(FRAGMENT_SECONDS),
        "SIDECAR_DRAIN_SECONDS": str(DRAIN_SECONDS),
        "SIDECAR_KILL_ON_ERROR": kill_on_error,
        # The first sidecar declares the queues; the producer waits for that.
        "SIDECAR_QUEUE_DURABLE": "true",
        "SIDECAR_QUEUE_TYPE": queues,
    }
    return Pod(
        name,
        step,
        sidecar=environment,
        port=quiet_port(),
        step_arguments=(connections, each),
        directory=directory,
        log=world.log,
        waiting=lambda: producer.ready,
        finished=lambda: world.manager.finished,
    )


def _let_it_happen(
    seed: int, seconds: float, world: World, producer: Producer, pods: dict[str, Pod]
) -> None:
    """Let every fault happen at its time; towards the end production stops, and upstream is finished."""
    clock = _Clock(lambda elapsed: _tell(elapsed, world, producer, pods))
    finishing = finishing_at(seconds)
    for fault in plan_of(seed, seconds):
        if any(pod.has_given_up for pod in pods.values()):
            break
        if fault.at >= finishing and not world.manager.finished:
            clock.wait(finishing)
            producer.stop()
            world.manager.finished = True
        clock.wait(fault.at)
        (pods[fault.pod] if fault.kind.target == "pod" else world).meet(fault)
    else:
        clock.wait(seconds)
    for pod in pods.values():
        pod.forget_faults()
    world.heal()
    producer.stop()
    world.manager.finished = True


class _Clock:
    """Seconds since its making; tells of them now and then while it is waited for."""

    def __init__(self, tell: Callable[[float], None]) -> None:
        self._began = time.monotonic()
        self._tell = tell
        self._told = 0.0

    def wait(self, moment: float) -> None:
        """Wait until so many seconds have passed."""
        while (left := moment - self._elapsed()) > 0:
            time.sleep(min(left, 1.0))
            if self._elapsed() - self._told >= TOLD_EVERY:
                self._told = self._elapsed()
                self._tell(self._told)

    def _elapsed(self) -> float:
        return time.monotonic() - self._began


def _tell(seconds: float, world: World, producer: Producer, pods: dict[str, Pod]) -> None:
    faults = world.injected.total() + sum(len(pod.injected) for pod in pods.values())
    lives = sum(len(pod.lives) for pod in pods.values())
    print(
        f"{seconds:6.0f} s  {producer.made} inputs, {faults} faults, {lives} lives",
        file=sys.stderr,
        flush=True,
    )


def _end(pods: dict[str, Pod]) -> float:
    """Wait for both pods to be done, and return how long that took; one that is not has a problem."""
    began = time.monotonic()
    for pod in pods.values():
        left = max(0.0, began + END_SECONDS - time.monotonic())
        if not pod.has_given_up and not pod.done.wait(left):
            pod.problems.append(
                f"pod {pod.name} did not end within {END_SECONDS:g} s after the last fault;"
                f" its sidecar says: {pod.status()}\n{pod.log}"
            )
    return time.monotonic() - began


def _take_stock(
    seed: int,
    world: World,
    producer: Producer,
    pods: dict[str, Pod],
    steps: dict[str, Step],
    end_seconds: float,
    problems: list[str],
) -> Outcome:
    step, url = steps[PODS[0]], world.broker.url
    with contextlib.suppress(TimeoutError):  # what is left then is counted
        wait_until(
            lambda: world.broker.depth(step.input_queue) == (0, 0), seconds=20, what="the queue"
        )
    stuck = sum(world.broker.depth(step.input_queue))
    with (
        messages_of(url, step.output_queue) as outputs,
        messages_of(url, step.lineage_queue) as lineage,
        messages_of(url, step.dead_letter_queue) as dead_letters,
    ):
        account = account_of(
            seed,
            producer.made,
            step,
            world.store,
            outputs=outputs,
            lineage=lineage,
            dead_letters=dead_letters,
        )
    lives = [life for pod in pods.values() for life in pod.lives]
    for life in lives:
        problems += faults_of_log(life.name, life.code, life.process.log_text())
    injected = world.injected.copy()
    longest: dict[str, float] = {}
    for pod in pods.values():
        injected.update(pod.injected)
        for stage, value in pod.longest.items():
            longest[stage] = max(longest.get(stage, 0.0), value)
    own, results = _left_on(steps)
    return Outcome(
        account=account,
        injected=injected,
        lives=lives,
        steps=sum(pod.steps for pod in pods.values()),
        stuck=stuck,
        left=own,
        results_left=results,
        longest=longest,
        end_seconds=end_seconds,
        observer_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        problems=problems,
    )


def _left_on(steps: dict[str, Step]) -> tuple[list[str], int]:
    """Return the files in the sidecars' own directories, but for their state, and how many results lie where steps put them."""
    own: list[str] = []
    results = 0
    for step in steps.values():
        for path in step.volume.rglob("*"):
            inner = path.relative_to(step.volume)
            if not path.is_file():
                continue
            if inner.parts[0] == ".iterum-sidecar":
                own += [] if inner.name == "state" else [str(path)]
            else:
                results += 1
    return own, results
