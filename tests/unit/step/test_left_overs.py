"""What is left on the volume of what a function has made."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.step import Fragment, Result, run_on, transform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    path = tmp_path / "cat.jpg"
    path.write_text("cat")
    return path


def write(fragment: Fragment, name: str) -> Path:
    path = fragment.new_path(name)
    path.write_text("x")
    return path


def outputs_of(seen: list[Path]) -> list[str]:
    """Return what is left in the directory of results that a function has seen."""
    return os.listdir(seen[0].parent)


def test_create_makes_nothing_when_its_block_fails(cat: Path) -> None:
    seen: list[Path] = []

    @transform
    def recovers(fragment: Fragment) -> None:
        try:
            with fragment.create("a") as path:
                seen.append(path)
                path.write_text("half")
                raise OSError
        except OSError:
            pass

    assert run_on(recovers, cat) == []
    assert outputs_of(seen) == []


def test_nothing_is_left_of_a_function_that_fails(cat: Path) -> None:
    seen: list[Path] = []

    @transform
    def fails(fragment: Fragment) -> Iterator[Result]:
        with fragment.create("a") as path:
            path.write_text("x")
        seen.extend((path, fragment.files[0].path))
        yield fragment.result(write(fragment, "b"))
        own = path.with_name("own")
        own.touch()
        yield fragment.result(own)
        yield fragment.result(fragment.files[0])
        raise KeyError("late")

    with pytest.raises(KeyError, match="late"):
        run_on(fails, cat)
    assert outputs_of(seen) == []
    assert seen[1].exists()  # an input file is the sidecar's


def test_a_generators_own_cleaning_comes_before_ours(cat: Path) -> None:
    order: list[str] = []

    @transform
    def generator(fragment: Fragment) -> Iterator[object]:
        path = write(fragment, "a")
        try:
            yield fragment.result(path)
            yield 7
        finally:
            order.append("exists" if path.exists() else "gone")

    with pytest.raises(TypeError):
        run_on(generator, cat)
    assert order == ["exists"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_folder_at_a_new_path_is_removed_with_what_is_in_it(cat: Path, fails: bool) -> None:
    seen: list[Path] = []

    @transform
    def scratch(fragment: Fragment) -> Path:
        folder = fragment.new_path("parts")
        (folder / "deep").mkdir(parents=True)
        for name in ("a", "deep/b"):
            (folder / name).touch()
        seen.append((folder / "a").rename(fragment.new_path("kept")))
        if fails:
            raise KeyError
        return seen[0]

    if fails:
        with pytest.raises(KeyError):
            run_on(scratch, cat)
    else:
        run_on(scratch, cat)
    assert outputs_of(seen) == ([] if fails else [seen[0].name])


def test_a_folder_with_a_result_in_it_stays(cat: Path) -> None:
    @transform
    def within(fragment: Fragment) -> Path:
        folder = fragment.new_path("parts")
        folder.mkdir()
        (folder / "a").touch()
        return folder / "a"

    (result,) = run_on(within, cat)
    assert result.files[0].path.exists()


def test_a_new_path_that_is_in_no_result_is_removed(cat: Path) -> None:
    seen: list[Path] = []

    @transform
    def scratch(fragment: Fragment) -> Path:
        seen.append(write(fragment, "scratch"))
        seen.append(write(fragment, "kept"))
        return seen[1]

    run_on(scratch, cat)
    assert outputs_of(seen) == [seen[1].name]
