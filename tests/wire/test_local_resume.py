from __future__ import annotations

import signal
import tempfile
from collections import Counter
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from .local_run import APPEND, GATHER, LocalRun, append, appended, contents_of, local_run

if TYPE_CHECKING:
    from collections.abc import Iterator


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


#: It does not end when it is told to, and writes to its volume for as long as it is there.
WRITING = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)

@transform
def step(fragment):
    begins(fragment)
    while "WRITE" in os.environ:
        for number in range(5000):
            try:
                open(f"{os.environ['DATA_VOLUME_PATH']}/{number}", "w").close()
            except FileNotFoundError:
                pass
    with fragment.create("result") as path:
        path.touch()
"""


def test_a_run_begins_though_a_step_of_a_killed_one_still_writes() -> None:
    # A volume with a long path is seen by way of the run's process, and is gone with it.
    with tempfile.TemporaryDirectory() as short, local_run(Path(short) / "run") as run:
        run.write_step("writing.py", WRITING)
        run.write_input(contents_of(1))
        run.write_pipeline({"command": ["python", "writing.py"]})
        process = run.start(WRITE="1")
        volume = run.output / ".iterum" / "volumes" / "s1-1"
        run.wait_until(lambda: (volume / "4999").exists(), "there is much to remove")
        process.kill()
        again = run.run()
        # Only now: the parent of its steps holds its standard error for as long as they live.
        run.end(process)
        again.expect(0)
        assert run.results() == {"result": b""}


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


def test_fresh_beside_a_damaged_journal_that_is_killed_gives_every_result_its_name_in_the_next_run(
    run: LocalRun,
) -> None:
    contents = contents_of(20)
    run.write_input(contents)
    run.write_pipeline(append("a"))
    run.run().expect(0)
    (run.output / ".iterum" / "journal.sqlite").write_bytes(b"no database" * 1000)
    begun = len(run.begun())
    process = run.start("--fresh", WORK_SECONDS="0.1")
    run.wait_until(lambda: len(run.begun()) > begun + 2, "some work")
    run.kill(process)
    assert "are replaced" in run.run().expect(0).told
    assert run.results() == appended(contents, "a")
    (run.output / "000.txt").unlink()
    assert "are replaced" not in run.run().expect(0).told


def test_a_run_that_could_not_begin_leaves_the_journal_as_good_as_it_was(run: LocalRun) -> None:
    run.write_input({"1": b"1"})
    run.write_pipeline(append("a"))
    run.run().expect(0)
    (run.input / "1").unlink()
    run.run().expect(10)
    assert not run.is_unsynchronised()


#: The command, with a plan that takes until the run has heard of the SIGINT that comes meanwhile.
STOPPED_WHILE_PLANNING = """
import os, signal, sys, time, trio
from iterum_sidecar import cli
from iterum_sidecar.local import command

make_plan = command.make_plan

def take_long(*arguments):
    plan = make_plan(*arguments)
    os.kill(os.getpid(), signal.SIGINT)
    try:
        while True:
            trio.from_thread.check_cancelled()
            time.sleep(0.001)
    except trio.Cancelled:
        return plan

command.make_plan = take_long
sys.exit(cli.main())
"""


def test_ctrl_c_is_heard_while_the_plan_is_made_and_nothing_is_begun_then(run: LocalRun) -> None:
    contents = contents_of(3)
    run.write_input(contents)
    run.write_pipeline(append("a"))
    usual, run.program = run.program, ["-c", STOPPED_WHILE_PLANNING]
    assert "interrupted before anything was begun" in run.run().expect(130).told
    assert run.begun() == []
    assert not run.is_unsynchronised()
    run.program = usual
    run.run().expect(0)
    assert run.results() == appended(contents, "a")


# -- the matrix: two steps behind one another, of which the second is changed

#: Appends the `word` of its configuration, and the content of its config file if it has one.
CONFIGURED = """
@transform
def step(fragment):
    begins(fragment)
    word = config().get("word", "").encode()
    if config().get("config_files"):
        word += config_file("more").read_bytes()
    for file in fragment.files:
        with fragment.create(file.name) as path, open(path, "wb") as made:
            made.write(content(file) + word)
"""

#: The same as `APPEND` with the real pyterum.
PYTERUM = """
import os, sys, pyterum

descriptor = os.open(os.environ["TRACE"], os.O_WRONLY | os.O_APPEND)
directory = os.environ["DATA_VOLUME_PATH"] + "/output"
os.makedirs(directory, exist_ok=True)
outputs = pyterum.TransformationStepOutput()
for fragment in pyterum.TransformationStepInput().consumer():
    if fragment is None:
        break
    fragment_id = fragment.metadata.fragment_id
    os.write(descriptor, f"{os.environ['ITERUM_NAME'].split('-', 1)[1]} {fragment_id}\\n".encode())
    (file,) = fragment.files
    path = f"{directory}/{fragment_id}"
    with open(file.path, "rb") as source, open(path, "wb") as made:
        made.write(source.read() + sys.argv[1].encode())
    files = [pyterum.LocalFileDesc(file.name, path)]
    outputs.produce(pyterum.LocalFragmentDesc(files, [fragment_id]))
    outputs.done_with(fragment)
outputs.produce_done()
"""

CONTENTS = contents_of(3)


@pytest.fixture
def two_steps(run: LocalRun) -> LocalRun:
    run.write_step("other.py", APPEND)
    run.write_step("configured.py", CONFIGURED)
    run.write_input(CONTENTS)
    return run


def configured(**config: object) -> dict[str, object]:
    return {"command": ["python", "configured.py"], "config": config}


def begun_by(run: LocalRun, *arguments: str) -> tuple[int, int]:
    """Run, and return how many fragments the two steps have begun."""
    before = len(run.begun())
    run.run(*arguments).expect(0)
    run.assert_nothing_is_left()
    return run.begun_again("s1", before), run.begun_again("s2", before)


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        pytest.param(append("b"), append("c"), "c", id="word"),
        pytest.param(append("b"), append("b", version="2"), "b", id="version"),
        pytest.param(append("b"), append("b", script="other.py"), "b", id="script"),
        pytest.param(configured(word="b"), configured(word="c"), "c", id="config"),
        pytest.param(
            configured(), configured(config_files={"more": "more.txt"}), "more", id="config-file"
        ),
    ],
)
def test_a_changed_step_is_done_again_and_those_before_it_are_not(
    two_steps: LocalRun, old: dict[str, object], new: dict[str, object], word: str
) -> None:
    run = two_steps
    (run.folder / "more.txt").write_text("more")
    run.write_pipeline(append("a"), old)
    assert begun_by(run) == (3, 3)
    run.write_pipeline(append("a"), new)
    assert begun_by(run) == (0, 3)
    assert run.results() == appended(CONTENTS, ["a", word])
    assert begun_by(run) == (0, 0)
    run.write_pipeline(append("a"), old)
    begun_by(run)
    assert run.results().keys() == CONTENTS.keys(), "the names are those that they had"


def test_a_changed_first_step_is_done_again_and_so_is_what_comes_of_it(two_steps: LocalRun) -> None:
    run = two_steps
    run.write_pipeline(append("a"), append("b"))
    begun_by(run)
    run.write_pipeline(append("x"), append("b"))
    assert begun_by(run) == (3, 3)
    assert run.results() == appended(CONTENTS, "xb")


def test_a_script_and_a_config_file_count_by_what_is_in_them(two_steps: LocalRun) -> None:
    run = two_steps
    more = run.folder / "more.txt"
    more.write_text("1")
    run.write_pipeline(append("a"), configured(config_files={"more": "more.txt"}))
    assert begun_by(run) == (3, 3)
    more.write_text("2")
    assert begun_by(run) == (0, 3)
    assert run.results() == appended(CONTENTS, "a2")
    more.touch()
    (run.folder / "configured.py").touch()
    assert begun_by(run) == (0, 0)
    run.write_step("configured.py", CONFIGURED.replace("+ word", "+ word + b'!'"))
    assert begun_by(run) == (0, 3)
    assert run.results() == appended(CONTENTS, "a2!")


def test_what_only_decides_how_fast_a_step_is_changes_nothing(two_steps: LocalRun) -> None:
    run = two_steps
    run.write_pipeline(append("a"), append("b"))
    begun_by(run)
    run.write_pipeline(append("a", instance_count=2), append("b", prefetch_count=2))
    assert begun_by(run) == (0, 0)


def test_a_changed_an_added_and_a_renamed_file_are_done_and_no_other(two_steps: LocalRun) -> None:
    run = two_steps
    run.write_pipeline(append("a"), append("b"))
    begun_by(run)
    run.write_input({"000.txt": b"changed", "new/003.txt": b"new"})
    assert begun_by(run) == (2, 2)
    now = {**CONTENTS, "000.txt": b"changed", "new/003.txt": b"new"}
    assert run.results() == appended(now, "ab")
    (run.input / "001.txt").rename(run.input / "other.txt")
    assert begun_by(run) == (1, 1)
    assert run.results()["other.txt"] == CONTENTS["001.txt"] + b"ab"
    for path in run.input.rglob("*.txt"):
        path.touch()
    assert begun_by(run) == (0, 0)


def test_results_of_a_removed_file_are_told_and_pruned_on_demand(two_steps: LocalRun) -> None:
    run = two_steps
    run.write_pipeline(append("a"), append("b"))
    begun_by(run)
    (run.input / "001.txt").unlink()
    summary = run.run("--json").expect(0).summary
    assert (summary["stale"], summary["pruned"]) == (["001.txt"], [])
    assert run.results() == appended(CONTENTS, "ab")
    summary = run.run("--json", "--prune").expect(0).summary
    assert (summary["stale"], summary["pruned"]) == ([], ["001.txt"])
    left = {name: content for name, content in CONTENTS.items() if name != "001.txt"}
    assert run.results() == appended(left, "ab")
    stored = [path for path in (run.output / ".iterum" / "store").rglob("*") if path.is_file()]
    assert len(stored) == 4, "what the steps had made of it is gone too"
    run.write_input({"001.txt": CONTENTS["001.txt"]})
    assert begun_by(run) == (1, 1)
    assert run.results() == appended(CONTENTS, "ab")


def test_a_result_that_someone_removed_is_delivered_again_without_work(two_steps: LocalRun) -> None:
    run = two_steps
    run.write_pipeline(append("a"), append("b"))
    begun_by(run)
    (run.output / "001.txt").unlink()
    assert begun_by(run) == (0, 0)
    assert run.results() == appended(CONTENTS, "ab")


def test_fresh_does_everything_again_and_keeps_what_is_not_of_a_run(two_steps: LocalRun) -> None:
    run = two_steps
    run.write_pipeline(append("a"), append("b"))
    begun_by(run)
    (run.output / "mine.txt").write_text("mine")
    assert begun_by(run, "--fresh") == (3, 3)
    assert run.results() == {**appended(CONTENTS, "ab"), "mine.txt": b"mine"}


def test_a_step_behind_a_gathering_one_is_done_again_when_a_file_is_added(run: LocalRun) -> None:
    run.write_step("gather.py", GATHER)
    run.write_input({"1": b"1", "2": b"2"})
    run.write_pipeline(append("a"), {"command": ["python", "gather.py"]}, append("c"))
    assert begun_by(run) == (2, 2)
    run.write_input({"3": b"3"})
    assert begun_by(run) == (1, 3)
    assert run.results() == {"all": b"1a2a3ac"}


def test_pyterum_and_our_client_work_in_one_pipeline_and_both_resume(run: LocalRun) -> None:
    (run.folder / "pyterum_step.py").write_text(PYTERUM)
    contents = contents_of(60)
    run.write_input(contents)
    run.write_pipeline(
        append("a", script="pyterum_step.py", instance_count=2),
        append("b", instance_count=2),
        append("c", script="pyterum_step.py"),
    )
    process = run.start(WORK_SECONDS="0.05")
    run.wait_until(lambda: run.begun_again("s2", 0) > 10, "work of the second step")
    run.kill(process)
    finished = {row.id for row in run.journal() if row.state == 1 and row.channel != "c3"}
    assert finished
    before = len(run.begun())
    run.run().expect(0)
    assert run.results() == appended(contents, "abc")
    assert not finished.intersection(fragment for _, fragment in run.begun()[before:])
    _assert_one_of_each(run, 60, steps=3)
    run.assert_nothing_is_left()


@pytest.mark.parametrize("what", ["input", "config"])
def test_what_is_changed_and_changed_back_has_its_first_results_again(
    run: LocalRun, what: str
) -> None:
    run.write_step("append.py", APPEND.replace("sys.argv[1]", "config()['word']"))

    def write(value: str) -> None:
        run.write_input({"1": value if what == "input" else "1"})
        run.write_pipeline(append("", config={"word": value if what == "config" else "a"}))

    write("first")
    run.run().expect(0)
    first = run.results()
    write("then")
    run.run().expect(0)
    assert run.results() != first
    write("first")
    run.run("--prune").expect(0)
    assert run.results() == first
    before = len(run.begun())
    assert run.run("--json").expect(0).summary["outcome"] == "nothing to do"
    assert len(run.begun()) == before


def test_what_was_left_of_a_batch_that_was_cut_short_is_worked_with_the_rest(run: LocalRun) -> None:
    """A function that makes nothing of a small batch has not finished with it."""
    run.write_step(
        "pairs.py",
        """
        @transform(gather=5)
        def step(batch):
            for fragment in batch:
                begins(fragment)
            if len(batch) == 5:
                with batch.create("all") as path, open(path, "wb") as made:
                    made.write(b"".join(sorted(content(file) for file in batch.files)))
        """,
    )
    run.write_step(
        "slow.py", APPEND.replace("begins(fragment)", "begins(fragment); time.sleep(0.3)")
    )
    run.write_input(contents_of(5))
    run.write_pipeline(append("", script="slow.py"), {"command": ["python", "pairs.py"]})
    process = run.start()
    run.wait_until(lambda: run.begun_again("s1", 0) >= 3, "three were begun")
    process.send_signal(signal.SIGINT)
    run.end(process).expect(130)
    run.run().expect(0)
    assert run.results() == {"all": b"01234"}
