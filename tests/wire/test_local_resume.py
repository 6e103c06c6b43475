from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING

import pytest

from .local_run import APPEND, GATHER, LocalRun, append, appended, contents_of, local_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def run(tmp_path: Path) -> Iterator[LocalRun]:
    with local_run(tmp_path / "run") as prepared:
        prepared.write_step("append.py", APPEND)
        yield prepared


# -- killed

KILLS = 20
FILES = 500


def test_a_run_that_is_killed_again_and_again_ends_with_every_result_and_does_nothing_twice(
    run: LocalRun,
) -> None:
    random = Random(20)
    contents = contents_of(FILES)
    run.write_input(contents)
    run.write_pipeline(append("a", instance_count=2), append("b"))
    finished: set[tuple[str, str]] = set()
    for kill in range(KILLS):
        before = len(run.begun())
        _run_and_kill(run, random)
        again = finished.intersection(run.begun()[before:])
        assert not again, f"done again after kill {kill}, though the journal had it as finished"
        finished = _finished(run)
    before = len(run.begun())
    run.run().expect(0)
    assert not finished.intersection(run.begun()[before:])
    assert run.results() == appended(contents, "ab")
    _assert_one_of_each(run, FILES, steps=2)
    run.assert_nothing_is_left()


def _run_and_kill(run: LocalRun, random: Random) -> None:
    """Run until so much work was begun or so much time has passed, and a moment longer; then kill it.

    Some die while they look at the input or start their steps, most in the middle of the work.
    """
    process = run.start(WORK_SECONDS="0.01")
    if random.random() < 0.2:
        run.wait_for_end(process, random.uniform(0.05, 0.8))
    else:
        target = len(run.begun()) + random.choice([0, 1, *range(5, 60, 5)])
        run.wait_until(lambda: len(run.begun()) > target or process.poll() is not None, "work")
        run.wait_for_end(process, random.uniform(0, 0.02))
    assert process.poll() is None, "it is too fast to be killed in the middle of its work"
    run.kill(process)


def _finished(run: LocalRun) -> set[tuple[str, str]]:
    """Return what the journal has as finished: by which step, and which fragment."""
    consumers = {"c0": "s1", "c1": "s2"}
    return {
        (consumers[row.channel], row.id)
        for row in run.journal()
        if row.state == 1 and row.channel in consumers
    }


def _assert_one_of_each(run: LocalRun, files: int, steps: int) -> None:
    """Each file went through each step once: no second ID for one result."""
    lineage = run.lineage()
    descriptions = [each["description"] for each in lineage]
    assert len({each["metadata"]["fragment_id"] for each in descriptions}) == len(lineage)
    made = Counter(
        (each["transformation_step"], *(file["name"] for file in each["description"]["files"]))
        for each in lineage
    )
    assert len(made) == files * (steps + 1)
    assert set(made.values()) == {1}


# -- changed


def test_a_step_that_is_added_at_the_end_gives_its_results_the_names_that_the_old_ones_had(
    run: LocalRun,
) -> None:
    contents = contents_of(3)
    run.write_input(contents)
    run.write_pipeline(append("a"))
    run.run().expect(0)
    run.write_pipeline(append("a"), append("b"))
    before = len(run.begun())
    run.run().expect(0)
    assert run.begun_again("s1", before) == 0
    assert run.results() == appended(contents, "ab")


def test_a_picture_that_was_alone_is_gathered_again_with_the_second(run: LocalRun) -> None:
    run.write_step("gather.py", GATHER)
    run.write_input({"1": b"1"})
    run.write_pipeline({"command": ["python", "gather.py"]})
    run.run().expect(0)
    run.write_input({"2": b"2"})
    run.run().expect(0)
    assert run.results() == {"all": b"12"}
    before = len(run.begun())
    assert run.run("--json").expect(0).summary["outcome"] == "nothing to do"
    assert len(run.begun()) == before


def test_a_damaged_journal_is_told_and_fresh_gives_every_result_its_name_again(
    run: LocalRun,
) -> None:
    contents = contents_of(3)
    run.write_input(contents)
    run.write_pipeline(append("a"))
    run.run().expect(0)
    (run.output / ".iterum" / "journal.sqlite").write_bytes(b"no database" * 1000)
    told = run.run().expect(10).told
    assert "damaged" in told
    assert "--fresh" in told
    run.run("--fresh").expect(0)
    assert run.results() == appended(contents, "a")


def test_a_run_that_could_not_begin_leaves_the_journal_as_good_as_it_was(run: LocalRun) -> None:
    run.write_input({"1": b"1"})
    run.write_pipeline(append("a"))
    run.run().expect(0)
    (run.input / "1").unlink()
    run.run().expect(10)
    assert not run.is_unsynchronised()
