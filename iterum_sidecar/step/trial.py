"""Trying a step on some files, without a sidecar."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from iterum_sidecar.framing import encode_frame
from iterum_sidecar.messages import KILL_MESSAGE, LocalFile, LocalFragment, LocalMetadata
from iterum_sidecar.step.calling import call, call_async
from iterum_sidecar.step.configuration import Configuration, given
from iterum_sidecar.step.files import File
from iterum_sidecar.step.making import encode_custom, moved
from iterum_sidecar.step.session import Session
from iterum_sidecar.step.transformation import Transform
from iterum_sidecar.step.volume import Volume
from iterum_sidecar.step.wire import NOTHING, result_frame

if TYPE_CHECKING:
    from iterum_sidecar.step.making import Result
    from iterum_sidecar.step.session import Work

__all__ = ["run_on"]

StrPath = str | os.PathLike[str]
Files = StrPath | Iterable[StrPath] | Mapping[str, StrPath]


def run_on(
    step: Transform[..., Any],
    /,
    *files: Files,
    custom: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    into: StrPath | None = None,
    backend: Literal["asyncio", "trio"] = "asyncio",
) -> list[Result]:
    """Run a step on copies of some files, as a sidecar would have it run, and return its results.

    All files together are one fragment. For a step that gathers every argument is a fragment of its own: a path is one
    of that file, a list one of those files; they are batched as the step says. A file is named as its path ends; a
    dictionary gives other names, `{"deep/cat.jpg": "cat.jpg"}`.

    `custom` is the fragments' metadata. `config` is what `config()` gives the step; under its `config_files` are paths,
    which are copied to where `config_file` finds them. Files of results can be read until the process ends; with `into`
    they are copied to that directory by their logical names, a second one of a name with a number.

    Raises:
        Exception: whatever the step raises, as it is.
        OSError: a file cannot be read.
        ValueError: no files, or two of one name in a fragment.
    """
    if not isinstance(step, Transform):
        raise TypeError(f"run_on runs a function with @transform, not {step!r}")
    fragments = [_named(each) for each in files] if step.gather else [_named_together(files)]
    if not fragments or not all(fragments):
        raise ValueError("run_on needs at least one file, and one in each list")
    directory = _new_directory()
    session = Session(Volume(directory), step.gather)
    for number, named in enumerate(fragments, 1):
        _check_names(named)
        copies = [
            LocalFile(name, _copy(path, os.path.join(directory, "input", str(number), name)))
            for name, path in named.items()
        ]
        metadata = LocalMetadata(f"{number:064d}", [])
        if custom:
            metadata.custom = encode_custom(custom)
        session.receive(encode_frame(msgspec.json.encode(LocalFragment(copies, metadata))))
    session.receive(encode_frame(KILL_MESSAGE))
    token = given.set(_configuration(config or {}, os.path.join(directory, "config")))
    try:
        results = []
        while (work := session.next_work()) is not None:
            results += _call(step, work, backend)
    finally:
        given.reset(token)
    return results if into is None else _copy_results(results, into)


def _call(step: Transform[..., Any], work: Work, backend: str) -> list[Result]:
    if not step.is_async:
        return call(step.function, work)
    import anyio

    def run() -> list[Result]:
        return anyio.run(call_async, step.function, work, backend=backend)

    try:
        anyio.get_current_task()
    except RuntimeError:
        return run()
    # The caller is in an event loop, which allows no second one in its thread.
    from concurrent.futures import ThreadPoolExecutor
    from contextvars import copy_context

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(copy_context().run, run).result()


# -- files


def _named_together(files: tuple[Files, ...]) -> dict[str, StrPath]:
    """Return the files of one fragment by their names."""
    named: dict[str, StrPath] = {}
    for each in files:
        if not isinstance(each, (str, os.PathLike, Mapping)):
            raise TypeError(
                f"the step takes one fragment at a time: give its files as arguments of their own, not {each!r}"
            )
        _add(named, _named(each))
    return named


def _named(files: Files) -> dict[str, StrPath]:
    if isinstance(files, Mapping):
        return dict(files)
    named: dict[str, StrPath] = {}
    for path in [files] if isinstance(files, (str, os.PathLike)) else files:
        _add(named, {os.path.basename(os.path.abspath(path)): path})
    return named


def _add(named: dict[str, StrPath], more: Mapping[str, StrPath]) -> None:
    for name, path in more.items():
        if name in named:
            raise ValueError(
                f"two files of one fragment are named {name!r}: give a dictionary of names and paths"
            )
        named[name] = path


def _check_names(named: Mapping[str, StrPath]) -> None:
    """Hold the names against the contract before files are written by them."""
    described = [LocalFile(name, "") for name in named]
    result_frame(described, [f"{0:064d}"], None, NOTHING)


def _copy(source: StrPath, target: str) -> str:
    import shutil

    os.makedirs(os.path.dirname(target), exist_ok=True)
    return shutil.copyfile(source, target)


def _copy_results(results: list[Result], into: StrPath) -> list[Result]:
    taken: set[str] = set()
    copied = []
    for result in results:
        files = []
        for file in result.files:
            stem, extension = os.path.splitext(file.name)
            name, number = file.name, 1
            while name in taken:
                number += 1
                name = f"{stem}-{number}{extension}"
            taken.add(name)
            files.append(File(file.name, _copy(file, os.path.join(os.path.abspath(into), name))))
        copied.append(moved(result, files))
    return copied


def _configuration(config: Mapping[str, Any], directory: str) -> Configuration:
    """Return the configuration with its files copied into `directory`."""
    own = dict(config)
    files = own.get("config_files")
    if isinstance(files, Mapping):
        placed = {}
        for number, (name, source) in enumerate(files.items(), 1):
            placed[name] = f"{number}/{Path(source).name}"
            _copy(source, os.path.join(directory, placed[name]))
        own["config_files"] = placed
    return Configuration(msgspec.json.encode(own).decode(), directory)


def _new_directory() -> str:
    """Make a directory that is there until the process ends."""
    import atexit
    import shutil
    import tempfile

    directory = os.path.realpath(tempfile.mkdtemp(prefix="run_on-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory
