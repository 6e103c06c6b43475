"""Steps that are images alone, beside a stand-in for podman and docker."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .container_stand_in import ContainerStandIn, Image, container_stand_in
from .local_run import APPEND, ROOT, LocalRun, appended, contents_of, local_run

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Like the step that appends a word, but the word is in a config file.
CONFIGURED = """
@transform
def step(fragment):
    begins(fragment)
    word = config_file("words").read_text() + config()["more"]
    for file in fragment.files:
        with fragment.create(file.name) as path, open(path, "wb") as made:
            made.write(content(file) + word.encode())
"""

#: A step of pyterum that appends a `p`.
PYTERUM = """
import os, pyterum

outputs = pyterum.TransformationStepOutput()
for fragment in pyterum.TransformationStepInput().consumer():
    if fragment is None:
        break
    for file in fragment.files:
        path = f"{os.environ['DATA_VOLUME_PATH']}/{file.name}"
        with open(file.path) as read, open(path, "w") as made:
            made.write(read.read() + "p")
        files = [pyterum.LocalFileDesc(file.name, path)]
        outputs.produce(pyterum.LocalFragmentDesc(files, [fragment.metadata.fragment_id]))
    outputs.done_with(fragment)
outputs.produce_done()
"""

GIVEN = {
    "DATA_VOLUME_PATH",
    "TRANSFORMATION_STEP_INPUT",
    "TRANSFORMATION_STEP_OUTPUT",
    "ITERUM_NAME",
    "PIPELINE_HASH",
    "ITERUM_CONFIG",
    "ITERUM_CONFIG_PATH",
    "PYTHONUNBUFFERED",
}


@pytest.fixture(params=["podman", "docker"])
def tool(request: pytest.FixtureRequest) -> Iterator[ContainerStandIn]:
    with container_stand_in(request.param) as stand_in:
        yield stand_in


@pytest.fixture
def run(tool: ContainerStandIn) -> Iterator[LocalRun]:
    with run_beside(tool, "run") as prepared:
        yield prepared


@contextmanager
def run_beside(tool: ContainerStandIn, name: str) -> Iterator[LocalRun]:
    """A run with a short path that finds the stand-in and no other program, so no real podman either."""
    with local_run(tool.folder / name) as prepared:
        prepared.variables["PATH"] = str(tool.bin)
        prepared.write_step("append.py", APPEND)
        yield prepared


def image(run: LocalRun, script: str, *words: str, **variables: str) -> Image:
    """An image with one of the run's scripts, and with the library that it needs."""
    own = {"PYTHONPATH": str(ROOT), "TRACE": str(run.trace), **variables}
    return Image([sys.executable, run.folder / script, *words], own)


def test_images_are_steps_like_any_other(run: LocalRun, tool: ContainerStandIn) -> None:
    contents = contents_of(6)
    run.write_input(contents)
    run.write_step("configured.py", CONFIGURED)
    (run.folder / "pyterum_step.py").write_text(PYTERUM)
    (run.folder / "words.txt").write_text("w")
    tool.here = {
        "me/configured:1": image(run, "configured.py"),
        "me/pyterum": image(run, "pyterum_step.py"),
    }
    config = {"config_files": {"words": "words.txt"}, "more": "m"}
    run.write_pipeline(
        {"image": "me/configured:1", "config": config, "instance_count": 2},
        {"image": "me/pyterum"},
    )
    run.run().expect(0)
    assert run.results() == appended(contents, "wmp")
    assert tool.refused == []
    for container in tool.started:
        assert container.variables.keys() == GIVEN
        volume = container.variables["DATA_VOLUME_PATH"]
        assert container.given.volume == [f"{volume}:{volume}"]
        assert Path(volume).parent == run.output / ".iterum" / "volumes"
    assert len({container.given.name for container in tool.started}) == 3
    assert tool.alive == {}
    run.assert_nothing_is_left()


#: Like the step that appends a word, but it dies on a file.
DYING = APPEND.replace(
    "    begins(fragment)",
    """
    begins(fragment)
    if fragment.files[0].name == "001.txt":
        print("it dies", flush=True)
        os._exit(3)""",
)


def test_a_container_that_dies_is_started_again_under_its_name(
    run: LocalRun, tool: ContainerStandIn
) -> None:
    contents = contents_of(3)
    run.write_input(contents)
    run.write_step("dying.py", DYING)
    tool.here["me/dying"] = image(run, "dying.py", "a")
    run.write_pipeline({"image": "me/dying"})
    run.run().expect(18)
    del contents["001.txt"]
    assert run.results() == appended(contents, "a")
    assert len({container.given.name for container in tool.started}) == 1
    assert len(tool.started) == 4
    assert "it dies" in (run.output / "logs" / "s1-1.log").read_text()
    assert tool.refused == []


HANGING = DYING.replace("os._exit(3)", "time.sleep(1000)")


def test_a_container_that_hangs_is_ended_and_started_again_under_its_name(
    run: LocalRun, tool: ContainerStandIn
) -> None:
    contents = contents_of(3)
    run.write_input(contents)
    run.write_step("hanging.py", HANGING)
    tool.here["me/hanging"] = image(run, "hanging.py", "a")
    config = {"sidecar": {"fragment_timeout": 1}}
    run.write_pipeline({"image": "me/hanging", "config": config})
    run.run().expect(18)
    del contents["001.txt"]
    assert run.results() == appended(contents, "a")
    assert len({container.given.name for container in tool.started}) == 1
    assert len(tool.started) == 4
    assert tool.alive == {}
    assert tool.refused == []


#: Like the step that appends a word, but it does not end when it is told to.
DEAF = APPEND.replace(
    "@transform", "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n\n@transform"
)


def test_what_a_killed_run_has_left_is_removed_by_the_next_and_nothing_else(
    run: LocalRun, tool: ContainerStandIn
) -> None:
    contents = contents_of(3)
    run.write_input(contents)
    run.write_step("deaf.py", DEAF)
    tool.here["me/deaf"] = image(run, "deaf.py", "a", WORK_SECONDS="1000")
    run.write_pipeline({"image": "me/deaf"})
    process = run.start()
    run.wait_for_work(process)
    run.kill(process)
    ((name, left),) = tool.alive.items()
    tool.here["me/deaf"] = image(run, "deaf.py", "a")
    tool.here["other"] = Image(["sleep", "1000"])
    words = ["run", "--rm", f"--name={name}-too", "--label=iterum.run=another", "other"]
    with subprocess.Popen([tool.bin / tool.tool, *words]):
        run.wait_until(lambda: len(tool.alive) == 2, "the other container")
        ended = run.run()
        alive = set(tool.alive)
        for container in list(tool.alive.values()):
            container.process.kill()
    ended.expect(0)
    assert alive == {f"{name}-too"}
    assert run.results() == appended(contents, "a")
    assert left.process.poll() == -signal.SIGKILL
    assert tool.refused == []


#: Like the step that appends a word, but it says so when it is told to end.
HEARING = APPEND.replace(
    "@transform",
    """
import signal

def hear(number, frame):
    print("it has heard", number, flush=True)
    os._exit(0)

signal.signal(signal.SIGTERM, hear)

@transform""",
)


def test_a_container_hears_that_its_run_was_killed(run: LocalRun, tool: ContainerStandIn) -> None:
    run.write_input(contents_of(1))
    run.write_step("hearing.py", HEARING)
    tool.here["me/hearing"] = image(run, "hearing.py", "a", WORK_SECONDS="1000")
    run.write_pipeline({"image": "me/hearing"})
    process = run.start()
    run.wait_for_work(process)
    run.kill(process)
    run.wait_until(lambda: not tool.alive, "the container was gone", 10)
    assert (run.output / "logs" / "s1-1.log").read_text() == "it has heard 15\n"


@pytest.mark.parametrize("tool", ["docker"], indirect=True)
def test_a_killed_run_takes_a_container_of_docker_with_it_though_it_listens_to_no_signal(
    run: LocalRun, tool: ContainerStandIn
) -> None:
    run.write_input(contents_of(1))
    tool.here["me/slow"] = image(run, "append.py", "a", WORK_SECONDS="1000")
    run.write_pipeline({"image": "me/slow"})
    process = run.start()
    run.wait_for_work(process)
    run.kill(process)
    run.wait_until(lambda: not tool.alive, "the container was gone", 10)


def test_a_second_ctrl_c_leaves_no_container(run: LocalRun, tool: ContainerStandIn) -> None:
    run.write_input(contents_of(1))
    run.write_step("deaf.py", DEAF)
    tool.here["me/deaf"] = image(run, "deaf.py", "a", WORK_SECONDS="1000")
    run.write_pipeline({"image": "me/deaf"})
    process = run.start("--plain")
    run.wait_for_work(process)
    run.signal(process, signal.SIGINT)
    run.wait_until_told(process, "once more (Ctrl-C) ends at once")
    run.signal(process, signal.SIGINT)
    run.end(process).expect(130)
    assert tool.alive == {}
    run.assert_nothing_is_left()


def test_two_runs_at_once_have_containers_of_their_own(tool: ContainerStandIn) -> None:
    with run_beside(tool, "1") as first, run_beside(tool, "2") as second:
        runs = [first, second]
        contents = contents_of(2)
        for number, run in enumerate(runs):
            run.write_input(contents)
            tool.here[f"me/append:{number}"] = image(run, "append.py", "a", WORK_SECONDS="0.5")
            run.write_pipeline({"image": f"me/append:{number}"})
        started = [(run, run.start()) for run in runs]
        for run, process in started:
            run.end(process).expect(0)
            assert run.results() == appended(contents, "a")
    assert tool.refused == []


# -- images that are not here, and a tool that does not work


def test_an_image_is_fetched_before_the_steps_begin(run: LocalRun, tool: ContainerStandIn) -> None:
    contents = contents_of(2)
    run.write_input(contents)
    tool.elsewhere["me/append:1"] = image(run, "append.py", "a")
    run.write_pipeline({"image": "me/append:1"}, {"image": "me/append:1"})
    ended = run.run("--plain").expect(0)
    assert ended.out.count("fetching the image me/append:1") == 1
    assert run.results() == appended(contents, "aa")
    assert "fetched" in (run.output / "logs" / "images.log").read_text()


def test_a_step_that_is_changed_while_an_image_is_fetched_is_not_taken_for_the_old_one(
    run: LocalRun, tool: ContainerStandIn
) -> None:
    contents = contents_of(2)
    run.write_input(contents)
    tool.elsewhere["me/append:1"] = image(run, "append.py", "i")
    run.write_step("step.py", APPEND)
    step = {"command": ["python", "step.py", "a"]}
    run.write_pipeline(step, {"image": "me/append:1"}, name="p")
    tool.may_fetch.clear()
    process = run.start("--plain")
    run.wait_until_told(process, "fetching the image me/append:1")
    run.write_step("step.py", APPEND.replace("sys.argv[1]", "(sys.argv[1] + 'changed')"))
    tool.may_fetch.set()
    ended = run.end(process).expect(14)
    assert (
        "s1-1 is not started: its files have changed since the run began; run again" in ended.told
    )
    run.write_step("step.py", APPEND)
    run.run().expect(0)
    assert run.results() == appended(contents, "ai")


def test_an_image_that_cannot_be_had_is_one_error(run: LocalRun, tool: ContainerStandIn) -> None:
    run.write_input(contents_of(2))
    run.write_pipeline({"image": "me/nowhere"})
    ended = run.run("--plain").expect(14)
    told = (
        "the image me/nowhere cannot be had: Error: me/nowhere: not found in any registry;"
        f" see that `{tool.tool} pull me/nowhere` works"
    )
    assert told in ended.told
    assert not (run.output / "logs" / "s1-1.log").exists()
    run.assert_nothing_is_left()


def test_a_tool_that_does_not_work_is_one_error(run: LocalRun, tool: ContainerStandIn) -> None:
    run.write_input(contents_of(2))
    run.write_pipeline({"image": "me/append:1"})
    tool.stop()
    ended = run.run("--plain").expect(14)
    told = (
        f"{tool.tool}, which is to run the images, does not work: Cannot connect to the daemon."
        f' Is the daemon running?; see that `{tool.tool} ps` works, or give the steps a "command"'
    )
    assert told in ended.told
    run.assert_nothing_is_left()


def test_ctrl_c_ends_the_fetching_of_an_image(run: LocalRun, tool: ContainerStandIn) -> None:
    run.write_input(contents_of(2))
    run.write_pipeline({"image": "me/append:1"})
    tool.may_fetch.clear()
    process = run.start("--plain")
    run.wait_until_told(process, "fetching the image me/append:1")
    run.signal(process, signal.SIGINT)
    run.end(process).expect(130)
    run.assert_nothing_is_left()


def test_a_path_that_no_container_can_be_given_is_one_error(
    run: LocalRun, tool: ContainerStandIn
) -> None:
    run.write_input(contents_of(2))
    tool.here["me/append:1"] = image(run, "append.py", "a")
    run.write_pipeline({"image": "me/append:1"})
    for name, told in (
        ("at 12:30", "takes no folder with a colon in its path"),
        ("long" * 30, "the path of the output folder is too long for one"),
    ):
        run.output = run.root / name
        ended = run.run("--plain").expect(14)
        assert told in " ".join(ended.told.split())
    assert tool.started == []
