"""`iterum-sidecar lint`: everything that is wrong with a pipeline file, told at once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import msgspec

from iterum_sidecar.exit_codes import ExitCode
from iterum_sidecar.pipeline.lint import lint_file, lint_for_local
from iterum_sidecar.pipeline.problems import report

if TYPE_CHECKING:
    import os

    from iterum_sidecar.pipeline.problems import Problem

__all__ = ["lint_command"]


def lint_command(path: str | os.PathLike[str], stream: TextIO) -> int:
    """Write to `stream` what is wrong with a pipeline file, or one line that nothing is, and return the exit code.

    What only a run on this machine lacks is told as a warning, for the file may be meant for a deployment; warnings alone are no failure.
    """
    pipeline, problems = lint_file(path)
    if pipeline is not None:
        tool = shutil.which("podman") or shutil.which("docker")
        problems += map(_as_warning, lint_for_local(pipeline, Path(path).parent, tool))
    if problems or pipeline is None:
        print(report(problems), file=stream)
    else:
        number = len(pipeline.steps)
        steps = "1 step" if number == 1 else f"{number} steps"
        print(f"{path}: {steps}, nothing wrong", file=stream)
    wrong = any(problem.severity == "error" for problem in problems)
    return ExitCode.CONFIGURATION if wrong else ExitCode.DONE


def _as_warning(problem: Problem) -> Problem:
    message = f"for a run on this machine: {problem.message}"
    return msgspec.structs.replace(problem, message=message, severity="warning")
