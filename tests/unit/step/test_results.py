"""What a function may give back, and what becomes of it; all through `run_on`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import pytest

from iterum_sidecar.step import Batch, Fragment, Result, run_on, transform
from iterum_sidecar.step.making import Making
from iterum_sidecar.step.volume import Volume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    path = tmp_path / "cat.jpg"
    path.write_text("cat")
    return path


def contents(results: list[Result]) -> dict[str, str]:
    return {file.name: file.path.read_text() for result in results for file in result.files}


def write(fragment: Fragment, name: str, text: str = "x") -> Path:
    path = fragment.new_path(name)
    path.write_text(text)
    return path


# -- what may be given back


def test_a_plain_function_gives_one_result_a_path_or_several(cat: Path) -> None:
    @transform
    def one(fragment: Fragment) -> Result:
        return fragment.result(write(fragment, "one"))

    @transform
    def path(fragment: Fragment) -> str:
        return str(write(fragment, "path"))

    @transform
    def several(fragment: Fragment) -> list[Path | Result | None]:
        return [write(fragment, "a"), None, fragment.result(write(fragment, "b"))]

    @transform
    def nothing(fragment: Fragment) -> None: ...

    assert list(contents(run_on(one, cat))) == ["one"]
    assert list(contents(run_on(path, cat))) == ["path"]
    assert list(contents(run_on(several, cat))) == ["a", "b"]
    assert run_on(nothing, cat) == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_async_functions_and_generators(cat: Path, backend: Literal["asyncio", "trio"]) -> None:
    @transform
    async def one(fragment: Fragment) -> Result:
        return fragment.result(write(fragment, "one"))

    @transform
    async def several(fragment: Fragment) -> AsyncIterator[Path]:
        yield write(fragment, "a")
        yield write(fragment, "b")

    class Callable:
        async def __call__(self, fragment: Fragment) -> list[Path]:
            return [write(fragment, "c")]

    assert list(contents(run_on(one, cat, backend=backend))) == ["one"]
    assert list(contents(run_on(several, cat, backend=backend))) == ["a", "b"]
    assert list(contents(run_on(transform(Callable()), cat, backend=backend))) == ["c"]


@pytest.mark.parametrize("value", [7, b"path", {"a": 1}, [7], object()])
def test_anything_else_is_an_error_that_says_what_may_be(cat: Path, value: object) -> None:
    @transform
    def wrong(fragment: Fragment) -> object:
        return value

    with pytest.raises(TypeError, match="it may give back None, a result, a path, or an iterable"):
        run_on(wrong, cat)


def test_a_plain_function_that_gives_something_to_await_is_told_so(cat: Path) -> None:
    async def inner(fragment: Fragment) -> None: ...

    @transform
    def wrong(fragment: Fragment) -> object:
        return inner(fragment)

    with pytest.raises(TypeError, match="define it with `async def`"):
        run_on(wrong, cat)


def test_a_result_that_is_not_given_back_is_an_error(cat: Path) -> None:
    @transform
    def forgets(fragment: Fragment) -> None:
        fragment.result(write(fragment, "forgotten"))

    with pytest.raises(ValueError, match="'forgotten', but the function did not give it back"):
        run_on(forgets, cat)


def test_a_result_of_an_earlier_call_is_an_error(cat: Path) -> None:
    kept: list[Result] = []

    @transform(gather=1)
    def keeps(batch: Batch) -> Result:
        if not kept:
            kept.append(batch.result(batch.files[0]))
        return kept[0]

    with pytest.raises(ValueError, match="was made in an earlier call"):
        run_on(keeps, cat, cat)


def test_giving_a_result_twice_sends_it_once(cat: Path) -> None:
    @transform
    def twice(fragment: Fragment) -> Iterator[Result]:
        result = fragment.result(write(fragment, "a"))
        yield result
        yield result

    assert len(run_on(twice, cat)) == 1


# -- create


def test_create_makes_a_result_when_its_block_ends_well(cat: Path) -> None:
    @transform
    def creates(fragment: Fragment) -> None:
        with fragment.create("deep/edges.tar.gz", channel="c", custom={"k": 1}) as path:
            assert path.parent.is_dir()
            assert path.name.endswith(".tar.gz")
            path.write_text("edges")

    (result,) = run_on(creates, cat)
    assert (result.channel, result.custom) == ("c", {"k": 1})
    assert contents([result]) == {"deep/edges.tar.gz": "edges"}


def test_create_without_a_file_is_an_error(cat: Path) -> None:
    @transform
    def creates(fragment: Fragment) -> None:
        with fragment.create("edges.png"):
            pass

    with pytest.raises(
        ValueError, match=r"there is no file for the result 'edges.png'.*write it before"
    ):
        run_on(creates, cat)


@pytest.mark.parametrize("within", [True, False])
def test_yielding_the_path_of_create_too_changes_nothing(cat: Path, within: bool) -> None:
    @transform
    def creates(fragment: Fragment) -> Iterator[Path]:
        with fragment.create("a", channel="c") as path:
            path.write_text("x")
            if within:
                yield path
        if not within:
            yield path

    (result,) = run_on(creates, cat)
    assert result.channel == "c"


def test_a_result_made_within_the_block_is_the_only_one(cat: Path) -> None:
    @transform
    def creates(fragment: Fragment) -> Iterator[Result]:
        with fragment.create("a") as path:
            path.write_text("x")
            yield fragment.result(path, channel="mine")

    assert [result.channel for result in run_on(creates, cat)] == ["mine"]


def test_a_result_of_what_create_has_made_is_an_error(cat: Path) -> None:
    @transform
    def creates(fragment: Fragment) -> Iterator[Result]:
        with fragment.create("a") as path:
            path.write_text("x")
        yield fragment.result(path, channel="c")

    with pytest.raises(ValueError, match="give `channel` and `custom` to `create`"):
        run_on(creates, cat)


def test_paths_never_clash_and_keep_the_extension(tmp_path: Path) -> None:
    volume = Volume(str(tmp_path))
    first, second = (Making(volume).new_path("a/photo.JPG") for _ in range(2))
    assert first != second
    assert first.endswith(".JPG")
    assert Volume(str(tmp_path)).new_path("x") not in {first, second}
    endings = {
        "plain": "",
        ".hidden": ".hidden",
        "v1.2 of a very long name, longer than can be kept whole.pdf": ".pdf",
        f"a.{'b' * 100}": "",
        "a.b\0": "",
    }
    for name, ending in endings.items():
        path = os.path.basename(volume.new_path(name))
        assert "." in path if ending else "." not in path
        assert path.endswith(ending)


# -- names, paths and metadata


def test_a_result_of_several_files_with_names(cat: Path) -> None:
    @transform
    def pair(fragment: Fragment) -> Result:
        return fragment.result(write(fragment, "a"), write(fragment, "b"), name=["left", "right/b"])

    (result,) = run_on(pair, cat)
    assert [file.name for file in result.files] == ["left", "right/b"]


def test_an_input_file_passes_through_under_its_own_name(tmp_path: Path, cat: Path) -> None:
    @transform
    def passes(fragment: Fragment) -> list[object]:
        (file,) = fragment.files
        return [file, fragment.result(file.path), fragment.result(file, channel="c")]

    results = run_on(passes, {"deep/cat.jpg": cat})
    assert [result.files[0].name for result in results] == ["deep/cat.jpg"] * 3
    assert cat.read_text() == "cat"


@pytest.mark.parametrize("name", ["", "../a", "/a", "a//b", "x" * 300, "a\0"])
def test_a_name_that_cannot_be_is_told_in_the_function(cat: Path, name: str) -> None:
    @transform
    def wrong(fragment: Fragment) -> Result:
        path = write(fragment, "fine")
        with pytest.raises(ValueError, match=r"name.*at `\$.files\[0\].name`"):
            fragment.result(path, name=name)
        return fragment.result(path)

    assert len(run_on(wrong, cat)) == 1


def test_two_files_of_one_name_are_told_in_the_function(cat: Path) -> None:
    @transform
    def wrong(fragment: Fragment) -> Result:
        return fragment.result(write(fragment, "a"), write(fragment, "a"))

    with pytest.raises(ValueError, match="two files are named 'a'"):
        run_on(wrong, cat)


def test_a_path_outside_the_volume_is_told_with_the_remedy(tmp_path: Path, cat: Path) -> None:
    @transform
    def outside(fragment: Fragment) -> Path:
        return cat

    with pytest.raises(ValueError, match=r"is outside the volume .*fragment\.create\(name\)"):
        run_on(outside, cat)


def test_a_path_over_a_symbolic_link_is_told(tmp_path: Path, cat: Path) -> None:
    @transform
    def link(fragment: Fragment) -> Path:
        path = fragment.new_path("a")
        path.symlink_to(cat)
        return path

    @transform
    def directory(fragment: Fragment) -> Path:
        path = fragment.new_path("a")
        path.symlink_to(tmp_path)
        return path / cat.name

    with pytest.raises(ValueError, match="is a symbolic link; a result is a regular file"):
        run_on(link, cat)
    with pytest.raises(ValueError, match="reached over a symbolic link"):
        run_on(directory, cat)


def test_a_path_of_the_functions_own_choice_in_the_volume(cat: Path) -> None:
    @transform
    def own(fragment: Fragment) -> Path:
        path = fragment.new_path("x").with_name("fixed.txt")
        path.write_text("own")
        return path

    assert contents(run_on(own, cat)) == {"fixed.txt": "own"}


def test_writing_a_results_file_again_is_told(cat: Path) -> None:
    @transform
    def fixed(fragment: Fragment) -> Iterator[Result]:
        path = fragment.new_path("x").with_name("fixed.txt")
        for text in ("one", "three"):
            path.write_text(text)
            yield fragment.result(path)

    with pytest.raises(ValueError, match="was written again before that was sent"):
        run_on(fixed, cat)


def test_metadata_of_a_fragment_travels_and_of_a_batch_does_not(cat: Path) -> None:
    @transform
    def single(fragment: Fragment) -> Iterator[Result]:
        (file,) = fragment.files
        fragment.custom["changed"] = True
        yield fragment.result(file)
        yield fragment.result(file, custom={**fragment.custom, "more": 1})
        yield fragment.result(file, custom={})

    @transform(gather="all")
    def batch(batch: Batch) -> Iterator[Result]:
        yield batch.result(batch.files[0])
        yield batch.result(batch.files[0], custom={"own": 1})
        yield batch[0].result(batch.files[0])

    customs = [result.custom for result in run_on(single, cat, custom={"k": "v"})]
    assert customs == [{"k": "v"}, {"k": "v", "more": 1}, {}]
    results = run_on(batch, cat, cat, custom={"k": "v"})
    assert [result.custom for result in results] == [{}, {"own": 1}, {"k": "v"}]
    assert [len(result.predecessors) for result in results] == [2, 2, 1]


@pytest.mark.parametrize("custom", [{"a": object()}, ["a"], {"a": {1: {2: {3j}}}}])
def test_metadata_that_cannot_travel_is_told(cat: Path, custom: dict[str, object]) -> None:
    @transform
    def wrong(fragment: Fragment) -> Result:
        return fragment.result(fragment.files[0], custom=custom)

    with pytest.raises(ValueError, match="custom metadata"):
        run_on(wrong, cat)
