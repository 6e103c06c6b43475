"""`iterum-sidecar probe`: its answer to each question in each state, and what it costs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iterum_sidecar.cli import main
from iterum_sidecar.telemetry.health import State
from iterum_sidecar.telemetry.marker import Marker
from iterum_sidecar.telemetry.probe import LONGEST_SILENCE, PROBES, Verdict, probe

WORDS = ("starting", "ready", "waiting", "draining", "done", "stopped", "failed")
YES = {
    "live": set(WORDS),
    "ready": {"ready"},
    "startup": {"ready", "waiting", "draining"},
}


def ask(question: str, volume: Path) -> Verdict:
    return probe(question, {"DATA_VOLUME_PATH": str(volume)})


def show(volume: Path, word: str, detail: str = "") -> Path:
    with Marker(str(volume)) as marker:
        marker.show(State(word, detail))  # type: ignore[arg-type]
    return volume / ".iterum-sidecar" / "state"


@pytest.mark.parametrize("question", PROBES)
@pytest.mark.parametrize("word", WORDS)
def test_each_question_in_each_state(tmp_path: Path, question: str, word: str) -> None:
    show(tmp_path, word)
    assert ask(question, tmp_path) == Verdict(word in YES[question], word)


@pytest.mark.parametrize("question", PROBES)
def test_without_a_heart_beat_every_answer_is_no(tmp_path: Path, question: str) -> None:
    file = show(tmp_path, "ready")
    beat = time.time() - LONGEST_SILENCE - 5
    os.utime(file, (beat, beat))
    passed, why = ask(question, tmp_path)
    assert not passed
    assert why == "ready; but no heart-beat for 35 s"


@pytest.mark.parametrize("question", PROBES)
def test_a_heart_beat_of_the_future_is_none(tmp_path: Path, question: str) -> None:
    """The clock was set back; a sidecar that is dead would pass for alive until the clock is there again."""
    file = show(tmp_path, "ready")
    beat = time.time() + 3600
    os.utime(file, (beat, beat))
    passed, why = ask(question, tmp_path)
    assert not passed
    assert "in the future" in why


def test_what_is_waited_for_and_why_it_ended_is_told(tmp_path: Path) -> None:
    show(tmp_path, "waiting", "the broker, the store")
    assert ask("ready", tmp_path) == Verdict(False, "waiting: the broker, the store")


def test_before_any_sidecar_and_without_a_volume(tmp_path: Path) -> None:
    passed, why = ask("live", tmp_path)
    assert not passed
    assert "no sidecar has started" in why
    passed, why = probe("live", {})
    assert not passed
    assert "DATA_VOLUME_PATH" in why


def make_link(file: Path) -> None:
    other = file.with_name("other")
    other.write_text("ready\n", encoding="utf-8")
    file.symlink_to(other)


@pytest.mark.parametrize("make", [make_link, os.mkfifo, Path.mkdir])
def test_what_is_no_file_is_not_read(tmp_path: Path, make: object) -> None:
    (tmp_path / ".iterum-sidecar").mkdir()
    make(tmp_path / ".iterum-sidecar" / "state")  # type: ignore[operator]
    assert not ask("ready", tmp_path).passed


def test_the_exit_code_is_the_answer_and_one_line_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATA_VOLUME_PATH", str(tmp_path))
    show(tmp_path, "waiting", "the store")
    assert main(["probe", "live"]) == 0
    assert main(["probe", "ready"]) == 1
    assert capsys.readouterr().out == "waiting: the store\n" * 2


def test_it_imports_nothing_that_costs(tmp_path: Path) -> None:
    """It runs every few seconds on a fraction of a processor; all of it is some 35 ms of CPU."""
    show(tmp_path, "ready")
    program = (
        "import sys; from iterum_sidecar.cli import main; main(['probe', 'ready']);"
        " print(sorted({'trio', 'msgspec', 'anyio', 'ssl', 'json', 'logging'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "DATA_VOLUME_PATH": str(tmp_path)},
        capture_output=True,
        check=True,
        text=True,
    )
    assert ended.stdout == "ready\n[]\n"
