"""A plain step starts fast: what it does not need is not imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.unit.step.processes import STEPS

OTHERS = {"trio", "httpx2", "pamqp", "httptools", "sniffio"}


def modules_after(program: str) -> set[str]:
    """Return the packages that a new process has imported."""
    whole = f"{program}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_it_imports_neither_an_event_loop_nor_the_sidecar() -> None:
    before = modules_after("import msgspec")
    program = "import iterum_sidecar.step, iterum_sidecar.step.blocking"
    imported = modules_after(program) - before
    assert not imported & (OTHERS | {"asyncio", "anyio", "threading"})
    foreign = imported - sys.stdlib_module_names - {"iterum_sidecar"}
    assert foreign == set()
    ours = (
        f"{program}\nimport sys\n"
        "print(*{'.'.join(name.split('.')[:2]) for name in sys.modules if name.startswith('iterum_sidecar.')})"
    )
    assert {each for each in modules_after(ours) if each.startswith("iterum_sidecar.")} == {
        "iterum_sidecar.step",
        "iterum_sidecar.messages",
        "iterum_sidecar.framing",
    }


def test_an_async_step_imports_anyio_and_no_more() -> None:
    imported = modules_after("import iterum_sidecar.step, iterum_sidecar.step.on_anyio")
    assert "anyio" in imported
    assert not imported & {"httpx2", "pamqp", "httptools"}


@pytest.mark.parametrize("arguments", [["upper"], ["awaited"]])
def test_a_step_without_a_sidecar_ends_with_one_message(arguments: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, str(STEPS), *arguments],
        capture_output=True,
        text=True,
        env={},
        check=False,
    )
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert f"run_on({arguments[0]}, 'FILE')" in run.stderr
