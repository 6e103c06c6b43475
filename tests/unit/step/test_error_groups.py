"""Errors that come in a group: the reason names what went wrong, and an exit is the exit that was asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from iterum_sidecar.step.calling import describe

STEP = """\
import anyio
from iterum_sidecar.step import transform

@transform
async def leave(fragment):
    async with anyio.create_task_group() as group:
        group.start_soon(end)

async def end():
    raise SystemExit(7)

leave.run(backend="{backend}")
"""


def fail() -> None:
    """Somewhere for an error to come from."""
    raise ExceptionGroup("unhandled errors", [ExceptionGroup("inner", [ValueError("no cat")])])


def test_a_group_of_one_is_told_as_the_one() -> None:
    with pytest.RaisesGroup(pytest.RaisesGroup(ValueError)) as caught:
        fail()
    assert describe(caught.value, fail).startswith("ValueError: no cat (")


def test_a_group_of_several_is_told_as_the_first_and_their_number() -> None:
    group = ExceptionGroup("", [ValueError("a"), ExceptionGroup("", [KeyError("b"), OSError()])])
    assert describe(group, fail).startswith("ValueError: a and 2 more (")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_exit_in_a_task_of_the_step_has_its_own_code(backend: str, tmp_path: Path) -> None:
    import json
    import socket

    from iterum_sidecar.framing import encode_frame

    (tmp_path / "step.py").write_text(STEP.format(backend=backend))
    file = tmp_path / "a.txt"
    file.write_text("x")
    with socket.socket(socket.AF_UNIX) as inputs, socket.socket(socket.AF_UNIX) as outputs:
        for listener, name in ((inputs, "i.sock"), (outputs, "o.sock")):
            listener.bind(str(tmp_path / name))
            listener.listen()
        with subprocess.Popen(
            [sys.executable, str(tmp_path / "step.py")],
            env={
                "DATA_VOLUME_PATH": str(tmp_path),
                "TRANSFORMATION_STEP_INPUT": "i.sock",
                "TRANSFORMATION_STEP_OUTPUT": "o.sock",
                "PYTHONPATH": str(Path(__file__).parents[3]),
            },
            stderr=subprocess.PIPE,
        ) as process:
            connection, _ = inputs.accept()
            with connection:
                fragment = {
                    "files": [{"name": "a.txt", "path": str(file)}],
                    "metadata": {"fragment_id": "a" * 64, "predecessors": []},
                }
                connection.sendall(encode_frame(json.dumps(fragment).encode()))
                _, told = process.communicate(timeout=30)
            assert process.returncode == 7, told.decode()
            assert b"Traceback" not in told
