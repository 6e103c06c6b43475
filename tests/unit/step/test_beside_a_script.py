"""Steps as processes, beside a sidecar that follows a script: ends, failures, breaks, and a sidecar of Go's manners."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.framing import encode_frame
from tests.unit.row import fragment_id
from tests.unit.step.fake_sidecar import ALL, FakeSidecar, fake_sidecar, length
from tests.unit.step.processes import step_process

if TYPE_CHECKING:
    from tests.unit.step.fake_sidecar import Pair

KILL = {"status": "complete"}
#: A sync step, and an async one on both event loops.
UPPER = pytest.mark.parametrize(
    "arguments", [("upper",), ("awaited",), ("awaited", "trio")], ids=["sync", "asyncio", "trio"]
)
LEAVES = pytest.mark.parametrize(
    "arguments",
    [("leaves",), ("leaves_a_thread",), ("leaves_async",), ("leaves_async", "trio")],
    ids=["sync", "thread", "asyncio", "trio"],
)
GATED = pytest.mark.parametrize(
    "arguments",
    [("gated",), ("gated_async",), ("gated_async", "trio")],
    ids=["sync", "asyncio", "trio"],
)
FAILS = pytest.mark.parametrize(
    "arguments",
    [("fails_on_1",), ("fails_on_1_async",), ("fails_on_1_async", "trio")],
    ids=["sync", "asyncio", "trio"],
)


def done(number: int) -> dict[str, str]:
    return {"fragment_id": fragment_id(number)}


@UPPER
async def test_one_after_the_other_beside_a_sidecar_of_gos_manners(
    arguments: tuple[str, ...],
) -> None:
    with fake_sidecar() as sidecar:
        async with step_process(sidecar.volume, *arguments) as step:
            pair = await sidecar.accept()
            for number in (1, 2):
                await pair.hand_out(number)
                result = await pair.read()
                assert result is not None
                (file,) = result["files"]
                assert file["name"] == f"out-{number}.txt"
                assert file["path"].startswith(f"{sidecar.volume}/output/")
                assert result["metadata"] == {"predecessors": [fragment_id(number)]}
                assert await pair.read() == done(number)
            await pair.kill("")
            assert await pair.read_all() == [KILL]
            assert await step.wait() == 0
            assert step.log == ""
        assert len(sidecar.left()) == 2  # what was sent is the sidecar's to remove
        await pair.close()


@UPPER
async def test_a_frame_may_come_long_after_its_length_and_filled_up(
    arguments: tuple[str, ...],
) -> None:
    with fake_sidecar(*ALL) as sidecar:
        async with step_process(sidecar.volume, *arguments) as step:
            pair = await sidecar.accept()
            frame = length(65536) + pair.description(1).ljust(65536)
            for piece in (frame[:4], frame[4:10], frame[10:40000], frame[40000:]):
                await pair.inputs.send_all(piece)
                await trio.sleep(0.05)
            assert (await pair.read() or {})["files"][0]["name"] == "out-1.txt"
            assert await pair.read() == done(1)
            await pair.inputs.send_all(length(65536) + b'{"status":"complete"}'.ljust(65536))
            assert await pair.read_all() == [KILL]
            assert await step.wait() == 0
        await pair.close()


@GATED
async def test_a_step_reads_only_when_it_waits_for_work(arguments: tuple[str, ...]) -> None:
    """By what is unread a sidecar tells a step that waits from one that is busy."""
    with fake_sidecar(*ALL) as sidecar:
        async with step_process(sidecar.volume, *arguments) as step:
            pair = await sidecar.accept()
            await pair.hand_out(1)
            await step.until_log_has("begun 1.txt")
            await pair.inputs.send_all(length(65536))
            await trio.sleep(0.1)
            assert pair.unread() > 0
            (sidecar.volume / "go").touch()
            assert await pair.read() is not None
            assert await pair.read() == done(1)
            while pair.unread() > 0:  # noqa: ASYNC110 - the kernel has no event for it
                await trio.sleep(0.005)
        await pair.close()


# -- failures


@FAILS
async def test_a_failure_is_told_with_its_reason_and_the_step_goes_on(
    arguments: tuple[str, ...],
) -> None:
    with fake_sidecar(*ALL) as sidecar:
        async with step_process(sidecar.volume, *arguments) as step:
            pair = await sidecar.accept()
            await pair.hand_out(1)
            told = (await pair.read() or {})["failed"]
            assert told["fragment_id"] == fragment_id(1)
            assert told["reason"].startswith("RuntimeError: no edges here (steps.py:")
            assert told["reason"].endswith(" in fails_on_1)")
            assert sidecar.left() == []
            await pair.hand_out(2)
            assert (await pair.read() or {})["files"][0]["name"] == "out-2.txt"
            assert await pair.read() == done(2)
            await pair.kill()
            assert await pair.read_all() == [KILL]
            assert await step.wait() == 0
        assert f"failed on <Fragment {fragment_id(1)} of '1.txt'>" in step.log
        assert 'raise RuntimeError("no edges here")' in step.log
        assert "calling.py" not in step.log
        await pair.close()


@FAILS
async def test_a_failure_ends_the_process_where_it_cannot_be_told(
    arguments: tuple[str, ...],
) -> None:
    with fake_sidecar() as sidecar:
        async with step_process(sidecar.volume, *arguments) as step:
            pair = await sidecar.accept()
            await pair.hand_out(1)
            assert await pair.read_all() == []
            assert await step.wait() == 1
        assert 'raise RuntimeError("no edges here")' in step.log
        assert step.log.count("Traceback") == 1
        assert sidecar.left() == []
        await pair.close()


async def test_a_failed_batch_fails_each_of_its_fragments() -> None:
    with fake_sidecar(*ALL) as sidecar:
        async with step_process(sidecar.volume, "fails_on_batch") as step:
            pair = await sidecar.accept()
            await pair.hand_out(1)
            assert await pair.read() == {"gathers": {"fragments": 2}}
            await pair.hand_out(2)
            failed = [(await pair.read() or {})["failed"]["fragment_id"] for _ in range(2)]
            assert failed == [fragment_id(1), fragment_id(2)]
            await pair.kill()
            assert await pair.read_all() == [KILL]
            assert await step.wait() == 0
        await pair.close()


@LEAVES
async def test_a_function_that_wants_the_process_to_end_ends_it(arguments: tuple[str, ...]) -> None:
    with fake_sidecar(*ALL) as sidecar:
        async with step_process(sidecar.volume, *arguments) as step:
            pair = await sidecar.accept()
            await pair.hand_out(1)
            assert await pair.read_all() == []
            assert await step.wait() == 7
            assert "Traceback" not in step.log
        await pair.close()


@pytest.mark.parametrize(
    "arguments", [("upper",), ("three_threads",), ("awaited",), ("awaited", "trio")]
)
async def test_ctrl_c_ends_it_without_a_traceback(arguments: tuple[str, ...]) -> None:
    with fake_sidecar(*ALL) as sidecar:
        async with step_process(sidecar.volume, *arguments) as step:
            pair = await sidecar.accept()
            if arguments[0] != "three_threads":
                await pair.hand_out(1)
                assert await pair.read() is not None
                assert await pair.read() == done(1)
            step.send_signal(signal.SIGINT)
            assert await step.wait() == 130
            assert "Traceback" not in step.log
        await pair.close()


# -- breaks


@UPPER
async def test_a_connection_that_is_closed_is_made_again(arguments: tuple[str, ...]) -> None:
    with fake_sidecar(*ALL) as sidecar:
        async with step_process(sidecar.volume, *arguments) as step:
            first = await sidecar.accept()
            await first.hand_out(1)
            assert await first.read() is not None
            assert await first.read() == done(1)
            await first.close()
            second = await sidecar.accept()
            await second.hand_out(2)
            assert (await second.read() or {})["files"][0]["name"] == "out-2.txt"
            assert await second.read() == done(2)
            await second.kill()
            assert await second.read_all() == [KILL]
            assert await step.wait() == 0
            assert step.log == "the sidecar has closed the connection; connecting again\n"
        await second.close()


@GATED
async def test_what_was_in_work_when_the_connection_broke_is_not_sent_on_the_next(
    arguments: tuple[str, ...],
) -> None:
    with fake_sidecar(*ALL) as sidecar:
        async with step_process(sidecar.volume, *arguments) as step:
            first = await sidecar.accept()
            await first.hand_out(1)
            await step.until_log_has("begun 1.txt")
            assert len(sidecar.left()) == 1
            first.reset()
            (sidecar.volume / "go").touch()
            second = await sidecar.accept()
            assert sidecar.left() == []
            await second.kill()
            assert await second.read_all() == [KILL]
            assert await step.wait() == 0
        await second.close()


async def test_a_batch_in_waiting_is_forgotten_with_its_connection() -> None:
    with fake_sidecar(*ALL) as sidecar:
        async with step_process(sidecar.volume, "sheet") as step:
            first = await sidecar.accept()
            await first.hand_out(1)
            assert await first.read() == {"gathers": {"fragments": 3}}
            await first.close()
            second = await sidecar.accept()
            await second.hand_out(2)
            assert await second.read() == {"gathers": {"fragments": 3}}
            await second.kill()
            result, *rest = await second.read_all()
            assert result["metadata"]["predecessors"] == [fragment_id(2)]
            assert rest == [done(2), KILL]
            assert await step.wait() == 0
        await second.close()


async def test_a_sidecar_may_come_after_the_step() -> None:
    with fake_sidecar() as sidecar:
        sidecar.close()
        async with step_process(sidecar.volume, "upper") as step:
            await trio.sleep(0.5)
            late = FakeSidecar(sidecar.volume)
            pair = await late.accept()
            await pair.kill()
            assert await pair.read_all() == [KILL]
            assert await step.wait() == 0
        late.close()
        await pair.close()


@UPPER
async def test_a_sidecar_that_sends_nonsense_is_told_in_one_line(
    arguments: tuple[str, ...],
) -> None:
    with fake_sidecar() as sidecar:
        async with step_process(sidecar.volume, *arguments) as step:
            pair = await sidecar.accept()
            await pair.inputs.send_all(encode_frame(b"nonsense"))
            assert await pair.read_all() == []
            assert await step.wait() == 1
            assert step.log.startswith("what the sidecar sent is no message: ")
            assert step.log.count("\n") == 1
        await pair.close()


# -- several at a time


@pytest.mark.parametrize(
    "arguments", [("three_threads",), ("three_tasks",), ("three_tasks", "trio")]
)
async def test_each_pair_of_connections_works_on_a_fragment_of_its_own(
    arguments: tuple[str, ...],
) -> None:
    with fake_sidecar(*ALL) as sidecar:
        async with step_process(sidecar.volume, *arguments) as step:
            # Which output belongs to which input is not known here: the connections come at once.
            pairs = [await sidecar.accept() for _ in range(3)]
            for number, pair in enumerate(pairs):
                await pair.hand_out(number)
            finished = set()
            for pair in pairs:
                result = await pair.read()
                assert result is not None
                (predecessor,) = result["metadata"]["predecessors"]
                assert await pair.read() == {"fragment_id": predecessor}
                finished.add(predecessor)
            assert finished == {fragment_id(number) for number in range(3)}
            for pair in pairs:
                await pair.kill()
            for pair in pairs:
                assert await pair.read_all() == [KILL]
            assert await step.wait() == 0
        await close_all(pairs)


async def test_a_pair_whose_sidecar_is_gone_ends_when_another_was_told_of_the_end() -> None:
    with fake_sidecar(*ALL) as sidecar:
        async with step_process(sidecar.volume, "three_threads") as step:
            pairs = [await sidecar.accept() for _ in range(3)]
            answered = trio.Event()

            async def await_answer(pair: Pair) -> None:
                if await pair.read() == KILL:
                    answered.set()

            async with trio.open_nursery() as nursery:
                for pair in pairs:
                    nursery.start_soon(await_answer, pair)
                await pairs[0].kill()
                await answered.wait()
                nursery.cancel_scope.cancel()
            sidecar.close()
            for pair in pairs:
                pair.reset()
            assert await step.wait() == 0


async def close_all(pairs: list[Pair]) -> None:
    for pair in pairs:
        await pair.close()
