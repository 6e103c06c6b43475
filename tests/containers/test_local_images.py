"""A local run whose step is an image alone, in real containers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed.process import running, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.podman import Podman
    from testbed.process import Process

FILES = 40
END_SECONDS = 90

STEP = """\
import time
from iterum_sidecar.step import transform

@transform
def louder(fragment):
    time.sleep(0.1)
    for file in fragment.files:
        with open(file.path) as text, fragment.create(file.name) as path, open(path, "w") as made:
            made.write(text.read().upper())

louder.run()
"""


@pytest.fixture(scope="module")
def step_image(podman: Podman, image: str) -> str:
    """The sidecar's image, which has the client library too, with a step for its program."""
    name = "localhost/louder"
    folder = podman.directory / "louder"
    folder.mkdir()
    (folder / "louder.py").write_text(STEP, encoding="utf-8")
    recipe = f"FROM {image}\nCOPY louder.py /louder.py\n"
    recipe += 'ENTRYPOINT ["/opt/iterum-sidecar/bin/python3", "/louder.py"]\nCMD []\n'
    (folder / "Containerfile").write_text(recipe, encoding="utf-8")
    podman("build", "--quiet", "--network=none", f"--tag={name}", str(folder))
    return name


class Run:
    """A pipeline of one step, an image, with two instances."""

    def __init__(self, podman: Podman, folder: Path, image: str) -> None:
        self.podman = podman
        self.folder = folder
        self.input = folder / "input"
        self.output = folder / "out"
        self.input.mkdir(parents=True)
        for number in range(FILES):
            (self.input / f"{number:03}.txt").write_text(f"text {number}", encoding="utf-8")
        step = {
            "name": "louder",
            "image": image,
            "instance_count": 2,
            "input_channel": "texts",
            "output_channel": "loud",
        }
        pipeline = {
            "name": "loud",
            "fragmenter": {"output_channel": "texts"},
            "steps": [step],
            "combiner": {"input_channel": "loud"},
        }
        (folder / "pipeline.json").write_text(json.dumps(pipeline), encoding="utf-8")
        self.command = [sys.executable, "-m", "iterum_sidecar", "local", "pipeline.json"]
        self.command += ["--input=input", "--output=out", "--plain"]

    def to_its_end(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command,
            cwd=self.folder,
            env=self.podman.environment,
            capture_output=True,
            text=True,
            timeout=END_SECONDS,
            check=False,
        )

    @contextmanager
    def begun(self) -> Iterator[Process]:
        with running(
            self.command,
            log=self.folder / "log",
            cwd=self.folder,
            environment=self.podman.environment,
        ) as process:
            yield process

    def results(self) -> dict[str, str]:
        return {path.name: path.read_text(encoding="utf-8") for path in self.output.glob("*.txt")}

    def containers(self) -> list[str]:
        return self.podman("ps", "--all", "--format={{.Names}}").split()


@pytest.fixture
def run(podman: Podman, step_image: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(podman, tmp_path_factory.mktemp("run"), step_image)


def steps_running() -> list[str]:
    """The processes of the step, whatever container they are in."""
    found = []
    for words in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if b"/louder.py" in words.read_bytes():
                found.append(words.parent.name)
    return found


EXPECTED = {f"{number:03}.txt": f"TEXT {number}" for number in range(FILES)}


def test_every_fragment_goes_through_the_image(run: Run) -> None:
    ended = run.to_its_end()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert run.results() == EXPECTED
    assert run.containers() == []


def test_a_run_that_was_killed_leaves_no_container_and_goes_on(run: Run) -> None:
    with run.begun() as process:
        process.wait_until(lambda: len(run.results()) >= 3, seconds=END_SECONDS, what="results")
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(END_SECONDS).code == -signal.SIGKILL
    # podman keeps their names, and believes that they run: nobody is left to tell it otherwise.
    wait_until(
        lambda: not steps_running(), seconds=END_SECONDS, what="the programs to end with their run"
    )
    assert run.containers()
    before = run.results()
    assert 3 <= len(before) < FILES
    ended = run.to_its_end()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert run.results() == EXPECTED
    assert run.containers() == []


def test_ctrl_c_finishes_what_is_in_work_and_ends_the_containers(run: Run) -> None:
    with run.begun() as process:
        process.wait_until(lambda: len(run.results()) >= 3, seconds=END_SECONDS, what="results")
        process.signal(signal.SIGINT)
        assert process.wait(END_SECONDS).code == 130
    assert run.containers() == []
    assert 3 <= len(run.results()) < FILES
