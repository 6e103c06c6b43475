"""What a sidecar would refuse later is refused at the call, as far as the client can know of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from iterum_sidecar.messages import LocalFile
from iterum_sidecar.step import Batch, Fragment, Result, run_on, transform
from iterum_sidecar.step.calling import describe
from iterum_sidecar.step.making import Making
from iterum_sidecar.step.volume import Volume
from iterum_sidecar.step.wire import Handout, HandoutMetadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from iterum_sidecar.step import File, Transform


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_text(path.name)
    return paths


# -- output channels


@transform
def routes(fragment: Fragment) -> Result:
    return fragment.result(fragment.files[0], channel="shrot")


@transform
def creates(fragment: Fragment) -> None:
    with fragment.create("x", channel="shrot"):
        raise AssertionError("the block was entered")


@transform(gather="all")
def gathers(batch: Batch) -> Result:
    return batch.result(batch.files[0], channel="shrot")


MAPPED = {"queue_mapping": {"short": "short-texts"}}


@pytest.mark.parametrize("step", [routes, creates, gathers])
def test_a_channel_that_is_not_mapped_is_refused_at_the_call(
    step: Transform[..., object], files: list[Path]
) -> None:
    told = r"has no output channel 'shrot' \(it has 'short'\); name it under `queue_mapping`"
    with pytest.raises(ValueError, match=told) as caught:
        run_on(step, files[0], config=MAPPED)
    line = step.function.__code__.co_firstlineno + 2
    place = f"(test_refusals.py:{line} in {step.__name__})"
    assert describe(caught.value, step.function).endswith(place)


def test_a_channel_that_is_mapped_is_taken_and_the_steps_own_needs_no_mapping(
    files: list[Path],
) -> None:
    @transform
    def each(fragment: Fragment) -> Iterator[Result]:
        for channel in ("short", None, ""):
            yield fragment.result(fragment.files[0], channel=channel)

    assert len(run_on(each, files[0], config=MAPPED)) == 3


@pytest.mark.parametrize("config", [None, {}, {"by": "-"}])
def test_a_step_that_is_tried_without_a_mapping_may_name_any_channel(
    files: list[Path], config: dict[str, object] | None
) -> None:
    assert run_on(routes, files[0], config=config)[0].channel == "shrot"


@pytest.fixture
def fragment(files: list[Path], tmp_path: Path) -> Fragment:
    """A fragment as it is outside `run_on`, where the configuration is the environment's."""
    described = Handout([LocalFile("a", str(files[0]))], HandoutMetadata(64 * "a"))
    return Fragment(described, Making(Volume(str(tmp_path))))


@pytest.mark.parametrize("config", [{}, {"queue_mapping": None}])
def test_beside_a_sidecar_a_configuration_without_a_mapping_has_none(
    fragment: Fragment, monkeypatch: pytest.MonkeyPatch, config: dict[str, object]
) -> None:
    monkeypatch.setenv("ITERUM_CONFIG", json.dumps(config))
    with pytest.raises(ValueError, match=r"it has none"):
        fragment.result(fragment.files[0], channel="shrot")


def test_a_container_without_a_configuration_leaves_it_to_the_sidecar(
    fragment: Fragment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ITERUM_CONFIG", raising=False)
    assert fragment.result(fragment.files[0], channel="shrot").channel == "shrot"


# -- input files of other fragments


@pytest.mark.parametrize("as_path", [lambda file: file, lambda file: str(file.path)])
def test_a_result_of_one_fragment_has_no_input_file_of_another(
    files: list[Path], as_path: Callable[[File], Any]
) -> None:
    @transform(gather=2)
    def crossed(batch: Batch) -> Result:
        return batch[0].result(batch[0].files[0], as_path(batch[1].files[0]))

    with pytest.raises(
        ValueError, match=r"'b' is an input file of another fragment .* `batch\.result`"
    ):
        run_on(crossed, *files)


def test_a_result_of_the_batch_has_input_files_of_any(files: list[Path]) -> None:
    @transform(gather=2)
    def together(batch: Batch) -> Iterator[Result]:
        yield batch.result(*batch.files)
        yield batch[1].result(batch[1].files[0])

    assert [len(result.files) for result in run_on(together, *files)] == [2, 1]
