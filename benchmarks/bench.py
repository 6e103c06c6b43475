"""What the benchmarks run on: a directory in memory, a broker, and an object store."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.pod import Peers
from testbed.object_stores import running_rclone
from testbed.process import ProcessFailed
from testbed.rabbitmq import RabbitMQMissing, running_rabbitmq

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.object_stores import ObjectStore
    from testbed.rabbitmq import RabbitMQ
    from testbed.tls import Tls

__all__ = [
    "Bench",
    "at_least_one",
    "clean_up_when_told_to_stop",
    "directory_in_memory",
    "failures_in_one_line",
    "open_bench",
]

MEMORY = Path("/dev/shm")


class Bench:
    """A broker and a store, each started when it is first asked for, with their files in `directory`."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack, *, tls: bool = False) -> None:
        self.directory = directory
        self._stack = stack
        self._tls = tls
        self._numbers = itertools.count(1)

    @functools.cached_property
    def _keys(self) -> Tls | None:
        if not self._tls:
            return None
        # Here, because nobody else needs what it needs.
        from testbed.tls import make_tls

        return make_tls(self.directory / "tls")

    @functools.cached_property
    def broker(self) -> RabbitMQ:
        """A RabbitMQ node. Raises RabbitMQMissing."""
        return self._stack.enter_context(
            running_rabbitmq(self.directory / "rabbitmq", tls=self._keys)
        )

    @functools.cached_property
    def store(self) -> ObjectStore:
        """An S3 server that keeps objects as files, in `objects`."""
        return self._stack.enter_context(running_rclone(self.objects))

    @functools.cached_property
    def tls_store(self) -> ObjectStore:
        """The same, over TLS, if there is any."""
        return self._stack.enter_context(
            running_rclone(self.directory / "objects-tls", tls=self._keys)
        )

    @property
    def peers(self) -> Peers:
        """Broker and store. Raises RabbitMQMissing."""
        return Peers(self.directory, self.broker, self.store)

    @property
    def tls_peers(self) -> Peers:
        """The same, over TLS. Raises RabbitMQMissing."""
        return Peers(self.directory, self.broker, self.tls_store)

    @property
    def objects(self) -> Path:
        """Where the store keeps its buckets."""
        return self.directory / "objects"

    def new_name(self) -> str:
        """Return a name for a queue, a bucket or a folder that was not given before."""
        return f"bench-{next(self._numbers)}"


def at_least_one(text: str) -> int:
    """Read a count from a command line; raises argparse.ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def clean_up_when_told_to_stop() -> None:
    """Let SIGTERM end this program as an error would: what it has started ends, and its files are removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@contextlib.contextmanager
def directory_in_memory() -> Iterator[Path]:
    """Make a directory, in memory where there is such a place, and remove it in the end."""
    parent = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as name:
        directory = Path(name)
        directory.chmod(0o755)  # RabbitMQ may run as another user
        yield directory


@contextlib.contextmanager
def open_bench(*, tls: bool = False) -> Iterator[Bench]:
    """Make a directory for all that is measured; in the end whatever was started ends, and all is removed.

    With `tls` the broker speaks it too, on a port of its own, and there is a store that does.
    """
    with directory_in_memory() as directory, contextlib.ExitStack() as stack:
        yield Bench(directory, stack, tls=tls)


@contextlib.contextmanager
def failures_in_one_line() -> Iterator[None]:
    """End the program with what a failure says and nothing else, where no broker can be had or something did not do its work."""
    try:
        yield
    except (RabbitMQMissing, ProcessFailed) as error:
        raise SystemExit(str(error)) from None
