"""Transformations that hang, as processes: given up in time, beside a real broker and store and in local runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.wire.checks import check_mirrored, reason_of
from tests.wire.local_run import APPEND, LocalRun, append, appended, contents_of, local_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed.process import Process
    from tests.wire.journey import Journey

GIVEN_UP = "fragments are not finished in time"
END_SECONDS = 60


def seed(journey: Journey, count: int) -> None:
    for number in range(count):
        journey.seed({f"{number}.bin": b"content %d" % number}, directly=True)
    journey.queue_inputs()


def times_given_up(sidecar: Process) -> int:
    return sidecar.log_text().count(GIVEN_UP)


def wait_until_given_up(sidecar: Process, times: int) -> None:
    sidecar.wait_until(
        lambda: times_given_up(sidecar) == times,
        seconds=END_SECONDS,
        what=f"what hangs was given up {times} times",
    )


# -- beside a sidecar in a pod


def test_a_fragment_that_hangs_every_process_is_a_dead_letter_and_all_others_come_out_once(
    journey: Journey,
) -> None:
    """A supervisor kills the process when its connection has been given up, and starts another."""
    seed(journey, 20)
    sidecar = journey.start_sidecar(SIDECAR_FRAGMENT_TIMEOUT="2")
    journey.wait_for_sockets()
    for given_up in range(1, 4):
        step = journey.start_step_now("hangs", 1, "7.bin", "-")
        wait_until_given_up(sidecar, given_up)
        step.close()
    last = journey.start_step_now("hangs", 1, "7.bin", "-")
    journey.end(sidecar, last, seconds=END_SECONDS)
    (journey.step.volume / "output" / "hangs").unlink()
    outcome = journey.outcome()
    check_mirrored(outcome, journey.contents, journey.store)
    (letter,) = outcome.dead_letters
    assert len(outcome.outputs) == 19
    assert letter.headers["x-iterum-kind"] == "timed_out"
    assert "did not finish it within 2 s" in reason_of(letter)
    assert "Traceback" not in sidecar.log_text()


def test_a_thread_that_hangs_holds_up_neither_the_others_nor_the_end(journey: Journey) -> None:
    seed(journey, 40)
    sidecar = journey.start_sidecar(SIDECAR_FRAGMENT_TIMEOUT="2")
    step = journey.start_step("hangs", 4, "7.bin", "-", "once")
    journey.end(sidecar, step, seconds=END_SECONDS)
    (journey.step.volume / "output" / "hangs").unlink()
    outcome = journey.outcome()
    check_mirrored(outcome, journey.contents, journey.store)
    assert len(outcome.outputs) == 40
    assert times_given_up(sidecar) == 1


@pytest.mark.parametrize("wakes", ["while the work goes on", "before anyone else is there"])
def test_a_result_of_a_process_that_wakes_late_does_not_come_out_under_a_second_id(
    journey: Journey, wakes: str
) -> None:
    gate = journey.directory / "gate"
    seed(journey, 10)
    sidecar = journey.start_sidecar(managed=False, SIDECAR_FRAGMENT_TIMEOUT="2")
    hung = journey.start_step("hangs", 1, "7.bin", gate, "once")
    wait_until_given_up(sidecar, 1)
    if wakes == "before anyone else is there":
        gate.touch()
        sidecar.wait_until(
            lambda: "hand-out that is over" in sidecar.log_text(),
            seconds=END_SECONDS,
            what="its result was dropped",
        )
    other = journey.start_step_now("hangs", 1, "7.bin", gate, "once")
    journey.wait_for_outputs(10, sidecar)
    gate.touch()
    # It sends what it had in hand, connects again (after 5 s), and works on.
    journey.seed({"last.bin": b"the last"})
    (fragment,) = list(journey.inputs.values())[-1:]
    other.close()
    journey.queues.publish(journey.step.input_queue, [fragment.body()])
    journey.wait_for_outputs(11, sidecar)
    sidecar.signal(15)
    assert sidecar.wait(END_SECONDS).code == 143
    assert hung.wait(20).code == 0
    outcome = journey.outcome(refused=1)
    check_mirrored(outcome, journey.contents, journey.store)
    assert len(outcome.outputs) == 11
    assert '"stray_results":1' in sidecar.log_text()


# -- in a local run

#: Like the step that appends a word, but for the files that a variable names: it hangs on them.
HANGING = """
@transform
def step(fragment):
    begins(fragment)
    for file in fragment.files:
        if file.name in os.environ["HANGS_ON"].split():
            print("it hangs on", file.name, flush=True)
            time.sleep(1000)
        with fragment.create(file.name) as path, open(path, "wb") as made:
            made.write(content(file) + sys.argv[1].encode())
"""
TIMEOUT = {"sidecar": {"fragment_timeout": 1}}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[LocalRun]:
    with local_run(tmp_path / "run") as prepared:
        prepared.write_step("append.py", APPEND)
        prepared.write_step("hanging.py", HANGING)
        yield prepared


def test_files_that_a_step_hangs_on_are_set_aside_and_the_run_goes_on(run: LocalRun) -> None:
    """Two of them, at the very beginning: their six ends are no five deaths in a row."""
    contents = contents_of(6)
    run.write_input(contents)
    run.write_pipeline(append("a", script="hanging.py", config=TIMEOUT), append("b"))
    ended = run.run("--json", HANGS_ON="000.txt 001.txt").expect(18)
    others = {name: content for name, content in contents.items() if name > "001.txt"}
    assert run.results() == appended(others, "ab")
    assert sorted(failure["files"] for failure in ended.summary["failures"]) == [
        ["000.txt"],
        ["001.txt"],
    ]
    for failure in ended.summary["failures"]:
        assert 'within 1 s ("fragment_timeout" of "sidecar" in its config)' in failure["reason"]
    assert "its program has not finished a fragment" in ended.told
    run.assert_nothing_is_left()
    run.run(HANGS_ON="").expect(0)
    assert run.results() == appended(contents, "ab")


def test_a_program_of_several_threads_is_ended_and_only_what_hung_is_set_aside(
    run: LocalRun,
) -> None:
    contents = contents_of(30)
    run.write_input(contents)
    text = (run.folder / "hanging.py").read_text()
    (run.folder / "hanging.py").write_text(
        text.replace("@transform", "@transform(concurrency=4)").replace(
            "    begins(fragment)\n", "    begins(fragment)\n    time.sleep(0.1)\n"
        )
    )
    run.write_pipeline(append("a", script="hanging.py", config=TIMEOUT))
    ended = run.run("--json", HANGS_ON="003.txt").expect(18)
    assert [failure["files"] for failure in ended.summary["failures"]] == [["003.txt"]]
    others = {name: content for name, content in contents.items() if name != "003.txt"}
    assert run.results() == appended(others, "a")
