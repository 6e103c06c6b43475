"""What the environment tells a step."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal

import anyio.to_thread
import pytest

from iterum_sidecar.step import Fragment, config, config_file, run_on, transform
from iterum_sidecar.step.surroundings import (
    Surroundings,
    SurroundingsMissing,
    read_surroundings,
)

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = {
    "DATA_VOLUME_PATH": "/volume",
    "TRANSFORMATION_STEP_INPUT": "in.sock",
    "TRANSFORMATION_STEP_OUTPUT": "/elsewhere/out.sock",
}


@pytest.fixture(autouse=True)
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DATA_VOLUME_PATH", str(tmp_path))
    monkeypatch.setenv("ITERUM_CONFIG_PATH", "config")
    monkeypatch.setenv("ITERUM_CONFIG", '{"config_files":{"words":"list.txt"},"k":[1]}')
    return tmp_path


def test_sockets_are_named_relative_to_the_volume_or_absolute() -> None:
    assert read_surroundings(WHOLE, "edges") == Surroundings(
        "/volume", "/volume/in.sock", "/elsewhere/out.sock"
    )


def test_all_that_is_missing_is_named_at_once_with_what_to_do() -> None:
    with pytest.raises(SurroundingsMissing) as caught:
        read_surroundings({"TRANSFORMATION_STEP_OUTPUT": "out"}, "edges")
    text = str(caught.value)
    assert "DATA_VOLUME_PATH is not set" in text
    assert "TRANSFORMATION_STEP_INPUT is not set" in text
    assert "TRANSFORMATION_STEP_OUTPUT does not end in .sock" in text
    assert "run_on(edges, 'FILE')" in text
    assert "iterum-sidecar local" in text


def test_the_configuration_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config()["k"] == [1]
    for empty in ("", "  ", "{}"):
        monkeypatch.setenv("ITERUM_CONFIG", empty)
        assert config() == {}
    monkeypatch.delenv("ITERUM_CONFIG")
    assert config() == {}


@pytest.mark.parametrize("text", ["{", "[]", "7"])
def test_a_configuration_that_is_no_object_is_told(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("ITERUM_CONFIG", text)
    with pytest.raises(ValueError, match="ITERUM_CONFIG is"):
        config()


def test_a_config_file_is_waited_for(volume: Path) -> None:
    directory = volume / "config"

    def place() -> None:
        directory.mkdir()
        (directory / ".partial").write_text("words")
        (directory / ".partial").rename(directory / "list.txt")

    timer = threading.Timer(0.1, place)
    timer.start()
    assert config_file("words").read_text() == "words"
    timer.join()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_step_leaves_the_waiting_to_another_thread(
    tmp_path: Path, backend: Literal["asyncio", "trio"]
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("cat")

    @transform
    async def step(fragment: Fragment) -> None:
        path = await anyio.to_thread.run_sync(config_file, "words")
        with fragment.create("x") as made:
            made.write_text(path.read_text())

    # What `run_on` gives is found in the other thread, too.
    config = {"config_files": {"words": words}}
    (result,) = run_on(step, words, config=config, backend=backend)
    assert result.files[0].path.read_text() == "cat"


def test_a_config_file_that_does_not_come_is_told(volume: Path) -> None:
    with pytest.raises(
        TimeoutError, match=r"'words' did not come to .*config/list.txt within 0.1 s"
    ):
        config_file("words", timeout=0.1)


def test_a_config_file_that_is_not_named_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LookupError, match=r"no config file 'other' \(it has 'words'\)"):
        config_file("other")
    monkeypatch.setenv("ITERUM_CONFIG", "{}")
    with pytest.raises(LookupError, match=r"it has none"):
        config_file("other")
