"""A step that is ready, and a sidecar that is started beside it, on a volume of their own; and what both run on."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.process import running

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from testbed.object_stores import ObjectStore
    from testbed.process import Process
    from testbed.rabbitmq import RabbitMQ
    from testbed.step import Step

__all__ = ["SIDECAR", "Peers", "pod", "step_log"]

#: The sidecar that is measured if no other is asked for.
SIDECAR = (sys.executable, "-m", "iterum_sidecar", "run")


@dataclasses.dataclass(frozen=True)
class Peers:
    """The servers of a measurement, and a directory in memory."""

    directory: Path
    broker: RabbitMQ
    store: ObjectStore


def step_log(peers: Peers, volume: Path) -> Path:
    """Return where the step of a volume logs to."""
    return peers.directory / f"{volume.name}.step.log"


@contextlib.contextmanager
def pod(
    peers: Peers,
    names: Step,
    manager_url: str,
    *,
    prefetch: int | None,
    command: Sequence[str] = SIDECAR,
    variables: Mapping[str, str] | None = None,
    volumes: Path | None = None,
) -> Iterator[tuple[Step, Process]]:
    """Run a step, with variables of the benchmark's own, and a sidecar as soon as it is ready.

    Their volume is a directory in `volumes`, or else in that of the peers. With a store that speaks TLS, the sidecar speaks it with the broker too.
    """
    with contextlib.ExitStack() as stack:
        volume = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="v-", dir=volumes or peers.directory)
            )
        )
        step = dataclasses.replace(names, volume=volume)
        transformation = stack.enter_context(
            running(
                [sys.executable, "-m", "benchmarks.step"],
                log=step_log(peers, volume),
                environment=step.transformation_environment() | {"PATH": "", **(variables or {})},
            )
        )
        # A Python that has made its directory has only the sockets left to wait for.
        transformation.wait_until(
            (volume / "output").is_dir, seconds=30, what="the step to be ready"
        )
        environment = step.sidecar_environment(
            peers.broker, peers.store, manager_url=manager_url, prefetch=prefetch
        )
        if peers.store.tls is not None:
            environment["MQ_BROKER_URL"] = peers.broker.tls_url
            environment["SIDECAR_CA_FILE"] = str(peers.store.tls.authority)
        # Looked for on our own PATH: the sidecar is given none.
        program, *rest = command
        sidecar = stack.enter_context(
            running(
                [shutil.which(program) or program, *rest],
                log=peers.directory / f"{volume.name}.sidecar.log",
                environment=environment | {"HOME": str(peers.directory)},
            )
        )
        yield step, sidecar
