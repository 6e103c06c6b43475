"""How each kind of fault strikes a world."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from tests.simulation.names import DEAD, LINEAGE, OUTPUT, SIDE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.simulation.connection import Connection
    from tests.simulation.plan import Fault, FaultKind
    from tests.simulation.pod import Pod
    from tests.simulation.world import World

__all__ = ["strike"]


def strike(world: World, fault: Fault) -> None:
    """Let a fault strike, if there is what it could strike."""
    pod = world.pods[fault.pod % len(world.pods)]
    if not _STRIKES[fault.kind](world, pod, fault):
        return
    history = world.history
    history.struck[fault.kind] += 1
    history.trouble(trio.current_time() + fault.seconds)
    history.record("FAULT", pod.name, fault.kind)


# -- the broker


def _connection(pod: Pod) -> Connection | None:
    connection = None if pod.life is None else pod.life.connection
    return None if connection is None or connection.is_cut else connection


def _cut(
    world: World, pod: Pod, fault: Fault, *, by_broker: bool = False, half_open: bool = False
) -> bool:
    connection = _connection(pod)
    if connection is None:
        return False
    notice = fault.notice * world.plan.notice
    if by_broker:
        connection.cut("closed by the broker", by_broker=True, here_after=notice)
    elif not half_open:
        connection.cut("reset")
    elif fault.number % 2:
        connection.cut("half open", broker_after=notice)
    else:
        connection.cut("half open", broker_after=notice, here_after=fault.seconds)
    world.history.trouble(trio.current_time() + world.plan.notice)
    return True


def _broker_away(world: World, pod: Pod, fault: Fault) -> bool:
    server = world.server
    server.closed_until = trio.current_time() + fault.seconds
    for connection in list(server.connections):
        connection.cut("the broker is restarted", by_broker=bool(fault.number % 2))
    return True


def _broker_forgets(world: World, pod: Pod, fault: Fault) -> bool:
    """The broker is started again, and its queues are transient: what is in work is all that is left of them."""
    world.erased.append((len(world.history.events), world.server.forget_queues()))
    return _broker_away(world, pod, fault)


def _cancel_line(world: World, pod: Pod, fault: Fault) -> bool:
    connection = _connection(pod)
    return connection is not None and connection.lose_line("the consumer was cancelled")


def _delete_queue(world: World, pod: Pod, fault: Fault) -> bool:
    queue = (OUTPUT, LINEAGE, SIDE, DEAD)[fault.number % 4]
    if not world.server.has(queue):
        return False
    world.server.delete(queue)
    return True


def _lag(world: World, pod: Pod, fault: Fault) -> bool:
    """Let all that is said over connections take its time, for good for those that are made in the next seconds."""
    server = world.server
    before, server.lag = server.lag, max(server.lag, 0.3)
    server.later(fault.seconds, partial(setattr, server, "lag", before))
    connection = _connection(pod)
    if connection is not None and connection.lag:
        connection.lag = server.lag
    return True


def _block(world: World, pod: Pod, fault: Fault) -> bool:
    world.server.block(fault.seconds)
    return True


def _nack(world: World, pod: Pod, fault: Fault) -> bool:
    world.server.nacks += 1 + fault.number % 3
    return True


# -- the store


def _slow_store(world: World, pod: Pod, fault: Fault) -> bool:
    world.objects.slow_until = trio.current_time() + fault.seconds
    world.objects.slowness = fault.notice + 0.01
    return True


def _store_away(world: World, pod: Pod, fault: Fault) -> bool:
    world.objects.away_until = trio.current_time() + fault.seconds
    return True


def _store_refuses(world: World, pod: Pod, fault: Fault) -> bool:
    world.objects.refusing_until = trio.current_time() + fault.seconds
    return True


# -- the transformation


def _death(world: World, pod: Pod, fault: Fault) -> bool:
    process = pod.processes[fault.number % len(pod.processes)] if pod.processes else None
    if process is None or not process.is_connected:
        return False
    process.die("at random")
    return True


def _lose_pair(world: World, pod: Pod, fault: Fault) -> bool:
    return bool(pod.processes) and pod.processes[0].lose_pair(fault.number)


def _breach(world: World, pod: Pod, fault: Fault) -> bool:
    return bool(pod.processes) and pod.processes[0].breach(fault.number, b"\x04\0\0\0oops")


def _half_a_frame(world: World, pod: Pod, fault: Fault) -> bool:
    if not pod.processes or not pod.processes[0].breach(fault.number, b"\x04\0\0\0oo"):
        return False
    pod.processes[0].die("in the middle of a frame")
    return True


# -- the sidecar


def _end_sidecar(
    world: World, pod: Pod, fault: Fault, *, end: Callable[[Pod], None], replaced: bool
) -> bool:
    if pod.life is None or pod.life.end or pod.life.is_killed:
        return False
    pod.back_after = fault.seconds
    pod.is_replaced = replaced
    end(pod)
    return True


def _kill(pod: Pod) -> None:
    if pod.life is not None:
        pod.life.kill()
    if pod.is_replaced:
        for process in pod.processes:
            process.end()


def _drain(pod: Pod) -> None:
    if pod.life is not None:
        pod.life.sidecar.drain()


def _abort(pod: Pod) -> None:
    if pod.life is not None:
        pod.life.sidecar.drain()
        pod.life.sidecar.abort()


_STRIKES: Mapping[FaultKind, Callable[[World, Pod, Fault], bool]] = {
    "reset": _cut,
    "half open": partial(_cut, half_open=True),
    "closed by broker": partial(_cut, by_broker=True),
    "broker away": _broker_away,
    "broker forgets": _broker_forgets,
    "line cancelled": _cancel_line,
    "queue deleted": _delete_queue,
    "lag": _lag,
    "blocked": _block,
    "nacks": _nack,
    "store slow": _slow_store,
    "store away": _store_away,
    "store refuses": _store_refuses,
    "death": _death,
    "pair lost": _lose_pair,
    "breach": _breach,
    "half a frame": _half_a_frame,
    "sidecar killed": partial(_end_sidecar, end=_kill, replaced=False),
    "pod killed": partial(_end_sidecar, end=_kill, replaced=True),
    "drain": partial(_end_sidecar, end=_drain, replaced=False),
    "abort": partial(_end_sidecar, end=_abort, replaced=False),
}
