"""What the other tests stand on: children that end with us, and servers that say what is missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from testbed.process import ProcessFailed, running, wait_until
from testbed.rabbitmq import RabbitMQMissing, running_rabbitmq

from .journey import ROOT

if TYPE_CHECKING:
    from pathlib import Path

OWNER = """
import sys, time
from pathlib import Path
from testbed.process import running
# The second process leaves the first one's session and parent, as a daemon does.
script = "setsid sleep 1000 & echo $! > daemon; echo $$ > child; exec sleep 1000"
with running(["sh", "-c", script], log=Path("log"), cwd=Path.cwd()) as child:
    print("started", flush=True)
    time.sleep(1000)
"""


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def read_number(path: Path) -> int:
    wait_until(
        lambda: path.exists() and path.read_text(), seconds=10, what=f"{path.name} to be written"
    )
    return int(path.read_text())


def test_children_end_with_an_owner_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"started\n"
        children = [read_number(tmp_path / name) for name in ("child", "daemon")]
        assert all(map(is_alive, children))
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    wait_until(lambda: not any(map(is_alive, children)), seconds=10, what="the children to be gone")


def test_an_exit_tells_code_time_and_memory(tmp_path: Path) -> None:
    script = "import sys; data = bytearray(50_000_000); data[::4096] = data[::4096]; sys.exit(7)"
    with running([sys.executable, "-c", script], log=tmp_path / "log") as child:
        ended = child.wait(20)
    assert ended.code == 7
    assert ended.cpu_seconds > 0
    assert 50_000_000 < ended.peak_memory < 100_000_000


def test_a_signal_is_an_exit_code_below_zero(tmp_path: Path) -> None:
    with running(["sleep", "1000"], log=tmp_path / "log") as child:
        child.signal(signal.SIGTERM)
        assert child.wait(10).code == -signal.SIGTERM


def test_a_child_that_fails_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with (
        running(["sh", "-c", "echo the reason; exit 3"], log=tmp_path / "log") as child,
        pytest.raises(ProcessFailed, match=r"(?s)ended with 3 before it was up.*the reason"),
    ):
        child.wait_until(lambda: False, seconds=10, what="it was up")


def test_no_rabbitmq_is_one_line_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RabbitMQMissing) as caught, running_rabbitmq(tmp_path / "rabbitmq"):
        pytest.fail("there is none")
    assert "rabbitmq-server" in str(caught.value)
    assert "\n" not in str(caught.value)
