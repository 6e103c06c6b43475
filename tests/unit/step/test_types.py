"""What a type checker knows of a step of each kind; `mypy --strict` reads this file, and running it shows that it is so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, assert_type

import anyio.to_thread

from iterum_sidecar.step import (
    Batch,
    File,
    Fragment,
    Result,
    config,
    config_file,
    run_on,
    transform,
)


@transform
def plain(fragment: Fragment) -> Path:
    assert_type(fragment.files, tuple[File, ...])
    assert_type(fragment.id, str)
    assert_type(fragment.custom, dict[str, Any])
    with fragment.create("a", channel=None, custom={"k": 1}) as path:
        path.write_text("x")
        # The block hides no error, so that nothing is missing behind this.
        return path


@transform(concurrency=2)
def generator(fragment: Fragment) -> Iterator[Result]:
    (file,) = fragment.files
    yield fragment.result(file, file.path, str(file.path), name=["a", "b", "c"])


@transform(gather="all")
def gathering(batch: Batch) -> Result:
    assert_type(batch[0], Fragment)
    assert_type(batch[1:], tuple[Fragment, ...])
    assert_type(batch.files, tuple[File, ...])
    return batch.result(*sorted(batch.files, key=lambda file: file.name))


@transform
async def awaited(fragment: Fragment) -> Result:
    words = await anyio.to_thread.run_sync(config_file, "words")
    return fragment.result(words)


@transform
async def streamed(fragment: Fragment) -> AsyncIterator[Path]:
    for file in fragment.files:
        yield file.path


def repeated(fragment: Fragment, times: int) -> list[Result]:
    return [fragment.result(fragment.files[0], name=f"{number}") for number in range(times)]


class Passing:
    def __call__(self, fragment: Fragment) -> File:
        return fragment.files[0]


async def what_a_step_gives_when_it_is_called(fragment: Fragment, batch: Batch) -> None:
    """Is read and never run."""
    assert_type(plain(fragment), Path)
    assert_type(generator(fragment=fragment), Iterator[Result])
    assert_type(gathering(batch=batch), Result)
    assert_type(await awaited(fragment), Result)
    assert_type(streamed(fragment), AsyncIterator[Path])
    assert_type(transform(Passing())(fragment), File)
    assert_type(transform(gather=2)(gathering.function)(batch), Result)


def test_results_and_their_files_have_types(tmp_path: Path) -> None:
    given = tmp_path / "a"
    given.write_text("x")
    results = run_on(transform(partial(repeated, times=1)), given, custom={"k": 1})
    assert_type(results, list[Result])
    (result,) = results
    assert_type(result.files, tuple[File, ...])
    assert_type(result.channel, str | None)
    assert_type(result.predecessors, tuple[str, ...])
    assert_type(config(), dict[str, Any])
    with open(result.files[0], encoding="utf-8") as stream:
        assert stream.read() == "x"


def test_the_package_says_that_it_has_types() -> None:
    assert (files("iterum_sidecar") / "py.typed").is_file()
