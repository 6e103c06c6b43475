"""The same sidecar under several Python interpreters, in turn. See README.md.

python -m benchmarks.pythons [--runs N] [--load NAME] [--keep DIRECTORY] INTERPRETER …

For each interpreter an environment is made with the package and nothing else in it. The step, and all around it, run
under the interpreter that this program is started with.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.bench import (
    at_least_one,
    clean_up_when_told_to_stop,
    failures_in_one_line,
    open_bench,
)
from benchmarks.journey import HEADING, middle, ratios, row
from benchmarks.measure import LOADS, Load, Run, measure

ROOT = Path(__file__).parent.parent
VERSION = "import platform; print(platform.python_version())"
#: An image has its modules compiled too.
COMPILE = (
    "import compileall, sysconfig; compileall.compile_dir(sysconfig.get_path('purelib'), quiet=2)"
)
DEFAULT_LOADS = ("small", "ten-files")


def make_environment(interpreter: str, directory: Path) -> tuple[str, str]:
    """Make an environment, unless it is there, and put the package as it is now into it; return its version and its Python."""
    asked = subprocess.run([interpreter, "-c", VERSION], check=True, capture_output=True, text=True)
    version = asked.stdout.strip()
    environment = directory / version
    python = str(environment / "bin" / "python")
    if not environment.exists():
        subprocess.run([interpreter, "-m", "venv", "--without-pip", str(environment)], check=True)
    # Our own pip installs into it: an interpreter may have come without.
    install = [sys.executable, "-m", "pip", "-qq", "--python", python, "install"]
    subprocess.run([*install, "--only-binary=:all:", str(ROOT)], check=True)
    subprocess.run([*install, "--force-reinstall", "--no-deps", str(ROOT)], check=True)
    subprocess.run([python, "-c", COMPILE], check=True)
    return version, python


def compare(pythons: dict[str, str], loads: list[Load], runs: int) -> bool:
    """Run every load with each in turn and print the table; tell whether everything was as it should be."""
    done: list[Run] = []
    first = next(iter(pythons))
    with open_bench() as bench:
        print(HEADING)
        for load in loads:
            taken: dict[str, list[Run]] = {version: [] for version in pythons}
            for _ in range(runs):
                for version, python in pythons.items():
                    # -P: the package that is installed there, not the one where we are.
                    command = shlex.join([python, "-P", "-m", "iterum_sidecar", "run"])
                    taken[version].append(measure(load, command, bench.peers))
            medians = {version: middle(each) for version, each in taken.items()}
            for version, median in medians.items():
                print(row(load.name, version, median))
                if version != first:
                    print(ratios(load.name, median, medians[first]), flush=True)
            done += [run for each in taken.values() for run in each]
    return not any(run.faults for run in done)


def main() -> None:
    """Read the command line and measure; end with 1 when something was not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pythons", description=__doc__)
    parser.add_argument(
        "interpreter", nargs="+", help="a command, or a path; the first is compared with"
    )
    parser.add_argument(
        "--runs", type=at_least_one, default=3, help="runs of each load (default: 3)"
    )
    parser.add_argument(
        "--load",
        action="append",
        choices=[load.name for load in LOADS],
        help=f"a load to run (default: {' and '.join(DEFAULT_LOADS)}; may be repeated)",
    )
    parser.add_argument("--keep", type=Path, help="a directory where the environments stay")
    options = parser.parse_args()
    clean_up_when_told_to_stop()
    names = options.load or DEFAULT_LOADS
    loads = [load for load in LOADS if load.name in names]
    with tempfile.TemporaryDirectory(prefix="pythons-") as temporary:
        directory = (options.keep or Path(temporary)).resolve()
        pythons = dict(make_environment(each, directory) for each in options.interpreter)
        if len(pythons) < len(options.interpreter):
            raise SystemExit(
                "two interpreters are of one version: measure them one after the other"
            )
        with failures_in_one_line():
            is_right = compare(pythons, loads, options.runs)
    if not is_right:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
