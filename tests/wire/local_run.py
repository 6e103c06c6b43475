"""Whole local runs by the command line: pipelines are written, run as a process of their own, and looked at from outside."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[2]
END_SECONDS = 60
#: Every process of a run inherits this variable, and is found by it.
MARK = "LOCAL_RUN_MARK"
OURS = frozenset({".iterum", "logs", "failed", "lineage.jsonl"})

#: What every step of these tests begins with: it notes each fragment that it begins in a file outside, and may sleep.
_HEAD = """\
import os, sys, time
from iterum_sidecar.step import config, config_file, transform

def begins(fragment):
    descriptor = os.open(os.environ["TRACE"], os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, f"{os.environ['ITERUM_NAME'].split('-', 1)[1]} {fragment.id}\\n".encode())
    os.close(descriptor)
    time.sleep(float(os.environ.get("WORK_SECONDS", 0)))

def content(file):
    with open(file.path, "rb") as opened:
        return opened.read()

"""
_TAIL = """

step.run()
"""

#: `<name>` becomes `<name>` with the word of the step's command behind its content.
APPEND = """
@transform
def step(fragment):
    begins(fragment)
    for file in fragment.files:
        with fragment.create(file.name) as path, open(path, "wb") as made:
            made.write(content(file) + sys.argv[1].encode())
"""

#: All contents in the order of their names, in one file.
GATHER = """
@transform(gather="all")
def step(batch):
    for fragment in batch:
        begins(fragment)
    with batch.create("all") as path, open(path, "wb") as made:
        made.write(b"".join(content(file) for file in sorted(batch.files, key=lambda file: file.name)))
"""


@dataclass(frozen=True)
class Ended:
    """How a run ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> str:
        """All that it said."""
        return self.out + self.err

    @property
    def summary(self) -> dict[str, Any]:
        """The summary of a run with `--json`."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found

    def expect(self, code: int) -> Ended:
        """Return this, if that was the exit code and no traceback was shown."""
        assert self.code == code, f"exit code {self.code}, not {code}:\n{self.told}"
        assert "Traceback" not in self.told, self.told
        return self


@dataclass(frozen=True)
class JournalRow:
    """A fragment in the journal."""

    id: str
    producer: str
    channel: str
    live: bool
    state: int


class LocalRun:
    """A pipeline, its input and its output in a folder of their own. Use `local_run`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "pipeline"
        self.input = root / "input"
        self.output = root / "output"
        self.temporary = root / "tmp"
        self.trace = root / "trace"
        for folder in (self.folder, self.input, self.temporary):
            folder.mkdir(parents=True)
        self.trace.touch()
        self.pipeline = self.folder / "pipeline.json"
        self.mark = uuid.uuid4().hex
        self.variables: dict[str, str] = {}
        self.program = ["-m", "iterum_sidecar"]
        """The words between the interpreter and the arguments of the command."""
        self._running: list[subprocess.Popen[str]] = []

    # -- before

    def write_input(self, contents: Mapping[str, bytes | str]) -> None:
        """Write input files."""
        for name, content in contents.items():
            path = self.input / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def write_step(self, name: str, text: str) -> None:
        """Write the program of a step with `iterum_sidecar.step`: its function is called `step`."""
        (self.folder / name).write_text(_HEAD + dedent(text) + _TAIL)

    def write_pipeline(self, *steps: Mapping[str, object], **parts: object) -> None:
        """Write a pipeline of these steps one behind the other, unless they name their channels."""
        written = [
            {
                "input_channel": f"c{number}",
                "output_channel": f"c{number + 1}",
                "name": f"s{number + 1}",
                **step,
            }
            for number, step in enumerate(steps)
        ]
        whole = {
            "name": "p",
            "fragmenter": {"output_channel": "c0"},
            "steps": written,
            "combiner": {"input_channel": f"c{len(steps)}"},
            **parts,
        }
        self.pipeline.write_text(json.dumps(whole))

    # -- the run

    def start(self, *arguments: str | Path, **variables: str) -> subprocess.Popen[str]:
        """Start the command."""
        command: list[str | Path] = [sys.executable, *self.program, "local", self.pipeline]
        command += ["--input", self.input, "--output", self.output, *arguments]
        process = subprocess.Popen(
            command,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "LANG": "C.UTF-8",
                "HOME": str(self.root),
                "TMPDIR": str(self.temporary),
                "TRACE": str(self.trace),
                MARK: self.mark,
                **self.variables,
                **variables,
            },
        )
        self._running.append(process)
        return process

    def end(self, process: subprocess.Popen[str], seconds: float = END_SECONDS) -> Ended:
        """Wait for its end."""
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"it did not end in {seconds} s:\n{out}{err}") from None
        return Ended(process.returncode, out, err)

    def run(self, *arguments: str | Path, **variables: str) -> Ended:
        """Run the command to its end."""
        return self.end(self.start(*arguments, **variables))

    def signal(self, process: subprocess.Popen[str], number: signal.Signals) -> None:
        """Send a signal as a terminal does: to the process and whatever is in its group."""
        os.killpg(process.pid, number)

    def wait_for_work(self, process: subprocess.Popen[str], fragments: int = 1) -> None:
        """Wait until so many fragments have been begun since the folder was made."""
        self.wait_until(
            lambda: len(self.begun()) >= fragments or process.poll() is not None, "work"
        )
        assert process.poll() is None, f"it has ended before: {self.end(process)}"

    def wait_until_told(self, process: subprocess.Popen[str], text: str) -> None:
        """Wait until it has written a line with this text to its standard output."""
        assert process.stdout is not None
        for line in process.stdout:
            if text in line:
                return
        raise AssertionError(f"it has ended without telling of {text!r}")

    def log(self) -> str:
        """Return what the run's own log has."""
        path = self.output / "logs" / "run.log"
        return path.read_text() if path.exists() else ""

    def kill(self, process: subprocess.Popen[str]) -> Ended:
        """Kill it, and wait until its steps are gone too."""
        process.kill()
        ended = self.end(process)
        self.wait_until(lambda: not self.processes(), "its processes were gone")
        return ended

    def wait_until(
        self, condition: Callable[[], object], what: str, seconds: float = END_SECONDS
    ) -> None:
        """Wait for something that is seen from outside only."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not in {seconds} s: {what}")
            time.sleep(0.005)

    def wait_for_end(self, process: subprocess.Popen[str], seconds: float) -> None:
        """Let it run for so long, or to its end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)

    def close(self) -> None:
        """End what still runs."""
        for process in self._running:
            if process.poll() is None:
                process.kill()
                process.communicate()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # -- after

    def processes(self) -> dict[int, str]:
        """Return the processes of all runs of this folder that are alive, with their command lines."""
        found = {}
        mark = f"{MARK}={self.mark}".encode()
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    if mark in (folder / "environ").read_bytes().split(b"\0"):
                        command = (folder / "cmdline").read_bytes()
                        found[int(folder.name)] = command.replace(b"\0", b" ").decode()
        return found

    def results(self) -> dict[str, bytes]:
        """Return the results in the output folder, by name."""
        return {
            str(path.relative_to(self.output)): path.read_bytes()
            for path in sorted(self.output.rglob("*"))
            if path.is_file() and path.relative_to(self.output).parts[0] not in OURS
        }

    def begun(self) -> list[tuple[str, str]]:
        """Return each beginning of work: the step and the fragment's ID."""
        lines = self.trace.read_text().splitlines()
        return [(step, fragment) for step, _, fragment in (line.partition(" ") for line in lines)]

    def begun_again(self, step: str, before: int) -> int:
        """Return how many fragments a step has begun since the trace had `before` lines."""
        return sum(1 for name, _ in self.begun()[before:] if name == step)

    def journal(self) -> list[JournalRow]:
        """Return what the journal has, by a copy of it: opening the journal itself would tidy it."""
        with tempfile.TemporaryDirectory(dir=self.root) as folder:
            for path in (self.output / ".iterum").glob("journal.sqlite*"):
                shutil.copy(path, folder)
            path = Path(folder, "journal.sqlite")
            if not path.exists():
                return []
            with contextlib.closing(sqlite3.connect(path)) as database:
                try:
                    rows = database.execute(
                        "SELECT id, producer, channel, live, state FROM fragment"
                    ).fetchall()
                except sqlite3.OperationalError:
                    return []  # killed before it had its tables
        return [JournalRow(row[0], row[1], row[2], bool(row[3]), row[4]) for row in rows]

    def is_unsynchronised(self) -> bool:
        """Tell whether the journal is one that is not trusted after the machine has gone down."""
        path = self.output / ".iterum" / "journal.sqlite"
        with contextlib.closing(sqlite3.connect(path)) as database:
            about = dict(database.execute("SELECT name, value FROM about"))
        return "unsynchronised" in about

    def lineage(self) -> list[dict[str, Any]]:
        """Return the lineage messages."""
        text = (self.output / "lineage.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def failed(self) -> dict[str, dict[str, str]]:
        """Return what is in the folders of the fragments that were set aside: texts by name, by step and number."""
        return {
            f"{place.parent.name} {number}": {
                str(path.relative_to(place)): path.read_text()
                for path in sorted(place.rglob("*"))
                if path.is_file()
            }
            for number, place in enumerate(sorted((self.output / "failed").glob("*/*")))
        }

    def assert_nothing_is_left(self) -> None:
        """No process, no temporary file, no volume."""
        assert self.processes() == {}
        assert list(self.temporary.iterdir()) == []
        state = self.output / ".iterum"
        for folder in ("volumes", "incoming"):
            assert not (state / folder).exists() or list((state / folder).iterdir()) == []
        assert list((state / "store").glob("*/.incoming-*")) == []


@contextlib.contextmanager
def local_run(root: Path) -> Iterator[LocalRun]:
    """Prepare a run in a folder; whatever still runs at the end is killed."""
    run = LocalRun(root)
    try:
        yield run
    finally:
        run.close()


def append(word: str, *, script: str = "append.py", **more: object) -> dict[str, object]:
    """Return a step that appends a word."""
    return {"command": ["python", script, word], **more}


def contents_of(count: int) -> dict[str, bytes]:
    """Return so many small files."""
    return {f"{number:03}.txt": b"%d" % number for number in range(count)}


def appended(contents: Mapping[str, bytes], words: Sequence[str]) -> dict[str, bytes]:
    """Return what steps that append these words make of files."""
    return {name: content + "".join(words).encode() for name, content in contents.items()}
