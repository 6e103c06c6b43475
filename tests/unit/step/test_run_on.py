"""Trying a step without a sidecar."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from iterum_sidecar.step import (
    Batch,
    File,
    Fragment,
    Result,
    Transform,
    config,
    config_file,
    run_on,
    transform,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for path in paths:
        path.write_text(path.stem)
    return paths


@transform
def joined(fragment: Fragment) -> None:
    with fragment.create("joined.txt") as path:
        path.write_text(" ".join(file.path.read_text() for file in fragment.files))


@transform(gather=2)
def sheets(batch: Batch) -> None:
    with batch.create("sheet.txt") as path:
        path.write_text(
            "|".join(" ".join(file.path.read_text() for file in each.files) for each in batch)
        )


def texts(results: list[Result]) -> list[str]:
    return [result.files[0].path.read_text() for result in results]


def test_all_files_together_are_one_fragment(files: list[Path]) -> None:
    assert texts(run_on(joined, *files)) == ["a b c"]
    assert texts(run_on(joined, str(files[0]), {"other": files[1]})) == ["a b"]


def test_for_a_step_that_gathers_each_argument_is_a_fragment(files: list[Path]) -> None:
    assert texts(run_on(sheets, *files)) == ["a|b", "c"]
    assert texts(run_on(sheets, files[:2], [files[2]])) == ["a b|c"]


def test_the_function_may_change_its_input_and_the_original_stays(files: list[Path]) -> None:
    @transform
    def edits(fragment: Fragment) -> File:
        fragment.files[0].path.write_text("edited")
        return fragment.files[0]

    assert texts(run_on(edits, files[0])) == ["edited"]
    assert files[0].read_text() == "a"


def test_results_go_into_a_directory_by_their_names(files: list[Path], tmp_path: Path) -> None:
    @transform
    def several(fragment: Fragment) -> Iterator[Any]:
        for name in ("deep/x.txt", "deep/x.txt", "y"):
            with fragment.create(name, channel="c") as path:
                path.write_text(name)
        yield fragment.files[0]

    into = tmp_path / "results"
    results = run_on(several, files[0], into=into)
    found = sorted(str(path.relative_to(into)) for path in into.rglob("*") if path.is_file())
    assert found == ["a.txt", "deep/x-2.txt", "deep/x.txt", "y"]
    assert [result.files[0].name for result in results] == [
        "deep/x.txt",
        "deep/x.txt",
        "y",
        "a.txt",
    ]
    assert all(into in result.files[0].path.parents for result in results)
    assert results[0].channel == "c"


def test_an_exception_is_raised_as_it_is(files: list[Path]) -> None:
    error = LookupError("mine")

    @transform
    def fails(fragment: Fragment) -> None:
        raise error

    @transform
    async def fails_async(fragment: Fragment) -> None:
        raise error

    for step in (fails, fails_async):
        with pytest.raises(LookupError) as caught:
            run_on(step, files[0])
        assert caught.value is error


async def test_an_async_step_can_be_tried_within_an_event_loop(files: list[Path]) -> None:
    @transform
    async def step(fragment: Fragment) -> File:
        assert config() == {"k": 1}
        return fragment.files[0]

    assert texts(run_on(step, files[0], config={"k": 1})) == ["a"]


def test_configuration_is_given_for_the_run_alone(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ITERUM_CONFIG", '{"k":"outer"}')

    @transform
    def step(fragment: Fragment) -> None:
        with fragment.create("x") as path:
            path.write_text(f"{config()['k']} {config_file('words').read_text()}")

    given = {"k": "inner", "config_files": {"words": files[1]}}
    assert texts(run_on(step, files[0], config={**given})) == ["inner b"]
    assert config() == {"k": "outer"}


def test_what_cannot_be_run_is_told(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one file"):
        run_on(joined)
    with pytest.raises(ValueError, match="one in each list"):
        run_on(sheets, files, [])
    with pytest.raises(TypeError, match="one fragment at a time"):
        run_on(joined, files)
    with pytest.raises(ValueError, match=r"named 'a.txt': give a dictionary"):
        run_on(joined, files[0], files[0])
    with pytest.raises(FileNotFoundError, match="absent"):
        run_on(joined, tmp_path / "absent")
    with pytest.raises(ValueError, match=r"`\.\.` component"):
        run_on(joined, {"../a": files[0]})
    with pytest.raises(TypeError, match="with @transform"):
        run_on(len, files[0])  # type: ignore[arg-type]  # this is what is tested


def test_its_files_are_gone_when_the_process_has_ended(files: list[Path]) -> None:
    program = (
        "import sys; from iterum_sidecar.step import run_on, transform\n"
        "step = transform(lambda fragment: fragment.files[0])\n"
        "print(run_on(step, sys.argv[1])[0].files[0].path)"
    )
    command = [sys.executable, "-c", program, str(files[0])]
    path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert path.endswith("a.txt")
    assert not Path(path).exists()
    assert not Path(path).parents[2].exists()


# -- the decorator


def test_a_step_is_called_like_its_function() -> None:
    @transform(concurrency=4, gather="all")
    def double(number: object) -> str:
        """Its own words."""
        return f"{number}{number}"

    assert double(number=4) == "44"
    assert (double.__name__, double.__doc__) == ("double", "Its own words.")
    assert isinstance(double, Transform)


@pytest.mark.parametrize(
    "arguments",
    [
        {"concurrency": 0},
        {"concurrency": 1.5},
        {"concurrency": True},
        {"gather": 0},
        {"gather": "some"},
    ],
)
def test_a_number_that_cannot_be_is_told_at_once(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is a whole number from 1 on"):
        transform(**arguments)(len)
