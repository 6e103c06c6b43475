"""A transformation that floods, hoards, or leaves in a crowd costs its neighbours nothing, and the sidecar no more than it may."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import trio
import trio.testing

from iterum_sidecar.editions import ATTEMPTS_HEADER
from iterum_sidecar.framing import encode_frame
from iterum_sidecar.unix_sockets import Peer
from tests.unit.row import (
    DEAD,
    INPUT,
    OUTPUT,
    FinishedOnRequest,
    Row,
    StepConnection,
    copy_step,
    temporary_row,
)
from tests.unit.row_with_faults import id_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

Clock = trio.testing.MockClock


# -- floods


def flood(row: Row, message: object, over: threading.Event, seconds: float) -> float:
    """Send one message again and again, as fast as they are taken, until it is over; returns for how many seconds."""
    frames = encode_frame(json.dumps(message).encode()) * 10_000
    began = time.monotonic()
    with socket.socket(socket.AF_UNIX) as outputs:
        while True:
            try:
                outputs.connect(str(row.volume / "out.sock"))
                break
            except OSError:
                time.sleep(0.01)
        outputs.settimeout(seconds)
        while not over.is_set() and time.monotonic() - began < seconds:
            try:
                outputs.sendall(frames)
            except OSError:
                break
        return time.monotonic() - began


async def test_a_flood_of_frames_starves_nobody() -> None:
    """On the real clock: the flood comes from a thread that is quicker than we are."""
    over = threading.Event()
    async with temporary_row() as row:
        await row.put(20)
        lasted: list[float] = []

        async def flooding() -> None:
            message = {"fragment_id": "x" * 64}
            lasted.append(await trio.to_thread.run_sync(flood, row, message, over, 60.0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flooding)
            nursery.start_soon(row.run_step, copy_step)
            upstream = FinishedOnRequest()
            sidecar = row.make_sidecar(upstream)
            nursery.start_soon(sidecar.run)
            while row.tally.fragments < 20:  # noqa: ASYNC110 - nobody tells of it
                await trio.sleep(0.01)
            over.set()
            upstream.finished.set()
        assert len(row.outputs()) == 20
    assert lasted[0] < 60, "the flood ended because the work was done, and not the other way round"


async def test_what_a_step_says_again_and_again_is_passed_on_once(autojump_clock: Clock) -> None:
    depths: list[int] = []

    async with temporary_row() as row:

        async def gathering(connection: StepConnection) -> None:
            async for fragment in connection.fragments():
                said = [{"gathers": {"fragments": number}} for number in (1, 10**12, 7)] * 1000
                for _ in range(10):
                    frames = (encode_frame(json.dumps(each).encode()) for each in said)
                    await connection.outputs.send_all(b"".join(frames))
                    depths.append(max(sidecar.channel_depths().values()))
                await connection.done(id_of(fragment))
            await connection.kill()

        await row.put(1)
        sidecar = row.make_sidecar(upstream := FinishedOnRequest())
        upstream.finished.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, gathering)
            await sidecar.run()
        assert row.tally.fragments == 1
        assert max(depths) < 10


# -- crowds


async def test_a_crowd_that_leaves_together_is_looked_through_once(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once for each of its connections: 5,000 of them would be 25,000,000 looks."""
    looks = 0
    receive: Callable[[Peer], memoryview | None] = Peer.receive_nowait

    def counted(peer: Peer) -> memoryview | None:
        nonlocal looks
        looks += 1
        return receive(peer)

    crowd = 200
    async with temporary_row() as row:
        await row.put(crowd)
        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sidecar.run)
            connections = [await row.connect() for _ in range(crowd)]
            await trio.sleep(1)
            monkeypatch.setattr(Peer, "receive_nowait", counted)
            for connection in connections:
                connection.inputs.socket.close()
            await trio.sleep(10)
            seen, looks = looks, 0
            for connection in connections:
                connection.outputs.socket.close()
            nursery.start_soon(row.run_step, copy_step)
            upstream.finished.set()
        assert len(row.outputs()) == crowd
        assert seen < 10 * crowd


# -- hoards


async def test_unfinished_frames_are_held_up_to_a_bound_and_the_longest_is_given_up(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Six connections hold back the end of a long frame. One of them is closed, and the others finish."""
    limit = 64 * 1024
    sizes = (40_000, 50_000, 60_000, 50_000, 50_000, 50_000)
    assert sum(sizes[:5]) < 4 * limit < sum(sizes)
    closed: list[int] = []

    def frame(connection: StepConnection, own: str, number: int) -> bytes:
        path = connection.volume / f"result-{number}"
        path.write_bytes(b"x")
        result = {
            "files": [{"name": path.name, "path": str(path)}],
            "metadata": {"predecessors": [own], "custom": "x" * (limit - 500)},
        }
        return encode_frame(json.dumps(result).encode())

    async def hoard(connection: StepConnection, own: str) -> None:
        async with AsyncExitStack() as stack:
            outputs = [
                await stack.enter_async_context(
                    await trio.open_unix_socket(connection.volume / "out.sock")
                )
                for _ in sizes
            ]
            frames = [frame(connection, own, number) for number in range(len(sizes))]
            for output, size, each in zip(outputs, sizes, frames, strict=True):
                await output.send_all(each[:size])
                await trio.sleep(0.1)
            for number, output in enumerate(outputs):
                try:
                    await output.send_all(frames[number][sizes[number] :])
                except trio.BrokenResourceError:
                    closed.append(number)

    async def hoarding(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            own = id_of(fragment)
            if not closed:
                await hoard(connection, own)
                await trio.sleep(0.1)
            await connection.result([own], "plain", b"x")
            await connection.done(own)
        await connection.kill()

    async with temporary_row(SIDECAR_FRAME_LIMIT=str(limit)) as row:
        await row.put(1)
        await row.run(hoarding)
        assert closed == [2]
        (breach,) = [record.fields for record in caplog.records if "breach" in record.message]  # type: ignore[attr-defined]
        assert breach == {
            "breach": f"unfinished frames of more than {4 * limit:,} bytes were held, and its own was the longest",
            "voided": 1,
        }
        assert row.broker.messages(DEAD) == []
        names = [file["name"] for output in row.outputs() for file in output["files"]]
        assert sorted(names) == ["plain", *(f"result-{number}" for number in (0, 1, 3, 4, 5))]


async def test_of_a_reason_as_much_is_kept_as_anybody_is_told(autojump_clock: Clock) -> None:
    async def failing(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            reason = "why" * 1_000_000
            await connection.send({"failed": {"fragment_id": id_of(fragment), "reason": reason}})
        await connection.kill()

    async with temporary_row() as row:
        await row.put(1)
        kept: list[str] = []
        sidecar = row.make_sidecar(upstream := FinishedOnRequest())
        upstream.finished.set()
        condemn = type(sidecar._ledger).refuse_result

        def refuse_result(ledger: object, *arguments: object) -> int:
            kept.append(str(arguments[1]))
            return condemn(ledger, *arguments)  # type: ignore[arg-type]

        sidecar._ledger.refuse_result = refuse_result.__get__(sidecar._ledger)  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, failing)
            await sidecar.run()
        (letter,) = row.broker.messages(DEAD)
        assert kept == ["why" * 666 + "wh"]
        assert letter.headers["x-iterum-reason"] == kept[0]


# -- rules that are broken in other ways


async def test_whatever_follows_the_kill_message_is_a_breach(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def end_and_go_on(connection: StepConnection, own: str) -> None:
        async with await trio.open_unix_socket(connection.volume / "out.sock") as other:
            for message in ({"status": "complete"}, {"fragment_id": own}):
                await other.send_all(encode_frame(json.dumps(message).encode()))
            assert await other.receive_some() == b""

    async def ending_twice(connection: StepConnection) -> None:
        times = 0
        async for fragment in connection.fragments():
            times += 1
            if times == 1:
                await end_and_go_on(connection, id_of(fragment))
            await connection.result([id_of(fragment)], "x", b"x")
            await connection.done(id_of(fragment))
        assert times == 2
        await connection.kill()

    async with temporary_row() as row:
        await row.put(1)
        await row.run(ending_twice)
        (breach,) = [record.fields for record in caplog.records if "breach" in record.message]  # type: ignore[attr-defined]
        assert breach == {"breach": "something was sent after the kill message", "voided": 1}
        assert row.broker.messages(DEAD) == []
        assert len(row.outputs()) == 1


async def test_a_name_that_is_too_long_for_the_volume_is_a_dead_letter(
    autojump_clock: Clock,
) -> None:
    """The contract allows it, and the path before it makes it longer than any path may be."""
    name = "/".join(["x" * 255] * 15) + "/" + "x" * 250
    async with temporary_row() as row:
        await row.put(1)
        row.describe(5, [(name, "iterum_data/0.txt")])
        await row.run(copy_step)
        (letter,) = row.broker.messages(DEAD)
        assert letter.headers["x-iterum-kind"] == "input_refused"
        assert letter.headers["x-iterum-reason"].endswith("is too long")
        assert len(row.outputs()) == 1
        assert row.left_on_volume() == []


async def test_another_fragment_of_an_id_that_was_settled_is_a_dead_letter_and_not_dropped(
    autojump_clock: Clock,
) -> None:
    async with temporary_row() as row:
        await row.put(2)
        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, copy_step)
            nursery.start_soon(sidecar.run)
            await trio.sleep(5)
            assert row.tally.fragments == 2
            await row.put(1)
            row.describe(1, [("other.txt", "iterum_data/1.txt")])
            await trio.sleep(5)
            upstream.finished.set()
        assert row.tally.repeated == 1, "the first has come again, and is recognised"
        (letter,) = row.broker.messages(DEAD)
        assert json.loads(letter.body)["files"][0]["name"] == "other.txt"
        assert letter.headers["x-iterum-kind"] == "conflict"
        assert len(row.outputs()) == 2


async def test_a_message_that_says_that_no_attempt_is_left_is_a_dead_letter_at_once(
    autojump_clock: Clock,
) -> None:
    seen: list[str] = []

    async def noting(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            seen.append(id_of(fragment))
            await connection.done(id_of(fragment))
        await connection.kill()

    async with temporary_row() as row:
        await row.put(2)
        (first, _) = row.broker.messages(INPUT)
        row.broker.put(INPUT, first.body.replace(b"0" * 64, b"5" * 64), {ATTEMPTS_HEADER: 3})
        await row.run(noting)
        (letter,) = row.broker.messages(DEAD)
        assert letter.headers["x-iterum-kind"] == "transformation_died"
        assert (letter.headers[ATTEMPTS_HEADER], len(seen)) == (3, 2)


async def test_a_queue_that_is_gone_is_declared_again_for_the_message_that_came_back(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with temporary_row() as row:

        async def deleting(connection: StepConnection) -> None:
            async for fragment in connection.fragments():
                del row.broker._queues[OUTPUT]
                await connection.result([id_of(fragment)], "x", b"x")
                await connection.done(id_of(fragment))
            await connection.kill()

        await row.put(1)
        await row.run(deleting)
        assert len(row.outputs()) == 1
        assert row.broker.messages(DEAD) == []
        assert "the broker did not take a message; offering it again" in caplog.messages
