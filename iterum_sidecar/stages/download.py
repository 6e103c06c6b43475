"""Download: fetch the files of a fragment into a directory of its own on the volume, as soon as there is room for them.

Two things say how much room there is. The budget (`volume_budget.py`) is asked before the first byte of a file, when the store has
told its size; who has to wait holds no connection meanwhile. The disk is asked by writing: where it is full the file is emptied
again, and the eldest fragment keeps what it has and waits, while the others give way to it and begin anew.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.entries import DeadLetterKind
from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.file_turns import FileTurns
from iterum_sidecar.prompt_channels import promptly
from iterum_sidecar.shortages import NO_ROOM, is_shortage, shortage_in
from iterum_sidecar.stores.port import BucketMissing, ObjectMissing, StoreError
from iterum_sidecar.volume_budget import MustGiveWay, NoRoom

if TYPE_CHECKING:
    from iterum_sidecar.cargo import FragmentEntry, FragmentLedger
    from iterum_sidecar.messages import RemoteFile
    from iterum_sidecar.shortages import Shortages
    from iterum_sidecar.store_faults import StoreFaults
    from iterum_sidecar.stores.port import Store
    from iterum_sidecar.telemetry.tally import Tally
    from iterum_sidecar.volume import Volume, Workspace
    from iterum_sidecar.volume_budget import Room, Share, VolumeBudget

__all__ = ["Download"]

#: Fragments that are fetched at a time. A store on the same network answers in about a millisecond, and a step takes one in
#: about as long; 16 keep the line full without letting small fetches wait behind each other.
FRAGMENTS_AT_A_TIME = 16
#: Files that are fetched at a time, of all fragments together (each may have one) and of one fragment. As many again are put meanwhile, and
#: both have a connection each: files that waited for one would cost more than they save.
FILES_AT_A_TIME = 16
FILES_OF_A_FRAGMENT = 8


class _FragmentStopped(Exception):
    """The files of a fragment are not fetched any further."""


class _FragmentRefused(_FragmentStopped):
    """A fragment cannot be made ready, by its own fault."""

    kind = DeadLetterKind.INPUT_REFUSED


class _InputMissing(_FragmentRefused):
    """What it names is not there."""

    kind = DeadLetterKind.INPUT_MISSING


class _GivesWay(_FragmentStopped):
    """The disk is full, and what this fragment has of it helps an elder one to be whole."""

    def __init__(self, error: OSError | None = None, path: str = "") -> None:
        super().__init__()
        self.error = error
        """Why it begins anew only after a wait, if it has met the full disk itself."""
        self.path = path


class Download:
    """The second stage."""

    def __init__(
        self,
        *,
        store: Store,
        volume: Volume,
        budget: VolumeBudget,
        shortages: Shortages,
        ledger: FragmentLedger,
        faults: StoreFaults,
        tally: Tally,
    ) -> None:
        self._store = store
        self._volume = volume
        self._budget = budget
        self._shortages = shortages
        self._ledger = ledger
        self._faults = faults
        self._tally = tally
        self._fragments_at_a_time, of_a_fragment = volume.files_at_a_time(
            FRAGMENTS_AT_A_TIME, FILES_OF_A_FRAGMENT
        )
        self._turns = FileTurns(FILES_AT_A_TIME, of_a_fragment)

    async def run(
        self,
        *,
        from_intake: trio.MemoryReceiveChannel[FragmentEntry],
        to_handout: trio.MemorySendChannel[FragmentEntry],
        to_settle: trio.MemorySendChannel[FragmentEntry],
        stop: trio.Event,
    ) -> None:
        """Make every fragment that comes ready, or dead-letter it; return when no more come, or when `stop` is set.

        Raises:
            VolumeUnusable: the volume cannot be written to, or has been full for too long.
        """
        with to_handout, to_settle:
            async with trio.open_nursery() as outer:
                outer.start_soon(_cancel_when, stop, outer.cancel_scope)
                async with trio.open_nursery() as workers:
                    for _ in range(self._fragments_at_a_time):
                        workers.start_soon(self._work, from_intake, to_handout, to_settle)
                outer.cancel_scope.cancel("no more fragments come")

    async def _work(
        self,
        from_intake: trio.MemoryReceiveChannel[FragmentEntry],
        to_handout: trio.MemorySendChannel[FragmentEntry],
        to_settle: trio.MemorySendChannel[FragmentEntry],
    ) -> None:
        async for entry in promptly(from_intake):
            share = entry.work.share = self._budget.open()
            try:
                await self._make_ready(entry, share)
            except _FragmentRefused as refusal:
                for fallen in self._ledger.reject(entry, str(refusal), refusal.kind):
                    to_settle.send_nowait(fallen)
            else:
                self._ledger.is_ready(entry)
                self._tally.times.enter(entry.work, "ready")
                to_handout.send_nowait(entry)
            finally:
                share.downloaded()
            # Or each worker would hold the message that it had last until it gets another.
            del entry, share

    async def _make_ready(self, entry: FragmentEntry, share: Share) -> None:
        """Fetch all files of a fragment, from the beginning as often as it has to give way."""
        while True:
            try:
                await self._fetch_all(entry, share)
                return
            except _GivesWay as way:
                error, path = way.error, way.path
            entry.work.remove_files(self._volume)
            share.give_way()
            if error is not None:
                await self._wait(error, path)

    async def _fetch_all(self, entry: FragmentEntry, share: Share) -> None:
        message = entry.work.message
        if message is None:
            raise AssertionError(f"{entry!r} has no files")
        workspace = entry.work.workspace = await self._make_workspace()
        try:
            await self._turns.for_each(
                message.files, partial(self._fetch, share, workspace), refusal=_FragmentStopped
            )
        finally:
            workspace.rest()

    async def _make_workspace(self) -> Workspace:
        while True:
            try:
                return self._volume.make_workspace()
            except OSError as error:
                want = error
            await self._wait(want, self._volume.root)

    # -- one file

    async def _fetch(self, share: Share, workspace: Workspace, file: RemoteFile) -> None:
        """Fetch one file, however long the store is away, or there is no room for it."""
        path = f"{workspace.path}/{file.name}"
        room = share.room()
        descriptor = await self._create(workspace, file, room, path)
        trial = self._faults.reading(file.bucket)
        try:
            while True:
                fetched = await self._try_to_fetch(file, descriptor, room)
                if isinstance(fetched, int):
                    break
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                if isinstance(fetched, NoRoom):
                    self._refuse_what_never_fits(file, room)
                    await self._wait_for_budget(room)
                elif isinstance(fetched, OSError):
                    await self._wait_for_room(fetched, file, room, path)
                elif await trial.is_at_fault(fetched):
                    missing = isinstance(fetched, BucketMissing | ObjectMissing)
                    raise (_InputMissing if missing else _FragmentRefused)(str(fetched))
        finally:
            _close(descriptor, path)
        room.is_written(fetched)
        self._is_not_short(share)
        trial.succeeded()
        self._tally.files_in += 1
        self._tally.bytes_in += fetched

    async def _try_to_fetch(
        self, file: RemoteFile, descriptor: int, room: Room
    ) -> int | StoreError | NoRoom | OSError:
        """Return the size of the object that is in the file now, or why it is not."""
        try:
            return await self._store.fetch(file.bucket, file.path, descriptor, admit=room.admit)
        except StoreError as error:
            return shortage_in(error) or error
        except (NoRoom, OSError) as error:
            return error

    async def _create(self, workspace: Workspace, file: RemoteFile, room: Room, path: str) -> int:
        while True:
            try:
                return self._volume.create_file(workspace, file.name)
            except OSError as error:
                want = error
            workspace.rest()
            await self._wait_for_room(want, file, room, path)

    # -- what is short

    async def _wait_for_budget(self, room: Room) -> None:
        try:
            await room.wait()
        except MustGiveWay:
            raise _GivesWay from None

    async def _wait_for_room(self, error: OSError, file: RemoteFile, room: Room, path: str) -> None:
        """Wait until a file that could not be made or written may be tried again.

        Raises:
            _FragmentRefused: it never can be.
            _GivesWay: the disk is full, and there is an elder fragment.
            VolumeUnusable.
        """
        if error.errno == errno.ENAMETOOLONG:
            raise _FragmentRefused(f"the path for {file.name[:80]!r} is too long")
        if error.errno == errno.EFBIG:
            raise _FragmentRefused(f"{file.name[:80]!r} is larger than the volume lets a file be")
        if error.errno in NO_ROOM:
            self._refuse_what_never_fits(file, room)
            if not room.share.is_eldest:
                raise _GivesWay(error, path)
            room.share.block()
        await self._wait(error, path)
        # To fill the disk in vain again and again would hurt whoever else writes to it.
        while error.errno == errno.ENOSPC and not self._volume.may_hold(room.wanted):
            await self._wait(error, path)

    async def _wait(self, error: OSError, path: str) -> None:
        if not is_shortage(error):
            raise _unusable(error, path)
        await self._shortages.wait(error, path, in_vain=not self._budget.will_shrink)

    def _refuse_what_never_fits(self, file: RemoteFile, room: Room) -> None:
        needed, capacity = room.share.held - room.size + room.wanted, self._volume.capacity()
        if needed > capacity:
            raise _FragmentRefused(
                f"with {file.name[:80]!r} its files have {needed:,} bytes, and the whole volume has {capacity:,}"
            )

    def _is_not_short(self, share: Share) -> None:
        """A file was written: there is room, unless it is an elder that waits for it."""
        if self._shortages.are_felt:
            self._shortages.there_is_a_descriptor()
            if self._budget.blocked_by in {None, share}:
                self._shortages.there_is_room()


def _close(descriptor: int, path: str) -> None:
    try:
        os.close(descriptor)
    except OSError as error:  # a network file system may tell only now that it could not write
        raise _unusable(error, path) from None


def _unusable(error: OSError, path: str) -> VolumeUnusable:
    return VolumeUnusable(
        f"a file cannot be written to the volume: {error.strerror} ({path}); see to its mount"
    )


async def _cancel_when(stop: trio.Event, scope: trio.CancelScope) -> None:
    await stop.wait()
    scope.cancel("told to take nothing more")
