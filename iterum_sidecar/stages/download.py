"""Download: fetch the files of a fragment into a directory of its own on the volume."""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.entries import DeadLetterKind
from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.for_each import for_each
from iterum_sidecar.stores.port import BucketMissing, ObjectMissing, StoreError
from iterum_sidecar.telemetry.logs import get_log

if TYPE_CHECKING:
    from iterum_sidecar.cargo import FragmentEntry, FragmentLedger
    from iterum_sidecar.messages import RemoteFile
    from iterum_sidecar.store_faults import StoreFaults
    from iterum_sidecar.stores.port import Store
    from iterum_sidecar.telemetry.tally import Tally
    from iterum_sidecar.volume import Volume, Workspace

__all__ = ["Download"]

_log = get_log(__name__)

#: Fragments that are fetched at a time. A store on the same network answers in about a millisecond, and a step takes one in
#: about as long; 16 keep the line full without letting small fetches wait behind each other.
FRAGMENTS_AT_A_TIME = 16
#: Files of one fragment that are fetched at a time; the store's own bound on connections holds for all together.
FILES_AT_A_TIME = 8


class _FragmentRefused(Exception):
    """A fragment cannot be made ready, by its own fault."""

    kind = DeadLetterKind.INPUT_REFUSED


class _InputMissing(_FragmentRefused):
    """What it names is not there."""

    kind = DeadLetterKind.INPUT_MISSING


class Download:
    """The second stage."""

    def __init__(
        self,
        *,
        store: Store,
        volume: Volume,
        ledger: FragmentLedger,
        faults: StoreFaults,
        tally: Tally,
    ) -> None:
        self._store = store
        self._volume = volume
        self._ledger = ledger
        self._faults = faults
        self._tally = tally

    async def run(
        self,
        *,
        from_intake: trio.MemoryReceiveChannel[FragmentEntry],
        to_handout: trio.MemorySendChannel[FragmentEntry],
        to_settle: trio.MemorySendChannel[FragmentEntry],
        stop: trio.Event,
    ) -> None:
        """Make every fragment that comes ready, or dead-letter it; return when no more come, or when `stop` is set."""
        with to_handout, to_settle:
            async with trio.open_nursery() as outer:
                outer.start_soon(_cancel_when, stop, outer.cancel_scope)
                async with trio.open_nursery() as workers:
                    for _ in range(FRAGMENTS_AT_A_TIME):
                        workers.start_soon(self._work, from_intake, to_handout, to_settle)
                outer.cancel_scope.cancel("no more fragments come")

    async def _work(
        self,
        from_intake: trio.MemoryReceiveChannel[FragmentEntry],
        to_handout: trio.MemorySendChannel[FragmentEntry],
        to_settle: trio.MemorySendChannel[FragmentEntry],
    ) -> None:
        async for entry in from_intake:
            try:
                await self._fetch_all(entry)
            except _FragmentRefused as refusal:
                for fallen in self._ledger.reject(entry, str(refusal), refusal.kind):
                    to_settle.send_nowait(fallen)
            else:
                self._ledger.is_ready(entry)
                self._tally.times.enter(entry.work, "ready")
                to_handout.send_nowait(entry)

    async def _fetch_all(self, entry: FragmentEntry) -> None:
        message = entry.work.message
        if message is None:
            raise AssertionError(f"{entry!r} has no files")
        try:
            workspace = entry.work.workspace = self._volume.make_workspace()
        except OSError as error:
            raise _unusable(error) from None
        await for_each(
            message.files,
            partial(self._fetch, workspace),
            at_a_time=FILES_AT_A_TIME,
            refusal=_FragmentRefused,
        )

    async def _fetch(self, workspace: Workspace, file: RemoteFile) -> None:
        """Fetch one file, however long the store is away."""
        try:
            descriptor = self._volume.create_file(workspace, file.name)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise _FragmentRefused(f"the path for {file.name[:80]!r} is too long") from None
            raise _unusable(error) from None
        try:
            while True:
                reads_before = self._faults.reads(file.bucket)
                fetched = await self._try_to_fetch(file, descriptor)
                if isinstance(fetched, int):
                    break
                if await self._faults.is_its_own(fetched, reads_before=reads_before):
                    missing = isinstance(fetched, BucketMissing | ObjectMissing)
                    raise (_InputMissing if missing else _FragmentRefused)(str(fetched))
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
        finally:
            os.close(descriptor)
        self._faults.succeeded(file.bucket)
        self._tally.files_in += 1
        self._tally.bytes_in += fetched

    async def _try_to_fetch(self, file: RemoteFile, descriptor: int) -> int | StoreError:
        """Return the size of the object that is in the file now, or why it is not."""
        try:
            return await self._store.fetch(file.bucket, file.path, descriptor)
        except StoreError as error:
            return error
        except OSError as error:
            raise _unusable(error) from None


async def _cancel_when(stop: trio.Event, scope: trio.CancelScope) -> None:
    await stop.wait()
    scope.cancel("told to take nothing more")


def _unusable(error: OSError) -> VolumeUnusable:
    return VolumeUnusable(
        f"a file cannot be written to the volume: {error.strerror}; make room on it"
    )
