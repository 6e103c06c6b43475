"""The services of a soak, and the faults that meet them: every target has a thread in which its faults follow each other."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import queue
import random
import threading
import time
from typing import TYPE_CHECKING, Final, TypeAlias

from testbed.contents import make_bucket
from testbed.faulty_proxy import FaultyProxy, running_faulty_proxy
from testbed.faulty_s3 import Fault as StoreFault
from testbed.faulty_s3 import FaultPlan, FaultyS3, running_faulty_s3
from testbed.manager import Manager, running_manager
from testbed.object_stores import ObjectStore, running_rclone
from testbed.ports import accepts_connections
from testbed.process import ProcessFailed
from testbed.rabbitmq import ENOUGH_MEMORY, RabbitMQ, running_rabbitmq
from testbed.rabbitmq4 import running_rabbitmq4

from .faults import PODS, Fault, FaultLog, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["World", "quiet_port", "running_world"]

#: Seconds in which a port that someone else's connection has taken meanwhile must be free again.
PORT_SECONDS: Final = 60.0
#: Seconds for which a fault waits for its turn.
MOST_LATE: Final = 10.0
QUIET_PORTS: Final = (20_000, 30_000)
#: Seconds that each piece waits on a slow line.
DELAY: Final = 0.2
#: What a store that lies does, one answer in so many each. One that denies what is allowed is not among them: that counts against
#: the fragment, as it should.
LIES: Final = {
    StoreFault.SLOW_DOWN: 20,
    StoreFault.TOO_MANY_REQUESTS: 30,
    StoreFault.INTERNAL_ERROR: 20,
    StoreFault.REQUEST_TIMEOUT: 40,
    StoreFault.NOT_FOUND: 40,
    StoreFault.MAINTENANCE: 40,
    StoreFault.CLOSED_BEFORE: 40,
    StoreFault.CLOSED_AFTER: 40,
    StoreFault.ANSWER_LOST: 40,
    StoreFault.SHORT_BODY: 30,
    StoreFault.SHORT_LENGTH: 40,
    StoreFault.FLIPPED_BYTE: 30,
    StoreFault.STALLED: 200,
    StoreFault.SILENCE: 200,
}
#: Those that hold a thread of the front until its end.
SILENT: Final = {StoreFault.STALLED, StoreFault.SILENCE}
MOST_SILENCES: Final = 20

#: Faults that wait for their turn, each with the moment until which it is not too late.
_Faults: TypeAlias = "queue.SimpleQueue[tuple[float, Fault] | None]"


@dataclasses.dataclass
class World:
    """What a soak's sidecars need, each part behind something that fails on command. Use `running_world`."""

    broker: RabbitMQ
    store: ObjectStore
    front: FaultyS3
    manager: Manager
    lines: dict[str, FaultyProxy]
    """The way of each pod to the broker."""
    to_store: FaultyProxy
    to_manager: FaultyProxy
    log: FaultLog
    injected: collections.Counter[Kind] = dataclasses.field(default_factory=collections.Counter)
    problems: list[str] = dataclasses.field(default_factory=list)
    _queues: dict[str, _Faults] = dataclasses.field(default_factory=dict)
    _threads: list[threading.Thread] = dataclasses.field(default_factory=list)
    _over: threading.Event = dataclasses.field(default_factory=threading.Event)

    def meet(self, fault: Fault) -> None:
        """Let a fault happen now, or as soon as the one before it that has the same target is over.

        One that comes too late by that is left out: a broker that starts slowly would be away for minutes.
        """
        if fault.target not in self._queues:
            self._queues[fault.target] = queue.SimpleQueue()
            thread = threading.Thread(
                target=self._run, args=(self._queues[fault.target],), name=fault.target
            )
            self._threads.append(thread)
            thread.start()
        self._queues[fault.target].put((time.monotonic() + MOST_LATE, fault))

    def heal(self) -> None:
        """Let all that happens come to its end, and nothing more happen; everything is as at the beginning then."""
        self._over.set()
        for each in self._queues.values():
            each.put(None)
        for thread in self._threads:
            thread.join()
        for proxy in (*self.lines.values(), self.to_store, self.to_manager):
            patiently(proxy.pass_on)
        self.front.plan = None

    def _run(self, faults: _Faults) -> None:
        while (due := faults.get()) is not None:
            until, fault = due
            if self._over.is_set() or time.monotonic() > until:
                self.log.note(fault, "out")
                continue
            self.log.note(fault, "begins")
            try:
                self._happen(fault)
                self.injected[fault.kind] += 1
                self.log.note(fault, "ends")
            except Exception as error:  # it is for the report
                self.problems.append(f"{fault.kind.label}: {type(error).__name__}: {error}")

    def _happen(self, fault: Fault) -> None:
        match fault.kind.target:
            case "line":
                self._fail(self.lines[fault.pod], fault)
            case "store" if fault.kind is Kind.STORE_LIES:
                self._lie(fault)
            case "store":
                self._fail(self.to_store, fault)
            case "node":
                self._fail_node(fault)
            case "manager":
                self._fail_manager(fault)

    def _fail(self, proxy: FaultyProxy, fault: Fault) -> None:
        match fault.kind:
            case Kind.LINE_CUT | Kind.STORE_CUT:
                proxy.cut()
                return
            case Kind.LINE_REFUSED | Kind.STORE_REFUSED:
                proxy.refuse()
            case Kind.LINE_FROZEN | Kind.STORE_FROZEN:
                proxy.freeze()
            case Kind.LINE_SILENT | Kind.STORE_SILENT:
                proxy.blackhole()
            case Kind.LINE_SLOW:
                proxy.delay(DELAY)
            case Kind.LINE_SHORT | Kind.STORE_SHORT:
                proxy.limit(fault.number, "client" if fault.number % 2 else "server")
        time.sleep(fault.seconds)
        patiently(proxy.pass_on)

    def _lie(self, fault: Fault) -> None:
        most = {each: min(MOST_SILENCES, self.front.happened[each] + 1) for each in SILENT}
        self.front.plan = FaultPlan(fault.number, LIES, most)
        time.sleep(fault.seconds)
        self.front.plan = None
        self.front.requests.clear()

    def _fail_node(self, fault: Fault) -> None:
        broker = self.broker
        match fault.kind:
            case Kind.NODE_KILLED:
                broker.kill()
                time.sleep(fault.seconds)
                patiently(broker.start)
            case Kind.NODE_RESTARTED:
                broker.stop()
                patiently(broker.start)
            case Kind.NODE_FROZEN:
                with broker.frozen():
                    time.sleep(fault.seconds)
            case Kind.NODE_CLOSES:
                broker.close_connections("a soak")
            case Kind.NODE_FULL:
                try:
                    with broker.short_of_memory():
                        time.sleep(fault.seconds)
                except ProcessFailed:
                    patiently(lambda: broker.ctl("set_vm_memory_high_watermark", ENOUGH_MEMORY))
                    raise

    def _fail_manager(self, fault: Fault) -> None:
        if fault.number % 2:
            self.to_manager.refuse()
        else:
            self.manager.status = 503
        time.sleep(fault.seconds)
        self.manager.status = 200
        patiently(self.to_manager.pass_on)
        self.manager.asked.clear()


def quiet_port() -> int:
    """Return a port that nobody's outgoing connection gets: one below those that the system gives to them."""
    port = random.randint(*QUIET_PORTS)
    while accepts_connections(port):
        port = random.randint(*QUIET_PORTS)
    return port


def patiently(call: Callable[[], object]) -> None:
    """Do what needs a port that was free: any connection on this machine may have got it for its own end meanwhile."""
    deadline = time.monotonic() + PORT_SECONDS
    while True:
        try:
            call()
            return
        except (OSError, ProcessFailed):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@contextlib.contextmanager
def running_world(
    directory: Path, input_bucket: str, log: FaultLog, *, rabbitmq: int = 3
) -> Iterator[World]:
    """Run all services in a directory, with a bucket for the inputs; RabbitMQ is the installed one (3), or of version 4."""
    run_broker = running_rabbitmq if rabbitmq == 3 else running_rabbitmq4
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(run_broker(directory / "rabbitmq"))
        store = stack.enter_context(running_rclone(directory / "rclone"))
        front = stack.enter_context(running_faulty_s3(store))
        manager = stack.enter_context(running_manager())
        make_bucket(store, input_bucket)

        def proxy(endpoint: str) -> FaultyProxy:
            return stack.enter_context(running_faulty_proxy(endpoint, quiet_port()))

        world = World(
            broker,
            store,
            front,
            manager,
            lines={pod: proxy(f"127.0.0.1:{broker.port}") for pod in PODS},
            to_store=proxy(front.endpoint),
            to_manager=proxy(manager.url.removeprefix("http://")),
            log=log,
        )
        try:
            yield world
        finally:
            world.heal()
