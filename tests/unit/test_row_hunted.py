"""Promises that the whole row did not keep when it was hunted for faults; in memory, on the autojump clock."""

from __future__ import annotations

import json
import os
import socket
import struct
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing

from iterum_sidecar import amqp
from iterum_sidecar.amqp.properties import decode_properties, encode_properties
from iterum_sidecar.brokers.amqp import AmqpBroker, QueuePolicy, carriable
from iterum_sidecar.brokers.port import BrokerLost
from iterum_sidecar.cargo import FragmentCargo, FragmentLedger, FragmentRoster, News
from iterum_sidecar.exit_codes import (
    BadConfiguration,
    DrainDeadlinePassed,
    ServiceLost,
    SidecarError,
    TransformationLost,
)
from iterum_sidecar.framing import encode_frame
from iterum_sidecar.identity import OutputIdentity
from iterum_sidecar.ledger import Ledger
from iterum_sidecar.messages import decode_remote_fragment
from iterum_sidecar.patience import Patience
from iterum_sidecar.roster import Roster
from iterum_sidecar.settings import read_settings
from iterum_sidecar.sidecar import Sidecar, queues_of
from iterum_sidecar.stages.handout import VOID_PATIENCE, Handout
from iterum_sidecar.stores.directory import DirectoryStore
from iterum_sidecar.stores.port import StoreRefused, StoreUnavailable
from iterum_sidecar.unix_sockets import Listener
from tests.unit.row import (
    DEAD,
    INPUT,
    FinishedOnRequest,
    RecordingBroker,
    Row,
    StepConnection,
    copy_step,
    fragment_id,
    temporary_row,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from iterum_sidecar.stores.port import Store

Clock = trio.testing.MockClock

KILL = b'{"status":"complete"}'

ENVIRONMENT = {
    "DATA_VOLUME_PATH": "/v",
    "TRANSFORMATION_STEP_INPUT": "in.sock",
    "TRANSFORMATION_STEP_OUTPUT": "out.sock",
    "ITERUM_NAME": "hash-step",
    "PIPELINE_HASH": "hash",
    "ITERUM_CONFIG_PATH": "config",
    "MQ_BROKER_URL": "amqp://guest:guest@nowhere",
    "MQ_INPUT_QUEUE": "in",
    "MQ_OUTPUT_QUEUE": "out",
    "MINIO_URL": "nowhere:9000",
    "MINIO_ACCESS_KEY": "key",
    "MINIO_SECRET_KEY": "secret",
    "MINIO_OUTPUT_BUCKET": "results",
}


def id_of(fragment: dict[str, Any]) -> str:
    own: str = fragment["metadata"]["fragment_id"]
    return own


def finished() -> FinishedOnRequest:
    upstream = FinishedOnRequest()
    upstream.finished.set()
    return upstream


def sidecar_with(
    row: Row,
    upstream: FinishedOnRequest,
    *,
    store: Store | None = None,
    broker_is_away: bool = False,
    service_timeout: float = 0,
) -> Sidecar:
    """The row's sidecar, with a store or a broker that has something the matter with it."""
    settings = row.settings()

    @asynccontextmanager
    async def open_broker() -> AsyncIterator[RecordingBroker]:
        if broker_is_away:
            await trio.sleep_forever()
        for queue in queues_of(settings):
            await row.broker.ensure_queue(queue)
        yield row.broker

    return Sidecar(
        settings,
        open_broker=open_broker,
        store=store or DirectoryStore(row.store_root),
        store_patience=Patience("the store", service_timeout),
        upstream=lambda _ledger: upstream,
        tally=row.tally,
    )


async def run_while(sidecar: Sidecar, row: Row, step: Callable[[StepConnection], Any]) -> None:
    """Run a sidecar beside a transformation whose process is started again a second after each death."""

    async def keep_starting() -> None:
        while True:
            await row.run_step(step)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_starting)
        await sidecar.run()
        nursery.cancel_scope.cancel()


# -- the kill message at every controlled end


class FaultyStore:
    """A store in a directory; its heirs have something the matter with them."""

    def __init__(self, root: Path) -> None:
        self._sound = DirectoryStore(root)

    async def fetch(self, bucket: str, key: str, file: int) -> int:
        return await self._sound.fetch(bucket, key, file)

    async def put(self, bucket: str, key: str, file: int, size: int) -> None:
        await self._sound.put(bucket, key, file, size)

    async def check_bucket(self, bucket: str) -> None:
        await self._sound.check_bucket(bucket)

    async def ensure_bucket(self, bucket: str) -> None:
        await self._sound.ensure_bucket(bucket)


class DownStore(FaultyStore):
    async def ensure_bucket(self, bucket: str) -> None:
        await trio.lowlevel.checkpoint()
        raise StoreUnavailable("it is down", bucket=bucket)


async def heard_before_the_end(row: Row, sidecar: Sidecar, end: Callable[[], None] | None) -> bytes:
    """Connect, let the program be ended after 2 s, and return all that the input connection was sent."""
    heard = b""
    connection: list[StepConnection] = []

    async def listen() -> None:
        nonlocal heard
        connection.append(await row.connect())
        try:
            while data := await connection[0].inputs.receive_some():
                heard += data
        except trio.BrokenResourceError:
            pass

    async def end_later() -> None:
        await trio.sleep(2)
        if end is not None:
            end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        nursery.start_soon(end_later)
        try:
            await sidecar.run()
        except* (ServiceLost, DrainDeadlinePassed):
            pass
    await connection[0].inputs.aclose()
    await connection[0].outputs.aclose()
    return heard


async def test_kill_is_said_when_the_drain_deadline_passes(autojump_clock: Clock) -> None:
    """Here while the store is away, so that a result cannot be stored."""
    async with temporary_row(SIDECAR_DRAIN_SECONDS="0.5") as row:
        sidecar = sidecar_with(row, FinishedOnRequest())

        def drain() -> None:
            row.describe(1, [("0.txt", "iterum_data/0.txt")])

            async def soon() -> None:
                await trio.sleep(0.1)
                sidecar.drain()

            trio.lowlevel.spawn_system_task(soon)

        await row.put_object("iterum_data/0.txt", b"x")
        assert (await heard_before_the_end(row, sidecar, drain)).endswith(KILL)


async def test_kill_is_said_when_the_program_is_told_to_stop_before_the_broker_is_there(
    autojump_clock: Clock,
) -> None:
    """Ten times, because which task is cancelled first is Trio's to choose."""
    for _ in range(10):
        async with temporary_row() as row:
            sidecar = sidecar_with(row, FinishedOnRequest(), broker_is_away=True)
            assert (await heard_before_the_end(row, sidecar, sidecar.drain)).endswith(KILL)


async def test_kill_is_said_when_the_program_is_interrupted_twice(autojump_clock: Clock) -> None:
    async with temporary_row() as row:
        sidecar = sidecar_with(row, FinishedOnRequest())
        assert (await heard_before_the_end(row, sidecar, sidecar.abort)).endswith(KILL)


async def test_kill_is_said_when_the_store_does_not_come_in_time(autojump_clock: Clock) -> None:
    async with temporary_row() as row:
        sidecar = sidecar_with(
            row, FinishedOnRequest(), store=DownStore(row.store_root), service_timeout=3
        )
        assert (await heard_before_the_end(row, sidecar, None)).endswith(KILL)


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


# -- results after the kill


async def test_a_step_may_close_its_input_at_the_kill_and_send_its_last_batch_then(
    autojump_clock: Clock,
) -> None:
    async def gathering(connection: StepConnection) -> None:
        batch = [id_of(fragment) async for fragment in connection.fragments()]
        await connection.inputs.aclose()
        await trio.sleep(0.5)
        await connection.result(batch, "batch", b"x")
        for own in batch:
            await connection.done(own)
        await connection.kill()

    async with temporary_row() as row:
        await row.put(5)
        await row.run(gathering)
        (output,) = row.outputs()
        assert len(output["metadata"]["predecessors"]) == 5
        assert row.broker.messages(INPUT) == []


async def test_a_worker_that_connects_its_output_late_is_waited_for(autojump_clock: Clock) -> None:
    async def prompt(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            await connection.result([id_of(fragment)], id_of(fragment), b"x")
            await connection.done(id_of(fragment))
        await connection.kill()

    async with temporary_row() as row:

        async def late() -> None:
            await trio.sleep(1)
            async with await trio.open_unix_socket(row.volume / "in.sock") as inputs:
                connection = StepConnection(row.volume, inputs, inputs)
                fragment = await connection.__anext__()
                await trio.sleep(5)
                async with await trio.open_unix_socket(row.volume / "out.sock") as outputs:
                    connection.outputs = outputs
                    await connection.result([id_of(fragment)], id_of(fragment), b"x")
                    await connection.done(id_of(fragment))
                    await connection.kill()

        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, prompt)
            nursery.start_soon(late)
            nursery.start_soon(sidecar.run)
            await trio.sleep(2)
            await row.put(2)
            upstream.finished.set()
        assert len(row.outputs()) == 2


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


# -- blame


async def test_a_connection_that_closes_before_it_read_a_fragment_is_no_death_of_its(
    autojump_clock: Clock,
) -> None:
    """A step that works one fragment for each connection: the next is sent to it before it closes."""

    async def one_each(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            own = id_of(fragment)
            await connection.result([own], own, b"x")
            await connection.done(own)
            await trio.sleep(0.01)
            return
        await connection.kill()

    async with temporary_row() as row:
        await row.put(12)
        with trio.move_on_after(200):
            await run_while(row.make_sidecar(finished()), row, one_each)
        assert row.broker.messages(DEAD) == []
        assert row.tally.struck == 0
        assert len(row.outputs()) == 12


async def test_what_a_process_sent_before_it_ended_counts_though_it_had_only_just_connected(
    autojump_clock: Clock,
) -> None:
    """A process for each fragment, sixteen side by side: it connects its output, sends result and done, and is gone."""
    async with temporary_row() as row:

        async def brief() -> None:
            while True:
                try:
                    inputs = await trio.open_unix_socket(row.volume / "in.sock")
                except OSError:
                    await trio.sleep(0.01)
                    continue
                connection = StepConnection(row.volume, inputs, inputs)
                with inputs.socket:
                    async for fragment in connection.fragments():
                        await trio.sleep(1 - trio.current_time() % 1)
                        own = id_of(fragment)
                        path = row.volume / own
                        path.write_bytes(b"x")
                        result = {
                            "files": [{"name": own, "path": str(path)}],
                            "metadata": {"predecessors": [own]},
                        }
                        with socket.socket(socket.AF_UNIX) as outputs:
                            outputs.connect(str(row.volume / "out.sock"))
                            for message in (result, {"fragment_id": own}):
                                outputs.sendall(encode_frame(json.dumps(message).encode()))
                        break
                await trio.sleep(0.1)

        await row.put(300)
        sidecar = row.make_sidecar(FinishedOnRequest())
        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(brief)
            nursery.start_soon(sidecar.run)
            await trio.sleep(100)
            nursery.cancel_scope.cancel()
        assert row.tally.late_results == 0
        assert row.broker.messages(DEAD) == []


async def test_the_neighbours_of_a_poisonous_fragment_are_no_dead_letters(
    autojump_clock: Clock,
) -> None:
    """One process with sixteen connections, all of which die with it."""
    poisonous = {fragment_id(number) for number in range(0, 240, 60)}
    async with temporary_row() as row:

        async def process() -> None:
            with trio.CancelScope() as life:
                async with trio.open_nursery() as nursery:

                    async def worker(connection: StepConnection) -> None:
                        async for fragment in connection.fragments():
                            own = id_of(fragment)
                            await trio.sleep(0.1 if own in poisonous else 0.3)
                            if own in poisonous:
                                life.cancel()
                                await trio.sleep_forever()
                            await connection.result([own], own, b"x")
                            await connection.done(own)
                        await connection.kill()

                    for _ in range(16):
                        nursery.start_soon(row.run_step, worker)

        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)

        async def keep_coming() -> None:
            for start in range(0, 240, 6):
                await row.put(6, start=start)
                await trio.sleep(1)
            upstream.finished.set()

        async def keep_starting() -> None:
            while True:
                await process()
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_starting)
            nursery.start_soon(keep_coming)
            await sidecar.run()
            nursery.cancel_scope.cancel()
        dead = {
            decode_remote_fragment(letter.body).metadata.fragment_id
            for letter in row.broker.messages(DEAD)
        }
        assert dead == poisonous


async def test_the_last_fragment_of_a_slow_step_is_tried_again_when_the_step_dies_on_it(
    autojump_clock: Clock,
) -> None:
    deaths: list[str] = []

    async def slow(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            own = id_of(fragment)
            await trio.sleep(3)
            if not deaths:
                deaths.append(own)
                return
            await connection.result([own], own, b"x")
            await connection.done(own)
        await connection.kill()

    async with temporary_row() as row:
        await row.put(1)
        await run_while(row.make_sidecar(finished()), row, slow)
        assert len(row.outputs()) == 1


async def test_a_poisonous_last_fragment_of_a_slow_step_is_a_dead_letter_in_the_end(
    autojump_clock: Clock,
) -> None:
    """Whether in one life of the program or in several."""

    async def dying(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            assert fragment
            await trio.sleep(3)
            return
        await connection.kill()

    async with temporary_row(SIDECAR_TRANSFORMATION_RETURN_TIMEOUT="30") as row:
        await row.put(1)
        for _ in range(5):
            try:
                await run_while(row.make_sidecar(finished()), row, dying)
                break
            except* SidecarError:
                pass
        assert len(row.broker.messages(DEAD)) == 1


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


# -- no traceback for a race, a peer or a user


async def test_a_void_hand_out_whose_done_is_on_its_way_is_not_given_up(
    autojump_clock: Clock,
) -> None:
    """The done has been read by collect, and handout has not been told of it yet."""
    ledger: FragmentLedger = Ledger(OutputIdentity("hash", "step"), attempts_allowed=3)
    roster: FragmentRoster = Roster(1)
    async with temporary_row() as row:
        with Listener(str(row.volume / "in.sock")) as listener:
            handout = Handout(
                listener=listener,
                ledger=ledger,
                roster=roster,
                start_timeout=1,
                return_timeout=1,
                kill_timeout=1,
            )
            to_settle, _fallen = trio.open_memory_channel[Any](10)
            news, _news = trio.open_memory_channel[News](10)
            handout._to_settle = to_settle
            _, entry = ledger.admit(fragment_id(1), None, None, FragmentCargo(None))
            assert entry is not None
            ledger.is_ready(entry)
            roster.sit()
            roster.add(entry)
            now = trio.current_time()
            for _, each in roster.assign(now):
                ledger.hand_out(each)
            ledger.breach("a test's")
            ledger.done(entry.fragment_id)
            await trio.sleep(VOID_PATIENCE + 1)
            await handout._feed(trio.current_time(), news)


class _LostConnection:
    """As much of an AMQP connection as tells that it is lost."""

    def open_channel(self, confirms: bool = False) -> _LostConnection:
        return self

    async def __aenter__(self) -> amqp.Channel:
        await trio.lowlevel.checkpoint()
        raise amqp.ConnectionLost("cut")

    async def __aexit__(self, *exc: object) -> None:
        pass


async def test_a_connection_lost_while_a_queue_is_declared_is_a_lost_broker() -> None:
    """A dead letter was to be published just then."""
    broker = AmqpBroker(
        cast("amqp.Connection", _LostConnection()), cast("amqp.Channel", None), QueuePolicy()
    )
    with pytest.raises(BrokerLost):
        await broker.ensure_queue("in-dead-letter", durable=True)


def _with_header(name: bytes, field: bytes) -> bytes:
    table = bytes([len(name)]) + name + field
    return struct.pack(">HI", 0x2000, len(table)) + table


@pytest.mark.parametrize(
    "properties",
    [
        _with_header(b"k" * 200, b"V"),
        _with_header(b"k", b"S" + struct.pack(">I", 1) + b"\xff"),
        struct.pack(">HQ", 0x0040, 1_800_000_000_000_000),
        _with_header(b"k", b"T" + struct.pack(">Q", 1_800_000_000_000_000)),
    ],
    ids=["a long name", "bytes that are no UTF-8", "microseconds", "microseconds in a header"],
)
def test_a_message_can_be_taken_and_published_again_whatever_its_headers(properties: bytes) -> None:
    """One that cannot ends every life of the program that meets it."""
    headers = decode_properties(properties).headers
    encode_properties("application/json", carriable(headers), True, None, "1", None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"MQ_BROKER_URL": "amqp://guest:guest@host:0"},
        {"MQ_BROKER_URL": "amqp://guest:gu#est@host"},
        {"MANAGER_URL": "http://a..b"},
        {"MANAGER_URL": "http://a\x7fb"},
        {"MANAGER_URL": f"http://{'a' * 64}"},
        {"MQ_OUTPUT_QUEUE": "q" * 256},
        {"MQ_INPUT_QUEUE": "q" * 250},
        {"ITERUM_CONFIG": '{"queue_mapping":{"a":""}}'},
        {"ITERUM_CONFIG": '{"queue_mapping":{"a":"' + "q" * 256 + '"}}'},
    ],
    ids=lambda wrong: str(wrong)[:60],
)
def test_a_variable_that_no_library_can_use_is_bad_configuration(wrong: dict[str, str]) -> None:
    with pytest.raises(BadConfiguration):
        read_settings(ENVIRONMENT | wrong)


# -- no hang


class SlowStore(FaultyStore):
    async def put(self, bucket: str, key: str, file: int, size: int) -> None:
        await trio.sleep(1)
        await super().put(bucket, key, file, size)


async def test_a_done_that_was_read_before_its_fragment_was_handed_out_again_frees_no_other_seat(
    autojump_clock: Clock,
) -> None:
    """Five dones come in one piece; what is void and waits for nothing is handed out again before its own is looked at."""
    rounds: list[list[str]] = []
    broken = trio.Event()

    async def one_by_one(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            await trio.sleep(2)
            await connection.result([id_of(fragment)], id_of(fragment), b"x")
            await connection.done(id_of(fragment))
        await connection.kill()

    async def breaking(connection: StepConnection) -> None:
        batch: list[str] = []
        async for fragment in connection.fragments():
            batch.append(id_of(fragment))
            if not rounds and len(batch) < 5:
                continue
            if not rounds:
                for own in batch[:4]:
                    await connection.result([own], own, b"x")
                await connection.send(["not a message"])
                await connection.outputs.aclose()
                connection.outputs = await trio.open_unix_socket(connection.volume / "out.sock")
            else:
                for own in batch:
                    await connection.result([own], own, b"x")
            rounds.append(batch)
            broken.set()
            await trio.sleep(0.2)
            frames = [encode_frame(json.dumps({"fragment_id": own}).encode()) for own in batch]
            await connection.outputs.send_all(b"".join(frames))
            batch = []
        await connection.kill()

    async with temporary_row(SIDECAR_HANDOUT_DEPTH="5") as row:

        async def patient() -> None:
            await broken.wait()
            await row.run_step(one_by_one)

        await row.put(5)
        sidecar = sidecar_with(row, finished(), store=SlowStore(row.store_root))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, breaking)
            nursery.start_soon(patient)
            with trio.fail_after(300):
                await sidecar.run()
            nursery.cancel_scope.cancel()
        assert len(row.outputs()) == 5


async def test_a_dead_connection_is_not_held_against_a_hand_out_that_came_after_it(
    autojump_clock: Clock,
) -> None:
    """A void fragment: its input connection closes, then its done comes, and it is with another connection already."""
    async with temporary_row() as row:
        others: list[str] = []

        async def other(connection: StepConnection) -> None:
            async for fragment in connection.fragments():
                own = id_of(fragment)
                others.append(own)
                await trio.sleep(3)
                await connection.result([own], own, b"x")
                await connection.done(own)
            await connection.kill()

        await row.put(1)
        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)
        with trio.fail_after(300):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sidecar.run)
                first = await row.connect()
                fragment = await first.__anext__()
                second_output = await trio.open_unix_socket(row.volume / "out.sock")
                await second_output.send_all(encode_frame(b"nonsense"))
                await trio.sleep(0.1)
                await second_output.aclose()
                nursery.start_soon(row.run_step, other)
                await trio.sleep(0.1)
                await first.inputs.aclose()
                await trio.sleep(0.1)
                await first.done(id_of(fragment))
                await trio.sleep(5)
                await first.outputs.aclose()
                await row.put(2, start=1)
                upstream.finished.set()
        assert sorted(others) == [fragment_id(number) for number in range(3)]
        assert row.tally.struck == 0


async def second(row: Row) -> bytes:
    """The description of another fragment, which is on no queue."""
    await row.put_object("iterum_data/1.txt", b"content 1")
    file = {"name": "1.txt", "path": "iterum_data/1.txt", "bucket": "source"}
    return json.dumps({"files": [file], "metadata": {"fragment_id": fragment_id(1)}}).encode()


@pytest.mark.parametrize("depth", ["1", "2"])
async def test_a_step_that_gathers_is_given_suspects_too_when_it_waits_for_more(
    depth: str, autojump_clock: Clock
) -> None:
    """After a lost connection a quorum queue's counter makes suspects of what is delivered again."""

    async def pairs(connection: StepConnection) -> None:
        batch: list[str] = []
        async for fragment in connection.fragments():
            batch.append(id_of(fragment))
            if len(batch) == 2:
                await connection.result(batch, batch[0], b"x")
                for own in batch:
                    await connection.done(own)
                batch.clear()
        await connection.kill()

    async with temporary_row(SIDECAR_HANDOUT_DEPTH=depth) as row:
        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)
        await row.put(1)
        with trio.fail_after(300):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(row.run_step, pairs)
                nursery.start_soon(sidecar.run)
                await trio.sleep(0.2)
                row.broker.put(INPUT, await second(row), {"x-acquired-count": 2})
                upstream.finished.set()
        assert len(row.outputs()) == 1


async def test_a_step_that_gathers_at_a_depth_of_its_own_is_given_suspects_and_others(
    autojump_clock: Clock,
) -> None:
    """It holds one and has room, and a suspect waits to be handed out alone, with another fragment behind it."""

    async def threes(connection: StepConnection) -> None:
        batch: list[str] = []
        async for fragment in connection.fragments():
            batch.append(id_of(fragment))
            if len(batch) == 3:
                await connection.result(batch, batch[0], b"x")
                for own in batch:
                    await connection.done(own)
                batch.clear()
        await connection.kill()

    async with temporary_row(SIDECAR_HANDOUT_DEPTH="5") as row:
        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)
        await row.put(1)
        with trio.fail_after(300):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(row.run_step, threes)
                nursery.start_soon(sidecar.run)
                await trio.sleep(0.2)
                row.broker.put(INPUT, await second(row), {"x-acquired-count": 2})
                await row.put(1, start=2)
                upstream.finished.set()
        assert len(row.outputs()) == 1


async def test_a_connection_that_is_stuck_keeps_no_fragment_from_one_that_has_room(
    autojump_clock: Clock,
) -> None:
    """The length of a frame that it was told of binds no fragment to it, and the program comes to its end."""
    worked: list[str] = []

    async def stuck(connection: StepConnection) -> None:
        await connection.__anext__()
        await trio.sleep_forever()

    async def sound(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            await trio.sleep(2)
            worked.append(id_of(fragment))
            await connection.done(id_of(fragment))
        await connection.kill()

    async with temporary_row() as row:
        await row.put(12)
        with trio.fail_after(3600), pytest.RaisesGroup(TransformationLost, flatten_subgroups=True):
            await row.run(stuck, sound)
        assert len(worked) == 11


async def test_a_connection_that_gathers_is_not_held_up_by_a_slow_one_beside_it(
    autojump_clock: Clock,
) -> None:
    gathered_at: list[float] = []

    async def gathering(connection: StepConnection) -> None:
        batch: list[str] = []
        async for fragment in connection.fragments():
            batch.append(id_of(fragment))
            if len(batch) == 8:
                gathered_at.append(trio.current_time())
                for own in batch:
                    await connection.done(own)
                batch.clear()
        for own in batch:
            await connection.done(own)
        await connection.kill()

    async def slow(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            await trio.sleep(600)
            await connection.done(id_of(fragment))
        await connection.kill()

    async with temporary_row(SIDECAR_KILL_TIMEOUT="2000") as row:
        await row.put(17)
        began = trio.current_time()
        await row.run(slow, gathering)
        assert gathered_at[0] - began < 60


async def test_a_step_that_reads_nothing_is_told_of(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Waiting for ever is a stall; what is waited for, and for how long, is in the log."""

    async def deaf(connection: StepConnection) -> None:
        await trio.sleep_forever()

    async with temporary_row() as row:
        await row.put(1)
        with trio.move_on_after(900):
            await row.run(deaf)
        assert caplog.records


class _CallAtStep(trio.abc.Instrument):
    """Calls something when so many task steps have been taken."""

    def __init__(self, call: Callable[[], None], steps: int) -> None:
        self._call = call
        self._left = steps

    @property
    def reached(self) -> bool:
        return self._left <= 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._call()


async def test_a_drain_after_a_breach_settles_every_fragment_once(autojump_clock: Clock) -> None:
    """Begun at every step in turn."""
    steps = 0
    reached = True
    while reached:
        steps += 1
        async with temporary_row() as row:
            broken: list[str] = []

            async def breaking(connection: StepConnection, broken: list[str] = broken) -> None:
                async for fragment in connection.fragments():
                    own = id_of(fragment)
                    if not broken:
                        broken.append(own)
                        await connection.send(["not a message"])
                        await connection.outputs.aclose()
                        connection.outputs = await trio.open_unix_socket(
                            connection.volume / "out.sock"
                        )
                    await connection.done(own)
                await connection.kill()

            await row.put(2)
            sidecar = row.make_sidecar(finished())
            instrument = _CallAtStep(sidecar.drain, steps)
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(row.run_step, breaking)
                trio.lowlevel.add_instrument(instrument)
                try:
                    await sidecar.run()
                finally:
                    trio.lowlevel.remove_instrument(instrument)
                nursery.cancel_scope.cancel()
            reached = instrument.reached
            assert len(row.broker.messages(INPUT)) <= 2
