"""A SIGTERM at any moment ends a sidecar, even where the kernel spares it: as the first process of a container."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Ignores SIGTERM, as it is for a first process, and has a pod that is told to stop when it pleases.
PROGRAM = """
import os, signal, sys, types
signal.signal(signal.SIGTERM, signal.SIG_IGN)
from iterum_sidecar.__main__ import main
from iterum_sidecar.early_stop import receive_instead

def run_in_pod(environment):
    {moment}
    os.kill(os.getpid(), signal.SIGTERM)
    return 7

sys.modules["iterum_sidecar.pod"] = types.SimpleNamespace(run_in_pod=run_in_pod)
sys.argv = ["iterum-sidecar", "run"]
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("moment", "code", "said"),
    [
        ("pass", 143, "told to stop before anything was begun\n"),
        ("receive_instead()", 7, ""),
    ],
    ids=["before signals are received", "after"],
)
def test_a_sigterm_outside_the_work(moment: str, code: int, said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(moment=moment)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (code, said)
