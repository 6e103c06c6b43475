"""Try the mutants of modules on their tests: `python -m tests.mutation [MODULE …] [--sample N] [--seed N] [--lines N …] [--verbose]`.

Each is tried in a process of its own, in memory: no file is changed. Tells every mutant that nothing notices, and a table.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

import h11
import httptools
import httpx2
import hypothesis.stateful
import msgspec
import pamqp.commands
import prometheus_client
import pytest
import pytest_trio.plugin
import trio.testing

from tests.mutation.checks import CHECKS, WALKS, Checks, run_model, run_simulation
from tests.mutation.mutants import Mutant, mutants_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType

#: Imported here once, and not for each mutant.
_THIRD_PARTIES = (h11, httptools, httpx2, hypothesis, msgspec, pamqp, prometheus_client, trio)
#: Seconds that the checks of a mutant may take, beside twice what they take without one.
GRACE = 10.0
PACKAGE = Path("iterum_sidecar")
#: The first failure is enough, and no one reads it. The only plugin that is needed has been imported.
_OPTIONS = ["-x", "-q", "--tb=no", "--assert=plain", "-p", "no:cacheprovider"]
_OPTIONS += ["-p", pytest_trio.plugin.__name__]


class _Loader(SourceFileLoader):
    """Loads the module that is changed."""

    code: CodeType

    def get_code(self, fullname: str) -> CodeType:
        return self.code


class _Finder:
    """Finds the module that is changed, before its file is found."""

    def __init__(self, module: str, mutant: Mutant) -> None:
        path = str((PACKAGE / f"{module}.py").resolve())
        self._module = f"{PACKAGE}.{module.replace('/', '.')}"
        self._loader = _Loader(self._module, path)
        self._loader.code = mutant.compiled(path)

    def find_spec(self, name: str, _path: object, _target: object = None) -> ModuleSpec | None:
        if name != self._module:
            return None
        return spec_from_file_location(name, self._loader.path, loader=self._loader)


class _Plugin:
    """Ends the process at the first failure, and tells it by a pipe."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def fail(self, what: str) -> None:
        os.write(self._pipe, what.encode()[:4000])
        os._exit(1)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if isinstance(item, pytest.Function) and hasattr(item.module, "WALKS"):
                item.module.WALKS = WALKS

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.fail(report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.fail(report.nodeid)


def run_checks(
    module: str, mutant: Mutant | None, checks: Checks, files: Sequence[str], limit: float
) -> str:
    """Run the checks of a module with that fault in it; returns what has noticed it, or nothing."""
    reading, writing = os.pipe()
    with tempfile.TemporaryDirectory(prefix="mutation-") as directory:
        child = os.fork()
        if child == 0:
            _be_checked(module, mutant, checks, [*files, f"--basetemp={directory}/t"], writing)
        os.close(writing)
        # By an alarm, because a mutant may turn in a circle.
        signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, limit)
        _, status = os.waitpid(child, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        # What the tests have started goes with them.
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    with open(reading, "rb", buffering=0) as pipe:
        os.set_blocking(reading, False)
        noticed = (pipe.read(4000) or b"").decode()
    if os.WIFSIGNALED(status):
        return "the time that is allowed"
    return noticed or ("an end without a word" if status else "")


def _be_checked(
    module: str, mutant: Mutant | None, checks: Checks, arguments: list[str], pipe: int
) -> None:
    """Run the checks in this process, which ends by that."""
    os.setpgid(0, 0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for each in range(3):
        os.dup2(nowhere, each)
    plugin = _Plugin(pipe)
    try:
        if mutant is not None:
            sys.meta_path.insert(0, _Finder(module, mutant))
        if pytest.main([*_OPTIONS, *arguments], plugins=[plugin]):
            plugin.fail("pytest itself")
        if checks.model and (fault := run_model()):
            plugin.fail(fault)
        if fault := run_simulation(checks.seeds):
            plugin.fail(fault)
        os._exit(0)
    except Exception as error:
        plugin.fail(f"before any test: {error!r}")
    finally:
        os._exit(3)


def try_module(module: str, options: argparse.Namespace) -> list[object]:
    """Try the mutants of a module; returns its row of the table."""
    checks = CHECKS[module]
    files = list(checks.files)
    start = time.monotonic()
    if fault := run_checks(module, None, checks, files, 600):
        sys.exit(f"{module}: this fails without any fault: {fault}")
    limit = GRACE + 2 * (time.monotonic() - start)
    every = list(mutants_of((PACKAGE / f"{module}.py").read_text(encoding="utf-8")))
    chosen = [each for each in every if each.line in (options.lines or [each.line])]
    if options.sample is not None and options.sample < len(chosen):
        chosen = random.Random(options.seed).sample(chosen, options.sample)
    gc.freeze()
    by: Counter[str] = Counter()
    for mutant in chosen:
        noticed = run_checks(module, mutant, checks, files, limit)
        by[noticed.split("::")[0]] += 1
        told = f"{module}.py:{mutant.line}: {mutant.before}  ->  {mutant.after}"
        if not noticed:
            print(f"SURVIVES {told}", flush=True)
        elif options.verbose:
            print(f"killed   {told}\n         by {noticed}", flush=True)
        # What has noticed one will notice the next.
        files.sort(key=lambda file: -by[file])
    seconds = time.monotonic() - start
    survived = by.pop("", 0)
    print(f"{module}: {seconds:.0f} s; noticed by {dict(by.most_common())}", flush=True)
    return [module, len(every), len(chosen), len(chosen) - survived, survived]


def main() -> int:
    """Run as the command line says; returns the exit code, which is 0 whatever survives."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(CHECKS)}")
    parser.add_argument("--sample", type=int, help="so many mutants of each, drawn from the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=int, nargs="+", help="the mutants of these lines only")
    parser.add_argument("--verbose", action="store_true", help="tell what notices each")
    options = parser.parse_args()
    if unknown := set(options.modules) - CHECKS.keys():
        parser.error(f"no such module: {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.dont_write_bytecode = False  # or each mutant would compile everything
    rows = [try_module(module, options) for module in options.modules or CHECKS]
    print("| module | mutants | tried | killed | survived |\n|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
