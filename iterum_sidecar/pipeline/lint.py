"""Everything that is wrong with a pipeline that could be read, each with its place and its remedy.

`lint` finds what is wrong for any use: what it is made of (here), how its parts hang together (`lint_channels.py`), and how they are
configured (`lint_config.py`). `lint_for_local` finds what a run on this machine lacks beside that.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from iterum_sidecar.pipeline.commands import is_our_python, missing_scripts, program_file
from iterum_sidecar.pipeline.lint_channels import check_channels
from iterum_sidecar.pipeline.lint_config import check_config
from iterum_sidecar.pipeline.model import COMBINER, FRAGMENTER
from iterum_sidecar.pipeline.problems import Findings, PipelineRefused, quoted, shown
from iterum_sidecar.pipeline.reading import read_pipeline, warn_of_unknown_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from iterum_sidecar.pipeline.model import Fragmenter, Pipeline, Step
    from iterum_sidecar.pipeline.problems import KeyPath, Problem

__all__ = ["lint", "lint_file", "lint_for_local"]

_STEP_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
#: A bucket's name may be 63 characters long; a run's hash of 32, `-` and `-output` leave this (contract, section 10).
LONGEST_DEPLOYED_NAME = 23
#: Some stores take buckets of 255 characters, and a file's name has at most as many bytes; a hash of 64, `-` and `-output` leave this.
LONGEST_STEP_NAME = 183
HIGHEST_PREFETCH = 65_535
#: A variable and its value may have 32 pages together, its `=` and closing NUL too (MAX_ARG_STRLEN, execve(2)).
LARGEST_CONFIG = 32 * 4096 - len("ITERUM_CONFIG=") - 1


def lint(
    pipeline: Pipeline,
    *,
    directory: Path,
    find_command: Callable[[str], str | None] = shutil.which,
) -> list[Problem]:
    """Return what is wrong with a pipeline for any use of it.

    Args:
        pipeline: What `read_pipeline` returned, or one that was made otherwise.
        directory: The folder of the pipeline file; commands and config files are looked up in it.
        find_command: Finds a program on PATH.
    """
    findings = Findings(pipeline.source)
    warn_of_unknown_keys(pipeline.unknown_keys, findings)
    _check_steps(pipeline, findings)
    for path, part in _parts(pipeline):
        _check_command(part.command, (*path, "command"), findings, directory, find_command)
    check_channels(pipeline, findings)
    for path, part in _parts(pipeline):
        check_config(part.config, (*path, "config"), findings, directory)
        size = len(pipeline.iterum_config(part, "").encode())
        if size > LARGEST_CONFIG:
            message = f"comes to {size:,} bytes with the pipeline's, and a process can be given {LARGEST_CONFIG:,}"
            findings.error((*path, "config"), message, "put what is so large into a config file")
    check_config(pipeline.config, ("config",), findings, directory)
    return findings


def lint_file(
    path: str | os.PathLike[str], *, find_command: Callable[[str], str | None] = shutil.which
) -> tuple[Pipeline | None, list[Problem]]:
    """Return the pipeline of a file, and everything that is wrong with it, of the file's text and types too.

    The pipeline is None where it could not be read whole; what could be is looked at all the same. Commands and config files are looked up
    in the file's folder.
    """
    directory = Path(path).parent
    try:
        pipeline = read_pipeline(path)
    except PipelineRefused as refusal:
        problems = refusal.problems
        refused = {problem.path for problem in problems}
        if refusal.rest is not None:
            found = lint(refusal.rest, directory=directory, find_command=find_command)
            problems += [
                problem
                for problem in found
                if not any(_one_in_the_other(problem.path, path) for path in refused)
            ]
        return None, problems
    return pipeline, lint(pipeline, directory=directory, find_command=find_command)


def _one_in_the_other(one: KeyPath, other: KeyPath) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def lint_for_local(
    pipeline: Pipeline, directory: Path, container_tool: str | None
) -> list[Problem]:
    """Return what a run on this machine lacks, beside what `lint` finds.

    `container_tool` is the program that runs images (podman or docker), None where there is none. A fragmenter that has an image alone is
    no problem: there are fragmenters that need neither image nor command.
    """
    del directory  # where it is makes no difference yet
    findings = Findings(pipeline.source)
    for number, step in enumerate(pipeline.steps):
        if step.image is not None and step.command is None and container_tool is None:
            findings.error(
                ("steps", number),
                f"step {quoted(step.name)} has an image alone, and there is neither podman nor docker to run it here",
                'add a "command", such as ["python", "step.py"], or install podman',
            )
    return findings


def _parts(pipeline: Pipeline) -> Iterator[tuple[KeyPath, Step | Fragmenter]]:
    yield ("fragmenter",), pipeline.fragmenter
    for number, step in enumerate(pipeline.steps):
        yield ("steps", number), step


# -- steps


def _check_steps(pipeline: Pipeline, findings: Findings) -> None:
    first: dict[str, int] = {}
    for number, step in enumerate(pipeline.steps):
        path: KeyPath = ("steps", number)
        _check_name(step.name, (*path, "name"), findings)
        if step.name in first:
            message = f"steps[{first[step.name]}] is named {quoted(step.name)} too, and a step is known by its name"
            findings.error((*path, "name"), message, "give one of them another name")
        first.setdefault(step.name, number)
        if step.command is None and step.image is None:
            findings.error(
                path,
                f"step {quoted(step.name)} has neither a command nor an image",
                'add a "command", such as ["python", "step.py"], or an "image"',
            )
        if step.instance_count < 1:
            message = f"is {step.instance_count}, and at least one instance has to run"
            findings.error((*path, "instance_count"), message, "write a whole number from 1 up")
        if step.prefetch_count is not None and not 0 <= step.prefetch_count <= HIGHEST_PREFETCH:
            message = f"is {step.prefetch_count}, and a broker takes 0 to {HIGHEST_PREFETCH:,}"
            remedy = "write a number in that range, or leave it out"
            findings.error((*path, "prefetch_count"), message, remedy)


def _check_name(name: str, path: KeyPath, findings: Findings) -> None:
    if name in {FRAGMENTER, COMBINER}:
        message = f"{quoted(name)} is what the {name} of every pipeline is called"
        findings.error(path, message, "give the step another name")
    elif not _STEP_NAME.fullmatch(name):
        findings.error(
            path,
            f"{shown(name)} cannot be the name of a pod, a bucket and a folder",
            "use small letters a to z, digits, and - between them",
        )
    elif len(name) > LONGEST_STEP_NAME:
        message = f"has {len(name)} characters, and may have {LONGEST_STEP_NAME}"
        findings.error(path, message, "give the step a shorter name")
    elif len(name) > LONGEST_DEPLOYED_NAME:
        findings.warn(
            path,
            f"has {len(name)} characters; in a deployment, where a bucket is named after it, it may have {LONGEST_DEPLOYED_NAME}",
            "give the step a shorter name, unless it runs on one machine alone",
        )


# -- commands


def _check_command(
    command: Sequence[str] | None,
    path: KeyPath,
    findings: Findings,
    directory: Path,
    find_command: Callable[[str], str | None],
) -> None:
    if command is None:
        return
    if not command or not command[0]:
        findings.error(
            path, "names no program", 'write the program and its arguments: ["python", "step.py"]'
        )
        return
    for number, word in enumerate(command):
        if "\0" in word:
            findings.error((*path, number), "has a NUL in it, which no argument can", "remove it")
            return
    _check_program(command[0], (*path, 0), findings, directory, find_command)
    for number, looked_at in missing_scripts(command, directory):
        findings.error(
            (*path, number),
            f"the file {quoted(command[number])} is not there: looked for it at {looked_at}",
            "put it there, or write its path as seen from the pipeline file",
        )


def _check_program(
    word: str,
    path: KeyPath,
    findings: Findings,
    directory: Path,
    find_command: Callable[[str], str | None],
) -> None:
    file = program_file(word, directory)
    if file is None:
        if not is_our_python(word, directory) and find_command(word) is None:
            findings.error(
                path,
                f"the program {quoted(word)} cannot be found, neither in {directory.absolute()} nor on PATH",
                "install it, or write its path as seen from the pipeline file",
            )
    elif not os.path.exists(file):
        message = f"the program {quoted(word)} is not there: looked for it at {file}"
        remedy = "put it there, or write its path as seen from the pipeline file"
        findings.error(path, message, remedy)
    elif not os.path.isfile(file):
        findings.error(path, f"{file} is no file, and cannot be run", "name the program itself")
    elif not os.access(file, os.X_OK):
        python = ', or write "python" before it' if file.suffix == ".py" else ""
        message = f"{file} is not executable"
        findings.error(path, message, f"make it executable (chmod +x {file.name}){python}")
