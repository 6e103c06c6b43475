"""`iterum-sidecar new`: the files of `template/`, with a name of their own, in a new folder."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from iterum_sidecar.exit_codes import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable

__all__ = ["PLACEHOLDER", "new_pipeline"]

#: What stands for the pipeline's name in the files of the template.
PLACEHOLDER = "PIPELINE_NAME"

_NAME = re.compile(r"[^\W_][\w.-]*")


class _Refused(Exception):
    """The folder cannot be made; the text says why and what to do."""


def new_pipeline(name: str, stream: TextIO) -> int:
    """Make the folder `name` with a pipeline that works, tell on `stream` how to run it, and return the exit code.

    `name` may be a path; its last part becomes the pipeline's name. The folder may be there if it is empty. What cannot be is told in
    one line on standard error, and then no file was made.
    """
    try:
        _check_name(name)
        _check_free(name)
        _make(Path(name), os.path.basename(os.path.abspath(name)))
    except _Refused as error:
        print(f"iterum-sidecar: {error}", file=sys.stderr)
        return ExitCode.CONFIGURATION
    except OSError as error:
        reason = error.strerror or str(error)
        print(f"iterum-sidecar: {name} cannot be made: {reason}", file=sys.stderr)
        return ExitCode.VOLUME
    print(_next_steps(name), file=stream)
    return ExitCode.DONE


def _check_name(name: str) -> None:
    own = os.path.basename(os.path.abspath(name)) if name else ""
    if not _NAME.fullmatch(own):
        raise _Refused(
            f"{own!r} cannot be a pipeline's name: choose one of letters, digits, '.', '_' and '-' that begins with a letter or a digit"
        )


def _check_free(name: str) -> None:
    path = Path(name)
    parent = path.absolute().parent
    if not parent.is_dir():
        raise _Refused(f"{name} cannot be made, for {parent} is no folder: make that first")
    if path.is_dir():
        if any(path.iterdir()):
            raise _Refused(f"the folder {name} has files in it already: choose another name")
    elif os.path.lexists(path):
        raise _Refused(f"{name} is a file already: choose another name")


def _make(folder: Path, name: str) -> None:
    """Write the files, or none of them.

    Raises:
        OSError: there is no room, or it may not be written there.
    """
    was_there = folder.is_dir()
    try:
        folder.mkdir(exist_ok=True)
        for source, target in _template(files(__package__) / "template", folder):
            target.parent.mkdir(exist_ok=True)
            text = source.read_text(encoding="utf-8").replace(PLACEHOLDER, name)
            target.write_text(text, encoding="utf-8")
    except OSError:
        # It was empty, so that everything in it is ours.
        for each in folder.iterdir() if was_there else [folder]:
            with suppress(OSError):
                shutil.rmtree(each) if each.is_dir() else each.unlink()
        raise


def _template(source: Traversable, target: Path) -> Iterator[tuple[Traversable, Path]]:
    """Yield every file of the template, and where it goes."""
    for each in source.iterdir():
        # Some installers compile what they install.
        if each.name == "__pycache__":
            continue
        if each.is_dir():
            yield from _template(each, target / each.name)
        else:
            yield each, target / each.name


def _next_steps(name: str) -> str:
    program = "iterum-sidecar"
    if shutil.which(program) is None:
        program = f"{shlex.quote(sys.executable)} -m iterum_sidecar"
    pipeline, given, results = (
        shlex.quote(os.path.join(name, each)) for each in ("pipeline.json", "input", "results")
    )
    return (
        f"{name} has a pipeline of one step, which works. Run it:\n\n"
        f"    {program} local {pipeline} --input {given} --output {results}\n\n"
        f"Then change {os.path.join(name, 'shout.py')} and run it again; {os.path.join(name, 'README.md')} says what is what."
    )
