"""The combiner of a local run: what reaches its channel appears in the output folder by its logical name, whole or not at all.

A name belongs to the first fragment that comes with it. Another one of this run, or a file that is not ours, keeps its name, and the newcomer
gets a suffix from its fragment's ID; what is no longer of this run gives its name up.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import count
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.local.journal import Delivered
from iterum_sidecar.local.plan import COMBINED
from iterum_sidecar.messages import MAX_COMPONENT_BYTES, decode_remote_fragment
from iterum_sidecar.stores.port import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from iterum_sidecar.brokers.memory import MemoryDelivery
    from iterum_sidecar.local.broker import JournalBroker
    from iterum_sidecar.local.journal import Journal
    from iterum_sidecar.local.store import LocalStore
    from iterum_sidecar.messages import RemoteFile
    from iterum_sidecar.upstream import Upstream

__all__ = ["RESERVED", "Combiner"]

#: What a run keeps in its output folder beside the results.
RESERVED = frozenset({".iterum", "logs", "failed", "lineage.jsonl"})

#: Fragments that are delivered at a time, and that may be in flight.
AT_A_TIME = 8
WINDOW = 256

_SUFFIX_LENGTHS = (8, 16, 64)


@dataclass(slots=True)
class _Ready:
    """A fragment whose files are copied, each with the name that it should have, and wait to be shown."""

    delivery: MemoryDelivery
    fragment_id: str
    files: list[tuple[Path, str]] = field(default_factory=list)


def _at_hand(ready: trio.MemoryReceiveChannel[_Ready]) -> Iterator[_Ready]:
    """Yield what can be had without waiting."""
    while True:
        try:
            yield ready.receive_nowait()
        except trio.WouldBlock:
            return


class Combiner:
    """Delivers the results. `failed` is told of a fragment that cannot be delivered, and why.

    With `take_over`, files of which nobody knows whose they are give up their names too.
    """

    def __init__(
        self,
        *,
        broker: JournalBroker,
        journal: Journal,
        store: LocalStore,
        queue: str,
        output: Path,
        incoming: Path,
        take_over: bool = False,
        failed: Callable[[bytes, str], None],
    ) -> None:
        self._broker = broker
        self._journal = journal
        self._store = store
        self._queue = queue
        self._output = output
        self._incoming = incoming
        self._take_over = take_over
        self._failed = failed
        self._numbers = count()
        self._finished = False
        self._over = trio.Event()
        self.delivered = 0
        """Files that were delivered."""
        self.renamed: list[Delivered] = []
        """Those of them that were given another name than their own."""

    async def run(self, upstream: Upstream) -> None:
        """Deliver until upstream is finished and nothing is left.

        Raises:
            VolumeUnusable: the output folder cannot be written to.
        """
        self._incoming.mkdir(parents=True, exist_ok=True)
        to_workers, deliveries = trio.open_memory_channel["MemoryDelivery"](0)
        self._to_place, ready = trio.open_memory_channel["_Ready"](WINDOW)
        async with (
            self._broker.consume(self._queue, WINDOW) as consumer,
            trio.open_nursery() as nursery,
        ):
            for _ in range(AT_A_TIME):
                nursery.start_soon(self._work, deliveries)
            nursery.start_soon(self._place, ready)
            nursery.start_soon(self._await_upstream, upstream)
            nursery.start_soon(self._end, nursery.cancel_scope)
            while True:
                for delivery in await consumer.receive():
                    await to_workers.send(delivery)

    async def _await_upstream(self, upstream: Upstream) -> None:
        await upstream.wait_until_finished()
        self._finished = True
        self._look_whether_over()

    async def _end(self, scope: trio.CancelScope) -> None:
        await self._over.wait()
        scope.cancel("everything is delivered")

    def _look_whether_over(self) -> None:
        left = self._broker.waiting(self._queue) + self._broker.in_work(self._queue)
        if self._finished and not left:
            self._over.set()

    async def _work(self, deliveries: trio.MemoryReceiveChannel[MemoryDelivery]) -> None:
        async for delivery in deliveries:
            fragment = decode_remote_fragment(delivery.body)
            fragment_id = fragment.metadata.fragment_id
            ready = _Ready(delivery, fragment_id)
            try:
                for file in fragment.files:
                    ready.files.append((await self._fetch(file), file.name))
            except StoreError as error:
                for temporary, _ in ready.files:
                    temporary.unlink()
                self._journal.fail(fragment_id, COMBINED, str(error))
                self._failed(delivery.body, str(error))
                self._settle(delivery)
            except OSError as error:
                raise self._unusable(error) from None
            else:
                await self._to_place.send(ready)

    async def _fetch(self, file: RemoteFile) -> Path:
        """Copy a file to where nobody takes it for a result."""
        temporary = self._incoming / str(next(self._numbers))
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            await self._store.fetch(file.bucket, file.path, descriptor)
        except BaseException:
            os.unlink(temporary)
            raise
        finally:
            os.close(descriptor)
        return temporary

    async def _place(self, ready: trio.MemoryReceiveChannel[_Ready]) -> None:
        """Give what is ready its names, and only then, when the journal has them for good, show it under them.

        Otherwise a run that is killed between the two would later take its own results for someone else's.
        """
        async for first in ready:
            batch = [first, *_at_hand(ready)]
            names = [self._names_of(each) for each in batch]
            self._journal.commit()
            for each, given in zip(batch, names, strict=True):
                try:
                    self._show(each, given)
                except OSError as error:
                    raise self._unusable(error) from None
                self._journal.finish(each.fragment_id, COMBINED)
                self._settle(each.delivery)

    def _names_of(self, ready: _Ready) -> list[str]:
        had = {each.wanted: each.name for each in self._journal.delivered_of(ready.fragment_id)}
        return [
            had.get(wanted) or self._reserve(ready.fragment_id, wanted) for _, wanted in ready.files
        ]

    def _show(self, ready: _Ready, names: list[str]) -> None:
        for (temporary, wanted), name in zip(ready.files, names, strict=True):
            target = self._output / name
            if "/" in name:
                target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(temporary, target)
            self.delivered += 1
            if name != wanted:
                self.renamed.append(Delivered(name, ready.fragment_id, wanted))

    def _settle(self, delivery: MemoryDelivery) -> None:
        self._broker.acknowledge(delivery)
        self._look_whether_over()

    def _unusable(self, error: OSError) -> VolumeUnusable:
        remedy = "make room or choose another --output, and run again"
        if isinstance(error, FileNotFoundError):
            remedy = "something has removed that folder, or one in it"
        return VolumeUnusable(
            f"a result cannot be written to {self._output}: {error.strerror}; {remedy}"
        )

    # -- names

    def _reserve(self, fragment_id: str, wanted: str) -> str:
        """Find a name for a file, and note in the journal that it is taken, before the file is there."""
        for name in _names(fragment_id, wanted):
            if self._is_free(fragment_id, name):
                self._journal.deliver(Delivered(name, fragment_id, wanted))
                return name
        raise AssertionError(f"{wanted!r} of {fragment_id} has no name")

    def _is_free(self, fragment_id: str, name: str) -> bool:
        if name.split("/", 1)[0] in RESERVED:
            return False
        parent = os.path.dirname(name)
        while parent:
            if self._journal.owner(parent) is not None or (
                os.path.lexists(self._output / parent) and not os.path.isdir(self._output / parent)
            ):
                return False
            parent = os.path.dirname(parent)
        path = self._output / name
        if self._journal.is_folder(name):
            return False
        owner = self._journal.owner(name)
        if owner is None:
            return not os.path.lexists(path) or (self._take_over and not os.path.isdir(path))
        owned_by, of_this_run = owner
        return owned_by == fragment_id or not of_this_run


def _names(fragment_id: str, wanted: str) -> Iterator[str]:
    """Yield the name itself, then names with longer and longer suffixes on the file, and on the folder that it is in."""
    yield wanted
    for length in _SUFFIX_LENGTHS:
        suffix = fragment_id[:length]
        path = PurePosixPath(wanted)
        yield str(path.with_name(_suffixed(path.name, suffix)))
        if len(path.parts) > 1:
            first, *rest = path.parts
            yield "/".join([_suffixed(first, suffix), *rest])


def _suffixed(name: str, suffix: str) -> str:
    stem, extension = os.path.splitext(name)
    room = MAX_COMPONENT_BYTES - len(suffix) - 1 - len(os.fsencode(extension))
    while len(os.fsencode(stem)) > max(room, 0):
        stem = stem[:-1]
    if room < 0:
        return suffix
    return f"{stem}.{suffix}{extension}"
