"""Everything around the sidecars of one run: broker, store, manager, producers and pods, and what goes wrong with them."""

from __future__ import annotations

from functools import cache, partial
from random import Random
from typing import TYPE_CHECKING

import msgspec
import trio

from iterum_sidecar.settings import read_settings
from tests.simulation.expected import PIPELINE, STEP
from tests.simulation.faults import strike
from tests.simulation.names import INPUT, LINEAGE, OUTPUT, SIDE, Names
from tests.simulation.plan import ATTEMPTS, Fragment
from tests.simulation.pod import Pod
from tests.simulation.server import Server
from tests.simulation.store import Objects

if TYPE_CHECKING:
    from iterum_sidecar.settings import Settings
    from tests.simulation.history import History
    from tests.simulation.plan import Plan

__all__ = ["World"]

#: Seconds after the last trouble within which all must be done.
PATIENCE = 200.0


@cache
def _base_settings() -> Settings:
    return read_settings(
        {
            "DATA_VOLUME_PATH": "/",
            "TRANSFORMATION_STEP_INPUT": "in.sock",
            "TRANSFORMATION_STEP_OUTPUT": "out.sock",
            "ITERUM_NAME": STEP,
            "PIPELINE_HASH": PIPELINE,
            "ITERUM_CONFIG_PATH": "config",
            "ITERUM_CONFIG": '{"queue_mapping":{"side":"side"}}',
            "MQ_BROKER_URL": "amqp://guest:guest@nowhere",
            "MQ_INPUT_QUEUE": INPUT,
            "MQ_OUTPUT_QUEUE": OUTPUT,
            "MINIO_URL": "nowhere:9000",
            "MINIO_ACCESS_KEY": "key",
            "MINIO_SECRET_KEY": "secret",
            "MINIO_OUTPUT_BUCKET": "results",
            "SIDECAR_ATTEMPTS": str(ATTEMPTS),
            "SIDECAR_DRAIN_SECONDS": "5",
            "SIDECAR_KILL_TIMEOUT": "40",
            "SIDECAR_TRANSFORMATION_START_TIMEOUT": "60",
            "SIDECAR_TRANSFORMATION_RETURN_TIMEOUT": "40",
        }
    )


class World:
    """One run. It is also the manager: `upstream.Upstream`."""

    def __init__(self, plan: Plan, history: History, directory: str) -> None:
        self.plan = plan
        self.history = history
        self.directory = directory
        self.random = Random(f"world {plan.seed}")
        self.names = Names()
        self.lives = 0
        """How many sidecars there have been."""
        self.objects = Objects(history, self.random)
        self.pods: list[Pod] = []
        self.server: Server
        self.faults: list[tuple[str, BaseException]] = []
        """Errors of the sidecars themselves."""
        self.erased: list[tuple[int, set[str]]] = []
        """What was in the input queue when the broker lost it: after how many events, and the names, with what was not acknowledged."""
        self.violations: list[str] = []
        """What was seen during the run that must not be."""
        self.is_over = False
        """Whether every pod has done its work."""
        self._finished = trio.Event()
        self._by_content = {
            (fragment.own_id, fragment.files): fragment for fragment in plan.fragments()
        }

    async def wait_until_finished(self) -> None:
        """Return when nothing more is put on the input queue."""
        await self._finished.wait()

    def settings_of(self, pod: Pod) -> Settings:
        """Return the settings of a pod's sidecar."""
        plan = self.plan
        return msgspec.structs.replace(
            _base_settings(),
            volume=pod.volume,
            prefetch=plan.prefetch,
            handout_depth=plan.depth,
            kill_on_error=plan.kill_on_error,
            fragment_timeout=plan.fragment_timeout,
            volume_budget=plan.volume_budget,
        )

    def recognise(self, fragment_id: str, files: tuple[tuple[str, bytes], ...]) -> Fragment:
        """Return the fragment that a step was handed."""
        found = self._by_content.get((fragment_id, files))
        if found is None:
            self.violations.append(f"a step was handed {fragment_id} with the files {files}")
            return Fragment(-1, 0, files, "good", 0.0, 0)
        return found

    async def run(self) -> None:
        """Let it all happen, until every pod has done its work, or nothing has happened for too long."""
        plan = self.plan
        self.objects.buckets["source"] = {
            fragment.key(name): content
            for fragment in plan.fragments()
            if fragment.nature != "missing"
            for name, content in fragment.files
        }
        async with trio.open_nursery() as nursery:
            self.server = Server(self.history, self.names, self.random, nursery)
            self.server.lag = plan.lag
            self.server.return_after = plan.return_after
            for queue in (INPUT, OUTPUT, SIDE, LINEAGE):
                self.server.declare(queue)
            self.pods += [Pod(self, name) for name in "AB"[: plan.pods]]
            for fault in plan.faults:
                self.history.at(fault.moment, partial(strike, self, fault))
            nursery.start_soon(self._produce)
            nursery.start_soon(self._watch, nursery.cancel_scope)
            async with trio.open_nursery() as pods:
                for pod in self.pods:
                    pods.start_soon(pod.run)
            self.is_over = True
            self.look_at_queue("all is done")
            nursery.cancel_scope.cancel("all is done")

    def look_at_queue(self, when: str) -> None:
        """Note what is left in the input queue, when nothing should be."""
        waiting, owed = self.server.queues.waiting(INPUT), self.server.unacknowledged()
        if waiting or owed:
            self.violations.append(
                f"{when}, and {waiting} wait in the input queue and {owed} are not acknowledged"
            )

    async def _produce(self) -> None:
        for message in self.plan.messages:
            await trio.sleep_until(message.at)
            self.names.call(message.body, message.name)
            self.history.record("put", "producer", message.name)
            self.server.put(INPUT, message.body)
        await trio.sleep_until(self.plan.finished_at)
        self.history.record("finished", "manager")
        self.history.trouble()
        self._finished.set()

    async def _watch(self, scope: trio.CancelScope) -> None:
        while True:
            over_at = self.history.last_trouble + PATIENCE
            if trio.current_time() >= over_at:
                self.violations.append("it came to a standstill: " + self.state())
                scope.cancel("a standstill")
                return
            await trio.sleep_until(over_at)

    def state(self) -> str:
        """Return how things stand, for whoever looks into a standstill."""
        server = self.server
        lines = [
            f"{server.queues.waiting(INPUT)} wait in the input queue, {server.unacknowledged()} are unacknowledged"
        ]
        for pod in self.pods:
            life = pod.life
            if pod.is_done or life is None:
                lines.append(f"pod {pod.name}: done")
                continue
            sidecar = life.sidecar
            lines.append(
                f"pod {pod.name}, sidecar {life.name}: {life.end or 'at work'}; {sidecar.health()}; window"
                f" {sidecar.window}; {sidecar.in_flight()}; {sidecar.channel_depths()}"
            )
            lines += [
                f"  {pair.name}: {'connected' if pair.is_connected else 'not connected'}, holds"
                f" {[fragment.name for fragment in pair.held]}"
                for process in pod.processes
                for pair in process.pairs
            ]
        return "\n    ".join(lines)
