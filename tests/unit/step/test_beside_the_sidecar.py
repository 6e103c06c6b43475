"""Steps as processes, beside the real row of stages with the embedded broker and store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trio

from tests.unit.row import DEAD, FinishedOnRequest, Row, fragment_id, temporary_row
from tests.unit.step.processes import step_process

if TYPE_CHECKING:
    from tests.unit.step.processes import StepProcess


async def run(row: Row, *arguments: str, **environment: str) -> StepProcess:
    """Run a step beside a sidecar until both have ended well."""
    upstream = FinishedOnRequest()
    upstream.finished.set()
    async with step_process(row.volume, *arguments, **environment) as step:
        await row.make_sidecar(upstream).run()
        assert await step.wait() == 0, step.log
    return step


ONE_EACH = pytest.mark.parametrize(
    "arguments", [("upper",), ("awaited",), ("awaited", "trio")], ids=["sync", "asyncio", "trio"]
)


@ONE_EACH
async def test_every_fragment_has_its_result_and_nothing_is_left(
    arguments: tuple[str, ...],
) -> None:
    async with temporary_row() as row:
        await row.put(30)
        step = await run(row, *arguments)
        content = "CONTENT" if arguments[0] == "upper" else "content"
        assert row.contents() == {f"out-{n}.txt": f"{content} {n}".encode() for n in range(30)}
        row.check_acknowledgements()
        assert row.left_on_volume() == []
        assert step.log == ""


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("lines",), ("0-{}.txt", "1-{}.txt")),
        (("streamed",), ("a-{}.txt", "b-{}.txt")),
        (("streamed", "trio"), ("a-{}.txt", "b-{}.txt")),
    ],
)
async def test_a_generator_has_several_results(
    arguments: tuple[str, ...], names: tuple[str, ...]
) -> None:
    async with temporary_row() as row:
        await row.put(5)
        await run(row, *arguments)
        assert set(row.contents()) == {name.format(n) for n in range(5) for name in names}
        row.check_acknowledgements(lambda _: 2)
        assert row.left_on_volume() == []


@pytest.mark.parametrize(
    "arguments", [("three_threads",), ("three_tasks",), ("three_tasks", "trio")]
)
async def test_concurrency_works_on_several_at_a_time(arguments: tuple[str, ...]) -> None:
    async with temporary_row() as row:
        await row.put(9)
        await run(row, *arguments)
        assert row.contents() == {f"out-{n}.txt": fragment_id(n).encode() for n in range(9)}
        row.check_acknowledgements()


async def test_gathering_with_an_incomplete_last_batch() -> None:
    async with temporary_row() as row:
        await row.put(7)
        await run(row, "sheet")
        sizes = [len(output["metadata"]["predecessors"]) for output in row.outputs()]
        assert sorted(sizes) == [1, 3, 3]
        words = b" ".join(row.contents().values()).split()
        assert sorted(words) == [*(b"%d" % n for n in range(7)), *[b"content"] * 7]
        row.check_acknowledgements()
        assert row.left_on_volume() == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_one_batch_of_everything(backend: str) -> None:
    async with temporary_row() as row:
        await row.put(50)
        await run(row, "everything", backend)
        assert row.contents() == {"everything.txt": b"50"}
        assert row.left_on_volume() == []


async def test_routing_leads_to_the_queue_of_the_channel() -> None:
    configuration = json.dumps({"queue_mapping": {"odd": "odd-queue"}})
    async with temporary_row(ITERUM_CONFIG=configuration) as row:
        await row.put(6)
        await run(row, "routed")
        assert sorted(row.contents()) == ["0.txt", "2.txt", "4.txt"]
        routed = [json.loads(message.body) for message in row.broker.messages("odd-queue")]
        assert sorted(each["files"][0]["name"] for each in routed) == ["1.txt", "3.txt", "5.txt"]
        assert {each["metadata"]["target_queue"] for each in routed} == {"odd-queue"}


async def test_custom_metadata_travels() -> None:
    async with temporary_row() as row:
        await row.put_object("iterum_data/0.txt", b"x")
        row.describe(0, [("0.txt", "iterum_data/0.txt")], {"from": "é"})
        await run(row, "annotated")
        found = {
            output["files"][0]["name"]: output["metadata"].get("custom") for output in row.outputs()
        }
        assert found == {
            "inherited": {"from": "é"},
            "own": {"from": "é", "step": "annotated"},
            "none": None,
        }


async def test_a_failed_fragment_is_a_dead_letter_with_the_reason_and_the_rest_goes_on() -> None:
    async with temporary_row() as row:
        await row.put(4)
        step = await run(row, "fails_on_1")
        assert sorted(row.contents()) == ["out-0.txt", "out-2.txt", "out-3.txt"]
        (dead,) = row.broker.messages(DEAD)
        assert json.loads(dead.body)["metadata"]["fragment_id"] == fragment_id(1)
        reason = str(dead.headers["x-iterum-reason"])
        assert "RuntimeError: no edges here (steps.py:" in reason
        assert step.log.count("Traceback") == 1
        assert row.left_on_volume() == []


async def test_configuration_and_its_files_are_found() -> None:
    configuration = json.dumps({"threshold": 5, "config_files": {"words": "list.txt"}})
    async with temporary_row(ITERUM_CONFIG=configuration) as row:
        await row.put(1)
        (row.volume / "config").mkdir()
        (row.volume / "config" / "list.txt").write_text("words")
        await run(row, "configured", ITERUM_CONFIG=configuration, ITERUM_CONFIG_PATH="config")
        assert row.contents() == {"configured.txt": b"5 words"}


async def test_what_comes_while_the_step_waits_is_worked_too() -> None:
    async with temporary_row() as row:
        upstream = FinishedOnRequest()
        async with step_process(row.volume, "upper") as step, trio.open_nursery() as nursery:
            nursery.start_soon(row.make_sidecar(upstream).run)
            for number in range(3):
                await row.put(1, start=number)
                while len(row.outputs()) <= number:  # noqa: ASYNC110 - another process is waited for
                    await trio.sleep(0.01)
            upstream.finished.set()
            assert await step.wait() == 0
        assert len(row.contents()) == 3
