"""Steps that gather in whole local runs, beside a prefetch that was set and in several instances; and instances that would get nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .local_run import APPEND, GATHER, LocalRun, append, contents_of, local_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TENS = GATHER.replace('gather="all"', "gather=10").replace('"all"', 'f"ten-{batch[0].id}"')


@pytest.fixture
def run(tmp_path: Path) -> Iterator[LocalRun]:
    with local_run(tmp_path / "run") as prepared:
        prepared.write_step("append.py", APPEND)
        prepared.write_step("all.py", GATHER)
        prepared.write_step("tens.py", TENS)
        yield prepared


def gather(script: str, **more: object) -> dict[str, object]:
    return {"command": ["python", script], "name": "sheet", **more}


def test_a_prefetch_that_holds_no_batch_ends_the_run_with_one_error(run: LocalRun) -> None:
    run.write_input(contents_of(12))
    run.write_pipeline(append("a"), gather("tens.py", prefetch_count=4))
    ended = run.run("--plain").expect(14)
    told = (
        "step sheet gathers 10 fragments at once, but its prefetch_count is 4:"
        " raise it to 10 or more, or leave it out"
    )
    assert told in ended.told
    assert "MQ_PREFETCH_COUNT" not in ended.told
    run.assert_nothing_is_left()
    run.write_pipeline(append("a"), gather("tens.py", prefetch_count=10))
    run.run().expect(0)
    assert len(run.results()) == 2


def test_all_that_comes_needs_no_more_than_what_comes(run: LocalRun) -> None:
    run.write_input(contents_of(4))
    run.write_pipeline(gather("all.py", prefetch_count=4))
    run.run().expect(0)
    assert run.results() == {"all": b"0123"}
    run.write_input({"004.txt": b"4"})
    ended = run.run("--plain").expect(14)
    assert "step sheet gathers all that comes, which is more than its prefetch_count of 4" in (
        ended.told
    )


def test_parts_of_all_are_told_with_what_to_do(run: LocalRun) -> None:
    run.write_input(contents_of(8))
    run.write_pipeline(gather("all.py", instance_count=2))
    ended = run.run("--plain").expect(0)
    assert len(run.results()) == 2
    told = "sheet gathers all that comes, and has 2 instances: each has gathered a part;"
    assert ended.told.count(told) == 1
    assert 'set "instance_count": 1 for one result' in ended.told
    run.write_pipeline(gather("tens.py", instance_count=2))
    assert "instances" not in run.run("--plain").expect(0).told


def test_no_instance_is_started_for_which_there_is_no_fragment(run: LocalRun) -> None:
    run.write_input(contents_of(1))
    run.write_pipeline(gather("all.py", instance_count=8), append("b", instance_count=2))
    ended = run.run("--plain").expect(0)
    assert run.results() == {"all": b"0b"}
    assert "instances" not in ended.told
    logs = [path.name for path in run.output.glob("logs/s*-*.log")]
    assert sorted(logs) == ["s2-1.log", "s2-2.log", "sheet-1.log"]
