"""What becomes of results: one identity for each, two for two, and no file lost or removed too early."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from iterum_sidecar.exit_codes import (
    SidecarError,
)
from iterum_sidecar.stores.port import StoreRefused
from tests.unit.row import (
    DEAD,
    FinishedOnRequest,
    StepConnection,
    copy_step,
    temporary_row,
)
from tests.unit.row_with_faults import FaultyStore, finished, id_of, sidecar_with

if TYPE_CHECKING:
    import pytest

Clock = trio.testing.MockClock


# -- input files stay until the last hand-out ends


async def test_an_input_file_that_was_sent_as_a_result_is_still_there_when_handed_out_again(
    autojump_clock: Clock,
) -> None:
    there: list[bool] = []

    async def passing_on(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            own = id_of(fragment)
            (file,) = fragment["files"]
            there.append(Path(file["path"]).exists())
            await connection.send_result([own], [(file["name"], file["path"])])
            if len(there) == 1:
                await connection.send(["not a message"])
                await connection.outputs.aclose()
                connection.outputs = await trio.open_unix_socket(connection.volume / "out.sock")
            await connection.done(own)
        await connection.kill()

    async with temporary_row() as row:
        await row.put(1)
        await row.run(passing_on)
        assert there == [True, True]
        assert row.broker.messages(DEAD) == []
        assert row.contents() == {"0.txt": b"content 0"}


async def test_a_done_removes_no_input_file_of_a_fragment_that_is_still_in_work(
    autojump_clock: Clock,
) -> None:
    async def passing_on(connection: StepConnection) -> None:
        batch = []
        async for fragment in connection.fragments():
            batch.append(fragment)
            if len(batch) == 2:
                (first, one), (second, two) = (
                    (id_of(each), each["files"][0]["path"]) for each in batch
                )
                await connection.send_result([first, second], [("one", one), ("two", two)])
                await connection.done(first)
                await trio.sleep(0.1)
                await connection.send_result([second], [("again", two)])
                await connection.done(second)
        await connection.kill()

    async with temporary_row(SIDECAR_HANDOUT_DEPTH="2") as row:
        await row.put(2)
        await row.run(passing_on)
        assert row.broker.messages(DEAD) == []
        assert set(row.contents()) == {"one", "two", "again"}


# -- one result, one identity; two results, two


async def test_a_result_that_comes_after_its_fragment_was_settled_replaces_no_other(
    autojump_clock: Clock,
) -> None:
    async def tardy(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            own = id_of(fragment)
            await connection.result([own], "x", b"in time")
            await connection.done(own)
            await trio.sleep(0.5)
            await connection.result([own], "x", b"late")
        await connection.kill()

    async with temporary_row() as row:
        await row.put(1)
        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, tardy)
            nursery.start_soon(sidecar.run)
            await trio.sleep(5)
            upstream.finished.set()
        files = [output["files"][0] for output in row.outputs()]
        contents = [row.object(file["bucket"], file["path"]) for file in files]
        assert sorted(contents) == [b"in time", b"late"]


async def test_a_second_result_is_published_though_one_of_its_fragments_was_settled_between(
    autojump_clock: Clock,
) -> None:
    async def sliding(connection: StepConnection) -> None:
        batch: list[str] = []
        async for fragment in connection.fragments():
            batch.append(id_of(fragment))
            if len(batch) == 2:
                await connection.result(batch, "x", b"first")
                await connection.done(batch[0])
                await trio.sleep(0.5)
                await connection.result(batch, "x", b"second")
                await connection.done(batch[1])
        await connection.kill()

    async with temporary_row(SIDECAR_HANDOUT_DEPTH="2") as row:
        await row.put(2)
        await row.run(sliding)
        files = [output["files"][0] for output in row.outputs()]
        contents = [row.object(file["bucket"], file["path"]) for file in files]
        assert sorted(contents) == [b"first", b"second"]


# -- the store's fault


class ReadOnlyStore(FaultyStore):
    """Refuses what is put for a while, as a key does that has lost its right to write."""

    writable_at = 30.0

    async def put(self, bucket: str, key: str, file: int, size: int) -> None:
        if trio.current_time() < self.writable_at:
            raise StoreRefused("403", bucket=bucket, key=key, code="AccessDenied")
        await super().put(bucket, key, file, size)


async def test_a_refusal_to_write_makes_no_dead_letters_where_input_and_output_share_a_bucket(
    autojump_clock: Clock,
) -> None:
    async with temporary_row(MINIO_OUTPUT_BUCKET="source") as row:
        await row.put(10)
        store = ReadOnlyStore(row.store_root)
        store.writable_at = trio.current_time() + 30
        sidecar = sidecar_with(row, finished(), store=store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, copy_step)
            await sidecar.run()
        assert row.broker.messages(DEAD) == []
        assert len(row.outputs()) == 10


class UnreadableStore(FaultyStore):
    async def put(self, bucket: str, key: str, file: int, size: int) -> None:
        await trio.lowlevel.checkpoint()
        raise OSError(5, "Input/output error")


async def test_a_result_that_cannot_be_read_while_it_is_stored_is_no_fault_of_the_program(
    autojump_clock: Clock,
) -> None:
    async with temporary_row() as row:
        await row.put(1)
        sidecar = sidecar_with(row, finished(), store=UnreadableStore(row.store_root))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, copy_step)
            try:
                await sidecar.run()
            except* SidecarError:
                nursery.cancel_scope.cancel()


# -- our own want of descriptors


async def test_a_result_is_not_refused_because_no_descriptor_is_free(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanting = [3]
    real_open = os.open

    def poor_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:  # noqa: ANN401
        if path == "out-0.txt" and wanting[0]:
            wanting[0] -= 1
            raise OSError(24, "Too many open files")
        return real_open(path, flags, mode, dir_fd=dir_fd)

    async def copying(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            await connection.result([id_of(fragment)], "sub/out-0.txt", b"x")
            monkeypatch.setattr("iterum_sidecar.volume.os.open", poor_open)
            await connection.done(id_of(fragment))
        await connection.kill()

    async with temporary_row() as row:
        await row.put(1)
        await row.run(copying)
        assert row.broker.messages(DEAD) == []
