"""What someone reads of a local run: hints, refusals for machines, names that would steer a terminal."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.wire.local_run import LocalRun, append, contents_of, local_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def run(tmp_path: Path) -> Iterator[LocalRun]:
    with local_run(tmp_path) as made:
        yield made


def test_a_step_that_makes_nothing_is_asked_about_and_no_failure(run: LocalRun) -> None:
    run.write_input(contents_of(3))
    run.write_step("nothing.py", "@transform\ndef step(fragment):\n    begins(fragment)\n")
    run.write_pipeline({"command": ["python", "nothing.py"]})
    hint = "s1 made nothing of 3 fragments: does its function create, return or yield"
    assert hint in run.run().expect(0).out
    assert hint in run.run().expect(0).out, "the second run has nothing to do"
    assert run.run("--json").expect(0).summary["steps"][0]["made"] == 0


def test_a_pipeline_that_is_refused_is_told_to_machines(run: LocalRun) -> None:
    run.write_input(contents_of(1))
    run.write_pipeline(
        append("x", script="gone.py", config={"sidecar": {"attempts": "many"}}), confg={}
    )
    ended = run.run("--json").expect(10)
    told = json.loads(ended.out)
    assert (told["event"], told["exit_code"]) == ("error", 10)
    assert {tuple(each["path"]): each["severity"] for each in told["problems"]} == {
        ("confg",): "warning",
        ("steps", 0, "command", 1): "error",
        ("steps", 0, "config", "sidecar", "attempts"): "error",
    }
    for each in told["problems"]:
        assert each["place"].startswith(f"{run.pipeline}: ")
        assert each["message"] in told["text"]
        assert each["remedy"] in told["text"]
    assert told["text"] in ended.err
    assert "SIDECAR_" not in ended.told


def test_an_input_that_is_refused_is_told_to_machines(run: LocalRun) -> None:
    run.write_step("append.py", "")
    run.write_pipeline(append("x"))
    told = json.loads(run.run("--json").expect(10).out)
    assert (told["event"], told["exit_code"], told["problems"]) == ("error", 10, [])
    assert "there are no files in it" in told["text"]


def test_names_cannot_forge_a_line_and_what_is_no_file_is_told(run: LocalRun) -> None:
    run.write_input({"a\nforged\x1b[31m.txt": "x"})
    os.mkfifo(run.input / "pipe.fifo")
    run.write_step("fails.py", "@transform\ndef step(fragment):\n    raise ValueError('bad')\n")
    run.write_pipeline({"command": ["python", "fails.py"]})
    out = run.run().expect(18).out
    assert "left out: 1 that is no regular file (pipe.fifo)\n" in out
    assert "s1 failed on a\\x0aforged\\x1b[31m.txt: ValueError: bad" in out
    assert "\x1b" not in out
    assert not any(line.startswith("forged") for line in out.splitlines())


def test_a_taken_name_is_told_with_the_inputs_of_both(run: LocalRun) -> None:
    run.write_input({"1.txt": "1", "2.txt": "2"})
    run.write_step(
        "same.py",
        """
        @transform
        def step(fragment):
            with fragment.create("same.txt") as path:
                path.write_bytes(content(fragment.files[0]))
        """,
    )
    run.write_pipeline({"command": ["python", "same.py"]})
    (renamed,) = run.run("--json").expect(0).summary["renamed"]
    first = run.results()["same.txt"].decode()
    assert renamed["taken_by"] == f"that of {first}.txt"
    assert renamed["files"] == [{"1": "2.txt", "2": "1.txt"}[first]]


def test_a_result_of_a_changed_step_is_out_of_date_like_one_of_a_removed_input(
    run: LocalRun,
) -> None:
    run.write_input(contents_of(2))
    named = """
        @transform
        def step(fragment):
            with fragment.create(sys.argv[1] + fragment.files[0].name) as path:
                path.write_bytes(b"")
        """
    run.write_step("named.py", named)
    run.write_pipeline({"command": ["python", "named.py", "a"]})
    run.run().expect(0)
    run.write_pipeline({"command": ["python", "named.py", "b"]})
    assert "2 results are out of date: this run would not make them" in run.run().expect(0).out
    assert "2 results that were out of date were removed" in run.run("--prune").expect(0).out


@pytest.mark.parametrize("form", ["--plain", "--json"])
def test_an_output_folder_that_was_removed_is_no_fault_of_the_program(
    run: LocalRun, form: str
) -> None:
    run.write_input(contents_of(8))
    run.write_step(
        "removes.py",
        """
        import shutil

        @transform
        def step(fragment):
            shutil.rmtree(sys.argv[1], ignore_errors=True)
            with fragment.create("x") as path:
                path.write_bytes(b"")
        """,
    )
    run.write_pipeline({"command": ["python", "removes.py", str(run.output)]})
    ended = run.run(form).expect(11)
    assert ended.err.endswith(
        f"{run.output}, or .iterum/ in it, was removed while the run went on; the same command begins anew\n"
    )
    assert "fault of the program" not in ended.told
    if form == "--json":
        assert ended.summary["event"] == "error"


def test_what_is_waited_for_after_one_interrupt_is_told(run: LocalRun) -> None:
    run.write_input(contents_of(1))
    run.write_step(
        "loops.py", "@transform\ndef step(fragment):\n    begins(fragment)\n    time.sleep(999)\n"
    )
    run.write_pipeline({"command": ["python", "loops.py"]})
    process = run.start()
    run.wait_for_work(process)
    process.send_signal(signal.SIGINT)
    run.wait_until_told(process, "waiting for s1-1 (1 fragment in work)")
    process.send_signal(signal.SIGINT)
    run.end(process).expect(130)
    run.assert_nothing_is_left()
