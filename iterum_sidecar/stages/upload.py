"""Upload: put the files of a result into the step's output bucket, and describe it as a remote fragment."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from iterum_sidecar.cargo import Parcel
from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.file_turns import FileTurns
from iterum_sidecar.messages import RemoteFile, RemoteFragment, RemoteMetadata, encode_message
from iterum_sidecar.prompt_channels import promptly, send_promptly
from iterum_sidecar.shortages import is_shortage, shortage_in
from iterum_sidecar.stores.port import StoreError
from iterum_sidecar.telemetry.logs import get_log
from iterum_sidecar.volume import PathRefused

if TYPE_CHECKING:
    from iterum_sidecar.cargo import FragmentEntry, FragmentLedger, OutputCargo
    from iterum_sidecar.freight import Freight
    from iterum_sidecar.messages import LocalFile
    from iterum_sidecar.shortages import Shortages
    from iterum_sidecar.store_faults import StoreFaults
    from iterum_sidecar.stores.port import Store
    from iterum_sidecar.telemetry.tally import Tally
    from iterum_sidecar.volume import TakenFile, Volume

__all__ = ["OBJECT_PREFIX", "RESULTS_AT_A_TIME", "Upload"]

_log = get_log(__name__)

#: Where Iterum's programs put step data (contract, section 4); the fragment's ID keeps equal names apart.
OBJECT_PREFIX = "iterum_data/"

#: Results that are stored at a time, files of all of them together, and of one; the reasons are those of the downloads.
RESULTS_AT_A_TIME = 16
FILES_AT_A_TIME = 16
FILES_OF_A_RESULT = 8


#: RabbitMQ's `max_message_size` since 4.0 is 16 MiB; the lineage message has some more around the description.
LONGEST_DESCRIPTION = 16 * 1024 * 1024 - 4096


class _ResultRefused(Exception):
    """A result cannot be stored, by its own fault."""


class Upload:
    """The fifth stage."""

    def __init__(
        self,
        *,
        store: Store,
        volume: Volume,
        ledger: FragmentLedger,
        faults: StoreFaults,
        tally: Tally,
        shortages: Shortages,
        freight: Freight,
        bucket: str,
    ) -> None:
        self._store = store
        self._volume = volume
        self._ledger = ledger
        self._faults = faults
        self._tally = tally
        self._shortages = shortages
        self._freight = freight
        self._bucket = bucket
        self._results_at_a_time, of_a_result = volume.files_at_a_time(
            RESULTS_AT_A_TIME, FILES_OF_A_RESULT
        )
        self._turns = FileTurns(FILES_AT_A_TIME, of_a_result)

    async def run(
        self,
        *,
        from_collect: trio.MemoryReceiveChannel[OutputCargo],
        to_publish: trio.MemorySendChannel[Parcel],
        to_settle: trio.MemorySendChannel[FragmentEntry],
    ) -> None:
        """Store every result that comes; return when no more come."""
        with to_publish, to_settle:
            async with trio.open_nursery() as nursery:
                for _ in range(self._results_at_a_time):
                    nursery.start_soon(self._work, from_collect, to_publish, to_settle)

    async def _work(
        self,
        from_collect: trio.MemoryReceiveChannel[OutputCargo],
        to_publish: trio.MemorySendChannel[Parcel],
        to_settle: trio.MemorySendChannel[FragmentEntry],
    ) -> None:
        async for cargo in promptly(from_collect):
            parcel = await self._store_result(cargo, to_settle)
            if parcel is not None:
                await send_promptly(to_publish, parcel)
            # Or each worker would hold what it had last until it gets another: thirty megabytes, if that was a long description.
            del cargo, parcel

    async def _store_result(
        self, cargo: OutputCargo, to_settle: trio.MemorySendChannel[FragmentEntry]
    ) -> Parcel | None:
        """Store the files of a result, and return its description; None for a result that is refused."""
        try:
            description = self._describe(cargo)
            await self._put_all(cargo)
        except _ResultRefused as refusal:
            self._freight.arrived(cargo.output)
            self._tally.refused_results += 1
            for fallen in self._ledger.output_refused(cargo.output, str(refusal)):
                to_settle.send_nowait(fallen)
            return None
        finally:
            for taken in cargo.files:
                self._volume.release(taken)
        stored = self._tally.times.pass_output("upload", cargo)
        return Parcel(cargo.output, cargo.queue, description, stored)

    async def _put_all(self, cargo: OutputCargo) -> None:
        await self._turns.for_each(
            zip(cargo.message.files, cargo.files, strict=True),
            partial(self._put, f"{OBJECT_PREFIX}{cargo.output.output_id}/"),
            refusal=_ResultRefused,
        )

    async def _put(self, prefix: str, pair: tuple[LocalFile, TakenFile]) -> None:
        """Put one file, however long the store is away, and let go of it."""
        file, taken = pair
        key = prefix + file.name
        trial = self._faults.writing()
        while (failure := await self._try_to_put(key, taken)) is not None:
            taken.rest()
            if isinstance(failure, OSError):
                await self._shortages.wait(failure, taken.path)
            elif await trial.is_at_fault(failure):
                raise _ResultRefused(str(failure))
        self._shortages.there_is_a_descriptor()
        if taken.has_changed():
            raise _ResultRefused(
                f"{taken.path} was written to after its frame had been sent; write each result to a path of its own"
            )
        self._volume.release(taken)
        trial.succeeded()
        self._tally.files_out += 1
        self._tally.bytes_out += taken.size

    async def _try_to_put(self, key: str, taken: TakenFile) -> StoreError | OSError | None:
        try:
            await self._store.put(self._bucket, key, taken.open(), taken.size)
        except PathRefused as refusal:
            raise _ResultRefused(str(refusal)) from None
        except StoreError as error:
            return shortage_in(error) or error
        except OSError as error:
            if is_shortage(error):
                return error
            raise VolumeUnusable(f"{taken.path} cannot be read: {error.strerror}") from None
        return None

    def _describe(self, cargo: OutputCargo) -> bytes:
        output_id = cargo.output.output_id
        metadata = cargo.message.metadata
        description = encode_message(
            RemoteFragment(
                [
                    RemoteFile(file.name, f"{OBJECT_PREFIX}{output_id}/{file.name}", self._bucket)
                    for file in cargo.message.files
                ],
                RemoteMetadata(
                    output_id,
                    sorted(set(metadata.predecessors)),
                    cargo.target_queue,
                    metadata.custom,
                ),
            )
        )
        if len(description) > LONGEST_DESCRIPTION:
            raise _ResultRefused(
                f"its description has {len(description):,} bytes, a broker takes {LONGEST_DESCRIPTION:,}"
            )
        return description
