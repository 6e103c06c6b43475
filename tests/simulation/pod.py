"""A pod of a simulation: one sidecar after another beside the processes of the transformation.

The sidecar is the real one; only its ports are others, and the two things by which it touches its volume, so that it can be killed. A kill
is what it is for a process: the kernel closes its connections and descriptors, and nothing that it would still do takes effect.
"""

from __future__ import annotations

import os
import shutil
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.brokers.reconnecting import open_reconnecting_broker
from iterum_sidecar.error_groups import leaves
from iterum_sidecar.exit_codes import SidecarError
from iterum_sidecar.patience import Patience
from iterum_sidecar.sidecar import Sidecar, queues_of
from iterum_sidecar.telemetry.tally import Tally
from iterum_sidecar.unix_sockets import Listener
from iterum_sidecar.volume import Volume
from tests.simulation.store import SimulatedStore
from tests.simulation.transformation import Process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from iterum_sidecar.brokers.port import Broker
    from iterum_sidecar.settings import Settings
    from iterum_sidecar.unix_sockets import Peer
    from tests.simulation.connection import Connection
    from tests.simulation.plan import Fragment
    from tests.simulation.world import World

__all__ = ["Life", "Pod", "SimulatedListener", "SimulatedVolume"]

#: Seconds until there is another sidecar, where nothing else is drawn.
BACK_AFTER = 0.3

_life: ContextVar[Life] = ContextVar("life")


class SimulatedVolume(Volume):
    """The volume, which a sidecar that was killed leaves as it is."""

    def __init__(self, root: str, *, protected: tuple[str, ...] = ()) -> None:
        super().__init__(root, protected=protected)
        life = _life.get()
        life.volume = self
        if life.pod.plan.few_descriptors:
            self._descriptors_allowed = 1

    def close(self) -> None:
        """Clean up, or let the kernel close what is open."""
        if not _life.get().is_killed:
            super().close()
            return
        for taken in self._held:
            if taken._descriptor is not None:
                os.close(taken._descriptor)
                taken._descriptor = None
        self._held.clear()
        for descriptor in (self._fragments, self._results, self._own, self._root):
            os.close(descriptor)


class SimulatedListener(Listener):
    """A listener that knows its peers, and that a sidecar that was killed leaves in its place."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._peers: list[Peer] = []
        life = _life.get()
        life.listeners.append(self)
        if len(life.listeners) == 2:
            life.pod.listening.set()

    def __exit__(self, *exc: object) -> None:
        if _life.get().is_killed:
            self.die()
        else:
            super().__exit__(*exc)

    async def accept(self) -> Peer:
        """Return the next connection."""
        peer = await super().accept()
        self._peers.append(peer)
        return peer

    def accept_nowait(self) -> Peer | None:
        """Return a connection that waits to be accepted, or None."""
        peer = None if _life.get().is_killed else super().accept_nowait()
        if peer is not None:
            self._peers.append(peer)
        return peer

    def die(self) -> None:
        """Close the socket and every connection, as the kernel does."""
        for peer in self._peers:
            peer.close()
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


async def _has_noticed(present: Connection, lost: Connection) -> bool:
    await present.round_trip()
    return lost.is_missed


class Life:
    """One life of the sidecar."""

    def __init__(self, pod: Pod, number: int) -> None:
        world = pod.world
        self.pod = pod
        self.name = f"{pod.name}{number}"
        self.is_killed = False
        self.end = ""
        self.over = trio.Event()
        self.volume: SimulatedVolume | None = None
        self.listeners: list[SimulatedListener] = []
        self.connection: Connection | None = None
        self._connections = 0
        self._scope = trio.CancelScope()
        self._store = SimulatedStore(world.objects, self.name, self._look_at_window)
        self._settings: Settings = world.settings_of(pod)
        self.sidecar = Sidecar(
            self._settings,
            open_broker=self._open_broker,
            store=self._store,
            store_patience=self._patience("the store"),
            upstream=lambda _ledger: world,
            tally=Tally(),
        )

    def _patience(self, service: str) -> Patience:
        return Patience(service, 0, self.pod.world.random.random)

    @asynccontextmanager
    async def _open_broker(self) -> AsyncIterator[Broker]:
        async with open_reconnecting_broker(
            self._connect,
            patience=self._patience("the broker"),
            refusals=self._patience("the broker"),
            noticed_after=self.pod.plan.notice + self.pod.plan.return_after,
            has_noticed=_has_noticed,
        ) as broker:
            yield broker

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[Connection]:
        self._connections += 1
        name = f"{self.name}.{self._connections}"
        patience = self._patience("the broker")
        async with self.pod.world.server.connect(
            name, queues_of(self._settings), patience, self._opened
        ) as connection:
            yield connection

    def _opened(self, connection: Connection) -> None:
        self.connection = connection
        if self.is_killed:
            connection.die()

    def _look_at_window(self) -> None:
        in_flight, window = len(self.sidecar.in_flight()), self.sidecar.window
        if in_flight > 2 * window:
            self.pod.world.violations.append(
                f"{in_flight} fragments are in flight in {self.name}, and the window is {window}"
            )

    async def run(self) -> None:
        """Live, and note how that ended: `done`, `drained`, `killed`, or the name of the error."""
        history = self.pod.history
        token = _life.set(self)
        history.record("starts", self.name)
        error: BaseException | None = None
        try:
            with self._scope:
                await self.sidecar.run()
        except* Exception as raised:
            error = raised  # whatever it is, the checker judges it
        finally:
            _life.reset(token)
        if self.is_killed:
            self.end = "killed"
        elif error is None:
            self.end = "done" if self.sidecar.is_done else "stopped"
        else:
            faults = [each for each in leaves(error) if not isinstance(each, SidecarError)]
            self.end = type((faults or leaves(error))[0]).__name__
            if faults:
                self.pod.world.faults.append((self.name, error))
        detail = "" if error is None else str(leaves(error)[0])
        history.record("ends", self.name, self.end, detail.replace(self.pod.volume, "…"))

    def kill(self) -> None:
        """End it as a kill does."""
        if not self.is_killed and not self.end:
            self.is_killed = True
            self._store.is_dead = True
            self.pod.history.record("killed", self.name)
            if self.connection is not None:
                self.connection.die()
            for listener in self.listeners:
                listener.die()
            self._scope.cancel("killed")


class Pod:
    """A volume, the processes of a transformation, and one sidecar after another."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.plan = world.plan
        self.history = world.history
        self.name = name
        self.volume = f"{world.directory}/{name}"
        os.mkdir(self.volume)
        self.listening = trio.Event()
        """Set while there are sockets to connect to."""
        self.is_done = False
        self.life: Life | None = None
        self.processes: list[Process] = []
        self.is_replaced = False
        """Whether another pod comes in its place, with a volume and processes of its own."""
        self.back_after = BACK_AFTER
        """Seconds until there is another sidecar, once this one has ended."""
        self._numbers = 0

    def next_number(self) -> int:
        """Return a number that was not given before."""
        self._numbers += 1
        return self._numbers

    def recognise(self, fragment_id: str, files: tuple[tuple[str, bytes], ...]) -> Fragment:
        """Return the fragment that is described and whose files are these; what is none of ours is told to the checker."""
        return self.world.recognise(fragment_id, files)

    def left_over(self) -> list[str]:
        """Return the files on the volume, by their paths in it: the sidecar's own and results that nobody has removed."""
        root = self.volume
        return [
            f"{where}/{name}".removeprefix(f"{root}/")
            for where, _, names in os.walk(root)
            for name in names
        ]

    def _look_at_the_end(self) -> None:
        """See that a sidecar that is done leaves nothing on its volume, and nothing in the queue."""
        world = self.world
        cleanly = not world.history.struck and not any(
            fragment.nature in {"poison", "hanging"} for fragment in self.plan.fragments()
        )
        left = [each for each in self.left_over() if cleanly or not each.startswith("output/")]
        if left:
            world.violations.append(f"pod {self.name} is done, and on its volume are {left}")
        if len(world.pods) == 1:
            world.look_at_queue(f"pod {self.name} is done")

    async def run(self) -> None:
        """Live one life after the other until the step is done."""
        async with trio.open_nursery() as nursery:
            while True:
                if not self.processes:
                    self.processes = [
                        Process(self, number) for number in range(self.plan.processes)
                    ]
                    for process in self.processes:
                        nursery.start_soon(process.keep_running)
                self.life = Life(self, self._count_life())
                await self.life.run()
                self.listening = trio.Event()
                self.is_done = self.life.end == "done"
                if self.is_done:
                    self._look_at_the_end()
                self.life.over.set()
                if self.is_done:
                    break
                self.history.trouble()
                await self._come_back(nursery)
            nursery.cancel_scope.cancel("the pod has done its work")
        for process in self.processes:
            process.end()

    async def _come_back(self, nursery: trio.Nursery) -> None:
        """Wait for the next life: on this volume and beside these processes, or in a pod that comes in place of this one."""
        if self.is_replaced or not self.plan.native:
            self.is_replaced = False
            for process in self.processes:
                process.end()
            self.processes = []
            shutil.rmtree(self.volume)
            os.mkdir(self.volume)
        await trio.sleep(self.back_after)
        self.back_after = BACK_AFTER
        # A new sidecar knows nothing of connections of the one before it. It comes later than the broker notices that they are
        # gone: a broker that still owes one of them something would make it believe that the queue is at its end.
        for connection in list(self.world.server.connections):
            if connection.is_cut and connection.name.startswith(self.name):
                await connection.forgotten.wait()

    def _count_life(self) -> int:
        self.world.lives += 1
        return self.world.lives
