"""A step as a process of its own, beside a sidecar."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["STEPS", "StepProcess", "step_process"]

STEPS = Path(__file__).with_name("steps.py")


class StepProcess:
    """A running step, and what it has written to its standard error."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self.log = ""
        self._log_changed = trio.Event()
        self._ended = trio.Event()

    async def read_log(self) -> None:
        assert self._process.stderr is not None
        async for data in self._process.stderr:
            self.log += data.decode()
            self._log_changed.set()
            self._log_changed = trio.Event()
        self._ended.set()

    async def until_log_has(self, text: str) -> None:
        while text not in self.log:
            await self._log_changed.wait()

    async def wait(self) -> int:
        """Return its exit code, its log having been read."""
        await self._ended.wait()
        return await self._process.wait()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)


@asynccontextmanager
async def step_process(
    volume: Path, *arguments: str, **environment: str
) -> AsyncIterator[StepProcess]:
    """Run a step of `steps.py`; it is killed at the end if it is still there."""
    process = await trio.lowlevel.open_process(
        [sys.executable, str(STEPS), *arguments],
        stderr=subprocess.PIPE,
        env={
            **os.environ,
            "DATA_VOLUME_PATH": str(volume),
            "TRANSFORMATION_STEP_INPUT": "in.sock",
            "TRANSFORMATION_STEP_OUTPUT": "out.sock",
            **environment,
        },
    )
    step = StepProcess(process)
    try:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(step.read_log)
                yield step
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
                await process.wait()
            assert process.stderr is not None
            await process.stderr.aclose()
