from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from .local_run import APPEND, LocalRun, append, appended, contents_of, local_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Like the step that appends a word, but for the files that variables name.
MOODY = """
@transform
def step(fragment):
    begins(fragment)
    for file in fragment.files:
        if os.environ.get("DIES_ON") in (file.name, "all"):
            print("there is something about", file.name, flush=True)
            os._exit(3)
        if os.environ.get("RAISES_ON") in (file.name, "all"):
            raise ValueError("no picture")
        if os.environ.get("HANGS_ON") in (file.name, "all"):
            print("it hangs", flush=True)
            time.sleep(1000)
        with fragment.create(file.name) as path, open(path, "wb") as made:
            made.write(content(file) + sys.argv[1].encode())
"""

#: A step of pyterum that tells of a result in the folder of its first argument.
ELSEWHERE = """
import os, sys, pyterum

outside = sys.argv[1]
outputs = pyterum.TransformationStepOutput()
for fragment in pyterum.TransformationStepInput().consumer():
    if fragment is None:
        break
    path = f"{outside}/{fragment.files[0].name}"
    with open(path, "w") as made:
        made.write("made")
    files = [pyterum.LocalFileDesc("made", path)]
    outputs.produce(pyterum.LocalFragmentDesc(files, [fragment.metadata.fragment_id]))
    outputs.done_with(fragment)
outputs.produce_done()
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[LocalRun]:
    with local_run(tmp_path / "run") as prepared:
        prepared.write_step("append.py", APPEND)
        prepared.write_step("moody.py", MOODY)
        yield prepared


def moody(word: str, **more: object) -> dict[str, object]:
    return append(word, script="moody.py", **more)


# -- a fragment that fails


def test_a_file_that_a_step_dies_on_is_set_aside_and_tried_again_by_the_next_run(
    run: LocalRun,
) -> None:
    contents = contents_of(6)
    run.write_input(contents)
    run.write_pipeline(moody("a"), append("b"))
    ended = run.run("--json", DIES_ON="003.txt").expect(18)
    others = {name: content for name, content in contents.items() if name != "003.txt"}
    assert run.results() == appended(others, "ab")
    _assert_set_aside(run, "003.txt", contents["003.txt"])
    (failure,) = ended.summary["failures"]
    assert (failure["step"], failure["files"]) == ("s1", ["003.txt"])
    (fragment,) = {each for step, each in run.begun() if step == "s1" and _was_tried(run, each)}
    assert run.begun().count(("s1", fragment)) == 3
    run.assert_nothing_is_left()

    before = len(run.begun())
    run.run().expect(0)
    assert run.results() == appended(contents, "ab")
    assert (run.begun_again("s1", before), run.begun_again("s2", before)) == (1, 1)
    assert not (run.output / "failed").exists()


def _was_tried(run: LocalRun, fragment: str) -> bool:
    return run.begun().count(("s1", fragment)) > 1


def _assert_set_aside(run: LocalRun, name: str, content: bytes) -> None:
    (place,) = run.failed().values()
    assert place[f"input/{name}"] == content.decode()
    assert "fragment.json" in place
    assert "3 times" in place["reason.txt"] or "attempts" in place["reason.txt"]
    assert f"there is something about {name}" in place["reason.txt"]


def test_a_mended_script_is_a_changed_step_and_leaves_no_failure_behind(run: LocalRun) -> None:
    contents = contents_of(3)
    run.write_input(contents)
    run.write_pipeline(moody("a"))
    run.run(RAISES_ON="001.txt").expect(18)
    run.write_step("moody.py", APPEND)
    run.run(RAISES_ON="001.txt").expect(0)
    assert run.results() == appended(contents, "a")
    assert not (run.output / "failed").exists()


def test_an_exception_fails_its_fragment_at_once_and_is_told_with_its_place(run: LocalRun) -> None:
    contents = contents_of(4)
    run.write_input(contents)
    run.write_pipeline(moody("a"))
    ended = run.run(RAISES_ON="002.txt").expect(18)
    assert "ValueError: no picture (moody.py:" in " ".join(ended.out.split())
    assert len(run.begun()) == 4
    (place,) = run.failed().values()
    assert "ValueError: no picture" in place["reason.txt"]
    assert "Traceback" in place["reason.txt"], "the last lines of the log"
    assert len(run.results()) == 3


def test_a_function_that_fails_on_everything_sets_every_fragment_aside(run: LocalRun) -> None:
    run.write_input(contents_of(30))
    run.write_pipeline(moody("a"), append("b"))
    ended = run.run("--json", RAISES_ON="all").expect(18)
    assert len(ended.summary["failures"]) == len(run.failed()) == 30
    assert run.results() == {}
    run.run().expect(0)
    assert len(run.results()) == 30
    assert not (run.output / "failed").exists()


def test_a_result_outside_the_volume_is_refused_and_its_fragment_set_aside(
    run: LocalRun, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (run.folder / "elsewhere.py").write_text(ELSEWHERE)
    run.write_input({"1": b"1"})
    run.write_pipeline({"command": ["python", "elsewhere.py", str(outside)]})
    ended = run.run("--json").expect(18)
    (failure,) = ended.summary["failures"]
    assert str(outside / "1") in failure["reason"]
    assert (outside / "1").exists(), "what a program made elsewhere is not ours to remove"
    assert run.results() == {}


# -- a step that cannot go on


def test_a_program_that_dies_at_its_start_ends_the_run_with_the_end_of_its_log(
    run: LocalRun,
) -> None:
    (run.folder / "broken.py").write_text(
        'import os, sys\nopen(os.environ["TRACE"], "a").write("start \\n")\nsys.exit("there is no model")\n'
    )
    contents = contents_of(3)
    run.write_input(contents)
    run.write_pipeline(append("a"), {"command": ["python", "broken.py"]})
    ended = run.run("--json").expect(14)
    assert "there is no model" in ended.told
    assert "s2-1 ended with exit code 1, 5 times in a row" in ended.told
    assert run.begun_again("start", 0) == 5
    assert str(run.output / "logs" / "s2-1.log") in ended.told
    assert ended.summary["outcome"] == "failed"
    run.assert_nothing_is_left()

    before = len(run.begun())
    run.write_pipeline(append("a"), append("b"))
    run.run().expect(0)
    assert run.results() == appended(contents, "ab")
    assert run.begun_again("s1", before) == 0


def test_a_program_that_is_not_there_is_told_before_anything_begins(run: LocalRun) -> None:
    run.write_input(contents_of(1))
    run.write_pipeline({"command": ["no-such-program"]})
    assert "no-such-program" in run.run().expect(10).told
    assert not run.output.exists()


def test_a_program_that_never_connects_ends_the_run(run: LocalRun) -> None:
    (run.folder / "deaf.py").write_text(
        'import time\nprint("loading", flush=True)\ntime.sleep(1000)\n'
    )
    run.write_input(contents_of(2))
    config = {"sidecar": {"transformation_start_timeout": 1}}
    run.write_pipeline({"command": ["python", "deaf.py"], "config": config})
    ended = run.run().expect(14)
    assert "s1-1" in ended.told
    assert "did not connect" in ended.told
    assert "within 1 s" in ended.told
    assert "transformation_start_timeout" in ended.told
    assert "loading" in ended.told
    run.assert_nothing_is_left()


# -- stopped


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_finishes_what_is_in_work_and_the_next_run_does_only_the_rest(
    run: LocalRun, number: signal.Signals, code: int
) -> None:
    contents = contents_of(40)
    run.write_input(contents)
    run.write_pipeline(append("a", instance_count=2), append("b"))
    process = run.start("--json", WORK_SECONDS="0.05")
    run.wait_for_work(process, fragments=6)
    run.signal(process, number)
    ended = run.end(process).expect(code)
    assert ended.summary["outcome"] == "interrupted"
    run.assert_nothing_is_left()
    finished = {row.id for row in run.journal() if row.state == 1}
    begun = run.begun()
    assert {fragment for _, fragment in begun} <= finished
    assert len(begun) < 80

    run.run().expect(0)
    assert len(set(run.begun())) == len(run.begun()) == 80
    assert run.results() == appended(contents, "ab")


def test_a_second_ctrl_c_ends_a_step_that_hangs(run: LocalRun) -> None:
    contents = contents_of(4)
    run.write_input(contents)
    run.write_pipeline(moody("a"))
    process = run.start(HANGS_ON="002.txt")
    log = run.output / "logs" / "s1-1.log"
    run.wait_until(lambda: log.exists() and "it hangs" in log.read_text(), "it hangs")
    run.signal(process, signal.SIGINT)
    run.wait_until_told(process, "finishing what is in work")
    assert process.poll() is None
    run.signal(process, signal.SIGINT)
    run.end(process, seconds=10).expect(130)
    run.assert_nothing_is_left()
    run.run().expect(0)
    assert run.results() == appended(contents, "a")
    assert len(run.begun()) == 5


def test_a_signal_does_not_wait_for_a_program_that_has_not_connected_yet(run: LocalRun) -> None:
    run.write_input(contents_of(2))
    run.write_pipeline(moody("a"))
    (run.folder / "moody.py").write_text(
        f"import time\ntime.sleep(2)\n{(run.folder / 'moody.py').read_text()}"
    )
    process = run.start()
    run.wait_until(lambda: "at work" in run.log(), "the step was started")
    began = time.monotonic()
    run.signal(process, signal.SIGINT)
    run.end(process).expect(130)
    assert time.monotonic() - began < 6
    run.assert_nothing_is_left()


def test_what_a_step_has_started_is_gone_too_when_the_run_is_killed(run: LocalRun) -> None:
    run.write_step(
        "parent.py",
        """
        import signal, subprocess
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

        @transform
        def step(fragment):
            child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            begins(fragment)
            child.wait()
        """,
    )
    run.write_input(contents_of(10))
    run.write_pipeline({"command": ["python", "parent.py"], "instance_count": 2})
    process = run.start()
    run.wait_for_work(process, fragments=2)
    assert sum(line.startswith("sleep ") for line in run.processes().values()) == 2
    process.kill()
    run.end(process)
    run.wait_until(lambda: not run.processes(), "the steps were gone", seconds=10)


# -- what cannot be used


def test_a_pipeline_that_is_not_json_is_told_with_the_place(run: LocalRun) -> None:
    run.write_input(contents_of(1))
    run.pipeline.write_text('{"name": "p",\n "steps": [}')
    told = run.run().expect(10).told
    assert str(run.pipeline) in told
    assert "2:" in told or "line 2" in told
    assert not run.output.exists()


def test_a_folder_that_is_not_there_or_holds_nothing_is_told(run: LocalRun) -> None:
    run.write_pipeline(append("a"))
    assert "there are no files in it" in run.run().expect(10).told
    run.input.rmdir()
    assert "there is no such folder" in run.run().expect(10).told


def test_results_may_not_become_inputs(run: LocalRun) -> None:
    run.write_input(contents_of(1))
    run.write_pipeline(append("a"))
    run.output = run.input / "results"
    told = run.run().expect(10).told
    assert "lies in the input folder" in told
    assert not run.output.exists()


def test_an_output_folder_is_for_one_run_at_a_time(run: LocalRun) -> None:
    run.write_input(contents_of(2))
    run.write_pipeline(append("a"))
    process = run.start(WORK_SECONDS="0.5")
    run.wait_for_work(process)
    told = run.run().expect(11).told
    assert f"in use by another run (process {process.pid})" in told
    run.end(process).expect(0)
    assert len(run.results()) == 2


@pytest.mark.parametrize("taken", ["logs", "failed", ".iterum", "."])
def test_a_file_in_the_place_of_a_folder_of_the_run_is_told(run: LocalRun, taken: str) -> None:
    run.write_input(contents_of(2))
    run.write_pipeline(moody("a"))
    place = run.output / taken
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("mine")
    ended = run.run(RAISES_ON="001.txt").expect(11)
    assert str(run.output) in ended.told
    assert place.read_text() == "mine"
    place.unlink()
    run.run().expect(0)
    assert len(run.results()) == 2


# -- a full disk


@pytest.fixture
def small_disk(run: LocalRun) -> Iterator[Callable[[str], None]]:
    """Put the output folder on a disk of 2 MiB, and give what resizes it."""
    run.output.mkdir()
    where = str(run.output)

    def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", where]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    if os.geteuid() != 0 or not mount("size=2m"):
        pytest.skip("only who may mount a file system can have a full disk")
    try:
        yield lambda size: _assert(mount(f"remount,size={size}"))
    finally:
        run.close()
        subprocess.run(["umount", "--lazy", where], check=True)


def _assert(done: bool) -> None:
    assert done


@pytest.mark.parametrize(
    ("count", "size"), [(1, 3_000_000), (30, 120_000)], ids=["volume", "results"]
)
def test_a_full_disk_ends_the_run_and_with_more_room_the_next_one_does_the_rest(
    run: LocalRun, small_disk: Callable[[str], None], count: int, size: int
) -> None:
    contents = {f"{number:02}": bytes([number]) * size for number in range(count)}
    run.write_input(contents)
    run.write_pipeline(append("a"), append("b"))
    ended = run.run().expect(11)
    assert "room" in ended.told
    assert run.processes() == {}
    finished = {row.id for row in run.journal() if row.state == 1}
    before = len(run.begun())
    small_disk("64m")
    run.run().expect(0)
    assert run.results() == appended(contents, "ab")
    assert not finished.intersection(fragment for _, fragment in run.begun()[before:])
    run.assert_nothing_is_left()


def test_a_log_for_which_there_is_no_room_is_no_fault(run: LocalRun) -> None:
    contents = contents_of(3)
    run.write_input(contents)
    run.write_step("append.py", APPEND)
    run.write_pipeline(append("a"))
    log = run.output / "logs" / "run.log"
    log.parent.mkdir(parents=True)
    log.symlink_to("/dev/full")
    ended = run.run("--plain").expect(0)
    assert ended.err == ""
    assert run.results() == appended(contents, "a")


def test_a_step_that_was_edited_while_it_ran_is_not_started_again_as_the_old_one(
    run: LocalRun,
) -> None:
    text = """
        @transform
        def step(fragment):
            begins(fragment)
            if fragment.files[0].name == "05":
                open(sys.argv[1] + "-asked", "w").close()
                while not os.path.exists(sys.argv[1]):
                    time.sleep(0.01)
                os._exit(1)
            with fragment.create(fragment.files[0].name) as path, open(path, "w") as made:
                made.write("old")
        """
    run.write_step("edited.py", text)
    go = run.root / "go"
    run.write_input({f"{number:02}": b"x" for number in range(10)})
    run.write_pipeline({"command": ["python", "edited.py", str(go)]})
    process = run.start()
    # In whatever order they are handed out.
    run.wait_until((run.root / "go-asked").exists, "the one that dies was begun")
    run.write_step("edited.py", text.replace('"old"', '"new"').replace("os._exit(1)", "pass"))
    go.touch()
    assert "changed since the run began; run again" in run.end(process).expect(14).told
    run.run().expect(0)
    assert set(run.results().values()) == {b"new"}
    assert len(run.results()) == 10
