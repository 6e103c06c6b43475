"""Copy a folder of small files by a local run, and by other programs that people use for that. See README.md.

python -m benchmarks.local [--files N …] [--runs N] [--only NAME] [--others PYTHON] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.bench import at_least_one, clean_up_when_told_to_stop, directory_in_memory
from benchmarks.measure import POLL_SECONDS
from testbed.contents import content
from testbed.process import ProcessFailed, running

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAMS = Path(__file__).with_name("contenders")
SIZE = 4 << 10
CHANGED_EVERY = 100
RUN_SECONDS = 600
#: What a local run keeps beside the results.
OWN = {".iterum", "logs", "lineage.jsonl"}
PASSES = ("first", "again", "1 %")
HEADING = (
    f"{'files':>6} {'program':<13} {'run':<6} {'files/s':>8} {'wall s':>7} {'CPU s':>7}"
    f" {'runner MB':>9}  verified"
)


@dataclasses.dataclass(frozen=True)
class Taken:
    """What one run took. Times are in seconds, memory in bytes; `faults` are what was not as it should be after it."""

    files: int
    wall: float
    cpu: float
    memory: int
    faults: tuple[str, ...]


class Folder:
    """An input folder of `files` files of 4 KiB each, whose contents can be changed."""

    def __init__(self, path: Path, files: int) -> None:
        self.path = path
        self._numbers = list(range(files))
        path.mkdir()
        # A file that was written only just now is read again by whoever trusts times.
        before = time.time_ns() - 3600 * 10**9
        for position, number in enumerate(self._numbers):
            file = path / self._name(position)
            file.write_bytes(content(number, SIZE))
            os.utime(file, ns=(before, before))

    def __len__(self) -> int:
        return len(self._numbers)

    def change(self) -> int:
        """Give each hundredth file another content, and return how many those are."""
        positions = range(0, len(self), CHANGED_EVERY)
        for position in positions:
            self._numbers[position] += len(self)
            (self.path / self._name(position)).write_bytes(content(self._numbers[position], SIZE))
        return len(positions)

    def faults_of(self, target: Path) -> tuple[str, ...]:
        """Return what is not as it should be in a copy of it."""
        found = {path.name for path in target.iterdir()} - OWN
        expected = {self._name(position): number for position, number in enumerate(self._numbers)}
        faults = []
        if missing := expected.keys() - found:
            faults.append(f"{len(missing)} results missing")
        if others := found - expected.keys():
            faults.append(f"{len(others)} other files")
        wrong = [
            name
            for name in expected.keys() & found
            if (target / name).read_bytes() != content(expected[name], SIZE)
        ]
        if wrong:
            faults.append(f"{len(wrong)} with another content")
        return tuple(faults)

    def _name(self, position: int) -> str:
        return f"file-{position:06}.bin"


@dataclasses.dataclass(frozen=True)
class Contender:
    """A program that can copy a folder.

    `command` makes its command line of the source, the target and a folder of its own. `resumes` tells whether it knows
    what it has done before. `missing` says why it cannot run here, or is empty.
    """

    name: str
    command: Callable[[Path, Path, Path], list[str]]
    resumes: bool
    missing: str = ""


def local_run(step: str, instances: int) -> Callable[[Path, Path, Path], list[str]]:
    """Return what makes the command of a local run with one copying step."""

    def command(source: Path, target: Path, own: Path) -> list[str]:
        description = {
            "name": "copy",
            "input_dataset": "files",
            "input_dataset_commit_hash": "-",
            "fragmenter": {"output_channel": "files"},
            "steps": [
                {
                    "name": "copy",
                    "command": [sys.executable, str(PROGRAMS / step)],
                    "input_channel": "files",
                    "output_channel": "copies",
                    "instance_count": instances,
                }
            ],
            "combiner": {"input_channel": "copies"},
        }
        pipeline = own / "pipeline.json"
        pipeline.write_text(json.dumps(description), encoding="utf-8")
        return [
            *(sys.executable, "-m", "iterum_sidecar", "local", str(pipeline)),
            *("--input", str(source), "--output", str(target)),
        ]

    return command


def script(python: str, name: str) -> Callable[[Path, Path, Path], list[str]]:
    """Return what makes the command of a script of ours that takes the two folders."""
    return lambda source, target, _own: [python, str(PROGRAMS / name), str(source), str(target)]


def parallel(*command: str) -> Callable[[Path, Path, Path], list[str]]:
    """Return what makes a command of GNU parallel, which is given the list of the files."""

    def make(source: Path, target: Path, own: Path) -> list[str]:
        target.mkdir(exist_ok=True)
        names = own / "names"
        names.write_text("".join(f"{path}\n" for path in sorted(source.iterdir())))
        words = [str(target) if word == "TARGET" else word for word in command]
        return ["parallel", "--will-cite", "-j2", "-a", str(names), *words]

    return make


def contenders(others: str) -> list[Contender]:
    """Return everybody; `others` is a Python that may have Luigi and Prefect."""
    no_parallel = "" if shutil.which("parallel") else "no GNU parallel: apt-get install parallel"
    return [
        Contender("ours", local_run("our_step.py", 1), resumes=True),
        Contender("ours x2", local_run("our_step.py", 2), resumes=True),
        Contender("pyterum", local_run("pyterum_step.py", 1), resumes=True),
        Contender("pool", script(sys.executable, "pool.py"), resumes=False),
        Contender("parallel", parallel("cp", "{}", "TARGET"), resumes=False, missing=no_parallel),
        Contender(
            "parallel -X", parallel("-X", "cp", "-t", "TARGET"), resumes=False, missing=no_parallel
        ),
        Contender("luigi", script(others, "luigi_tasks.py"), True, lacks(others, "luigi")),
        Contender("prefect", script(others, "prefect_flow.py"), True, lacks(others, "prefect")),
    ]


def lacks(python: str, module: str) -> str:
    """Say that a Python has not got a module, or nothing."""
    code = f"import sys, importlib.util; sys.exit(importlib.util.find_spec({module!r}) is None)"
    found = shutil.which(python) and subprocess.run([python, "-c", code], check=False)
    if found and found.returncode == 0:
        return ""
    return f"{python} has no {module}: pip install {module}, best for a Python of its own, and --others"


def take(contender: Contender, folder: Folder, target: Path, own: Path, files: int) -> Taken:
    """Let a contender copy a folder of which `files` files are new to it."""
    environment = os.environ | {
        "PREFECT_HOME": str(own),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "DO_NOT_TRACK": "1",
        # Elsewhere than in the project, or Luigi and pyterum leave files of theirs in it.
        "PYTHONPATH": str(PROGRAMS.parent.parent),
    }
    command = contender.command(folder.path, target, own)
    memory = 0
    started = time.monotonic()
    with running(command, log=own / "log", environment=environment, cwd=own) as process:
        while (ended := process.poll()) is None:
            # It may have ended meanwhile.
            with contextlib.suppress(ProcessFailed, OSError):
                memory = max(memory, process.peak_memory())
            if time.monotonic() - started > RUN_SECONDS:
                raise SystemExit(f"{contender.name} still runs\n{process.last_lines()}")
            time.sleep(POLL_SECONDS)
        wall = time.monotonic() - started
        faults = folder.faults_of(target)
        if ended.code != 0:
            faults = (*faults, f"exit code {ended.code}\n{process.last_lines()}")
    return Taken(files, wall, ended.cpu_seconds, memory, faults)


def passes(contender: Contender, folder: Folder, directory: Path, number: int) -> dict[str, Taken]:
    """Copy once, again, and again when a hundredth of the files has changed; those that keep nothing once."""
    own = directory / contender.name.replace(" ", "")
    own.mkdir(exist_ok=True)
    target = own / f"results-{number}"
    taken = {PASSES[0]: take(contender, folder, target, own, len(folder))}
    if contender.resumes:
        taken[PASSES[1]] = take(contender, folder, target, own, 0)
        changed = folder.change()
        taken[PASSES[2]] = take(contender, folder, target, own, changed)
    shutil.rmtree(target)
    return taken


def middle(runs: list[Taken]) -> Taken:
    """Return the median of each figure, and every fault of every run."""
    return Taken(
        files=runs[0].files,
        wall=statistics.median(run.wall for run in runs),
        cpu=statistics.median(run.cpu for run in runs),
        memory=round(statistics.median(run.memory for run in runs)),
        faults=tuple(dict.fromkeys(fault for run in runs for fault in run.faults)),
    )


def row(files: int, name: str, which: str, run: Taken) -> str:
    """Return one line of the table."""
    rate = f"{run.files / run.wall:,.0f}" if run.files else "-"
    return (
        f"{files:>6} {name:<13} {which:<6} {rate:>8} {run.wall:>7.2f} {run.cpu:>7.2f}"
        f" {run.memory / 1e6:>9.1f}  {'; '.join(run.faults) or 'yes'}"
    )


def compare(everybody: list[Contender], files: int, runs: int) -> dict[str, dict[str, list[Taken]]]:
    """Let all copy one folder in turn, several times, and print the medians; return all runs by program and kind."""
    every: dict[str, dict[str, list[Taken]]] = {
        each.name: {which: [] for which in PASSES} for each in everybody
    }
    with directory_in_memory() as directory:
        # The first start of each, unmeasured: bytecode is written, Prefect makes its database.
        warm = Folder(directory / "one", 1)
        for each in everybody:
            passes(each, warm, directory, 0)
        folder = Folder(directory / "input", files)
        for number in range(1, runs + 1):
            for each in everybody:
                for which, taken in passes(each, folder, directory, number).items():
                    every[each.name][which].append(taken)
    for each in everybody:
        for which, done in every[each.name].items():
            if done:
                print(row(files, each.name, which, middle(done)), flush=True)
    return every


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.local", description=__doc__)
    parser.add_argument(
        "--files",
        type=int,
        nargs="+",
        default=[2000, 5000],
        help="how many files; several numbers make several comparisons (default: 2000 5000)",
    )
    parser.add_argument(
        "--runs", type=at_least_one, default=3, help="runs of each program (default: %(default)s)"
    )
    parser.add_argument(
        "--only", action="append", help="a program to run (default: all; may be repeated)"
    )
    parser.add_argument(
        "--others",
        default=sys.executable,
        help="a Python that has Luigi and Prefect (default: this one)",
    )
    parser.add_argument("--json", type=Path, help="a file for the figures of every run")
    return parser.parse_args()


def main() -> None:
    """Compare as the command line asks; end with 1 when a result of ours was not as it should be."""
    options = arguments()
    clean_up_when_told_to_stop()
    everybody = contenders(options.others)
    names = [each.name for each in everybody]
    if unknown := set(options.only or []) - set(names):
        raise SystemExit(f"--only {unknown.pop()!r} is none of {', '.join(names)}")
    chosen = [each for each in everybody if not options.only or each.name in options.only]
    for each in chosen:
        if each.missing:
            print(f"{each.name} is left out: {each.missing}")
    present = [each for each in chosen if not each.missing]
    print(HEADING)
    every = {files: compare(present, files, options.runs) for files in options.files}
    if options.json:
        figures = {
            files: {
                name: {
                    which: [dataclasses.asdict(taken) for taken in done]
                    for which, done in kinds.items()
                }
                for name, kinds in compared.items()
            }
            for files, compared in every.items()
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if any(
        taken.faults
        for compared in every.values()
        for name in compared.keys() & {"ours", "ours x2", "pyterum"}
        for done in compared[name].values()
        for taken in done
    ):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
