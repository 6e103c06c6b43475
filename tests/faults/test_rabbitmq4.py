"""The testbed's RabbitMQ 4: it leaves nothing behind however its owner ends, and says what it lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed import rabbitmq4
from testbed.ports import accepts_connections
from testbed.process import wait_until
from testbed.rabbitmq import RabbitMQMissing
from tests.wire.journey import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from testbed.rabbitmq import RabbitMQ

OWNER = """
import sys, time
from pathlib import Path
from testbed.rabbitmq4 import running_rabbitmq4
with running_rabbitmq4(Path(sys.argv[1])) as broker:
    print(broker.port, flush=True)
    time.sleep(1000)
"""


def test_it_ends_with_an_owner_that_is_killed_and_nothing_stays_mounted(
    session_directory: Path, unique: str
) -> None:
    directory = session_directory / f"rabbitmq-{unique}"
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(directory)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    ) as owner:
        assert owner.stdout is not None
        port = int(owner.stdout.readline())
        process = int((directory / "data" / "pid").read_text(encoding="ascii"))
        owner.kill()
        owner.wait()
    wait_until(lambda: not Path(f"/proc/{process}").exists(), seconds=10, what="it to be gone")
    assert not accepts_connections(port)
    assert str(rabbitmq4.find_tree()) not in Path("/proc/self/mounts").read_text("utf-8")


def test_it_is_what_its_name_says(broker_named: Callable[[str], RabbitMQ]) -> None:
    assert broker_named("4.3").ctl("version").startswith("4.")
    assert broker_named("3.10").ctl("version").startswith("3.")


def test_a_tree_that_cannot_be_made_is_one_message_that_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "ensure"
    script.write_text("#!/bin/sh\necho no such release >&2\nexit 1\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(rabbitmq4, "ENSURE", script)
    with pytest.raises(RabbitMQMissing, match="cannot be had: no such release"):
        rabbitmq4.find_tree()


def test_whoever_is_not_root_is_told_that_it_takes_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    with pytest.raises(RabbitMQMissing, match="takes root"):
        rabbitmq4.find_tree()
