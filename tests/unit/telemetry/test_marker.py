"""The marker on the volume: what it says, when it is written, and what a hostile neighbour can do to it."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from iterum_sidecar.telemetry import probe
from iterum_sidecar.telemetry.health import State
from iterum_sidecar.telemetry.marker import BEAT_EVERY, LOOK_EVERY, Marker, keep_marker
from iterum_sidecar.telemetry.probe import LONGEST_MARKER
from iterum_sidecar.volume import OWN_DIRECTORY, Volume

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Clock = trio.testing.MockClock
LONG_AGO = 1_000_000_000


def file_in(volume: Path) -> Path:
    return volume / ".iterum-sidecar" / "state"


def said(volume: Path) -> str:
    return file_in(volume).read_text(encoding="utf-8")


def test_it_says_the_word_and_what_there_is_to_say(tmp_path: Path) -> None:
    with Marker(str(tmp_path)) as marker:
        marker.show(State("starting"))
        assert said(tmp_path) == "starting\n"
        marker.show(State("waiting", "the broker, the store"))
        assert said(tmp_path) == "waiting\nthe broker, the store\n"
        marker.show(State("failed", "bad configuration:\n  one\n  two"))
        assert said(tmp_path) == "failed\nbad configuration: one two\n"
    assert os.listdir(tmp_path / ".iterum-sidecar") == ["state"]


def test_a_new_life_that_has_the_same_to_say_is_young_again(tmp_path: Path) -> None:
    for _ in range(2):
        with Marker(str(tmp_path), lambda: 1.0) as marker:
            marker.show(State("failed", "bad configuration"))
        assert file_in(tmp_path).stat().st_mtime > LONG_AGO
        os.utime(file_in(tmp_path), (LONG_AGO, LONG_AGO))


def test_every_user_can_read_it(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with Marker(str(tmp_path)) as marker:
            marker.show(State("ready"))
    finally:
        os.umask(before)
    assert file_in(tmp_path).stat().st_mode & 0o777 == 0o644


def test_a_long_reason_is_cut(tmp_path: Path) -> None:
    with Marker(str(tmp_path)) as marker:
        marker.show(State("failed", "é" * 10_000))
    assert file_in(tmp_path).stat().st_size == LONGEST_MARKER


def test_it_outlives_the_volume_of_this_life_and_the_start_of_the_next(tmp_path: Path) -> None:
    with Marker(str(tmp_path)) as marker:
        marker.show(State("starting"))
        with Volume(str(tmp_path)):
            marker.show(State("ready"))
        assert said(tmp_path) == "ready\n"
        marker.show(State("done"))
    assert probe.OWN_DIRECTORY == OWN_DIRECTORY
    with Volume(str(tmp_path)):
        assert said(tmp_path) == "done\n"
    assert said(tmp_path) == "done\n"


async def test_it_is_written_when_the_state_changes_and_touched_when_it_does_not(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    states = [State("waiting", "the broker")]
    with Marker(str(tmp_path), trio.current_time) as marker:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_marker, marker, lambda: states[-1])
            await trio.sleep(LOOK_EVERY / 2)
            file = file_in(tmp_path).stat().st_ino
            os.utime(file_in(tmp_path), (LONG_AGO, LONG_AGO))
            await trio.sleep(BEAT_EVERY - LOOK_EVERY)
            assert file_in(tmp_path).stat().st_mtime == LONG_AGO
            await trio.sleep(LOOK_EVERY)
            assert file_in(tmp_path).stat().st_mtime > LONG_AGO
            assert file_in(tmp_path).stat().st_ino == file
            states.append(State("ready"))
            await trio.sleep(LOOK_EVERY)
            assert said(tmp_path) == "ready\n"
            nursery.cancel_scope.cancel()


def replace_by_symlink(file: Path, target: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to(target)


def leave_a_link_for_the_next_one(file: Path, target: Path) -> None:
    file.with_name("state.new").symlink_to(target)


def say_something_else(file: Path, target: Path) -> None:
    file.unlink(missing_ok=True)
    file.write_text("ready\n", encoding="utf-8")


@pytest.mark.parametrize(
    "tamper", [replace_by_symlink, leave_a_link_for_the_next_one, say_something_else]
)
def test_what_is_put_in_its_place_is_replaced_and_not_followed(
    tmp_path: Path, tamper: Callable[[Path, Path], None]
) -> None:
    volume, secret = tmp_path / "volume", tmp_path / "secret"
    volume.mkdir()
    secret.write_text("secret", encoding="utf-8")
    os.utime(secret, (LONG_AGO, LONG_AGO))
    with Marker(str(volume)) as marker:
        marker.show(State("waiting", "the store"))
        tamper(file_in(volume), secret)
        marker.show(State("waiting", "the store"))
        if tamper is leave_a_link_for_the_next_one:
            marker.show(State("waiting", "the broker"))
        assert said(volume).startswith("waiting\n")
        assert not file_in(volume).is_symlink()
    assert secret.read_text(encoding="utf-8") == "secret"
    assert secret.stat().st_mtime == LONG_AGO


def test_a_directory_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    volume, outside = tmp_path / "volume", tmp_path / "outside"
    volume.mkdir()
    outside.mkdir()
    (volume / ".iterum-sidecar").symlink_to(outside)
    with Marker(str(volume)) as marker:
        marker.show(State("ready"))
    assert os.listdir(outside) == []


def test_what_cannot_be_written_is_told_once_and_only_at_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("iterum_sidecar"), "propagate", True)
    (tmp_path / ".iterum-sidecar").write_text("no directory", encoding="utf-8")
    with Marker(str(tmp_path)) as marker:
        marker.show(State("starting"))
        assert caplog.messages == []
        for _ in range(3):
            marker.show(State("ready"))
    assert len(caplog.messages) == 1
    assert "cannot be written" in caplog.messages[0]


@pytest.mark.parametrize("volume", ["", "/nowhere/at/all", "a\0b"])
def test_without_a_volume_there_is_no_marker_and_no_error(volume: str) -> None:
    with Marker(volume) as marker:
        marker.show(State("failed", "bad configuration"))


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with Marker(str(tmp_path)) as marker:
        for word in ("starting", "ready", "ready", "done"):
            marker.show(State(word))
    assert os.listdir("/proc/self/fd") == before
