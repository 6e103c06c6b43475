"""Child processes that cannot outlive us, with a log, an exit code and what the kernel counted for them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pwd
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["Exit", "Process", "ProcessFailed", "running", "wait_until"]

GUARDIAN = Path(__file__).with_name("guardian.py")
POLL_SECONDS = 0.01
LINES_SHOWN = 30


class ProcessFailed(Exception):
    """A child did not do what was waited for; the message ends with the last lines of its log."""


@dataclasses.dataclass(frozen=True)
class Exit:
    """How a child ended: its exit code (negative: the signal), CPU seconds and peak memory in bytes."""

    code: int
    user_seconds: float
    system_seconds: float
    peak_memory: int

    @property
    def cpu_seconds(self) -> float:
        """CPU time in user and kernel mode together."""
        return self.user_seconds + self.system_seconds


def wait_until(condition: Callable[[], object], *, seconds: float, what: str) -> None:
    """Ask again and again until the condition is true, or raise TimeoutError naming what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(POLL_SECONDS)


class Process:
    """A child in a session of its own. Use `running`, which also ends it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
    ) -> None:
        self.name = Path(command[0]).name
        self.log = log
        self._exit: Exit | None = None
        self._received = b""
        account = pwd.getpwnam(user) if user is not None else None
        specification = {
            "command": list(command),
            "log": str(log),
            "cwd": str(cwd or Path.cwd()),
            "user": None if account is None else [account.pw_uid, account.pw_gid],
        }
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", str(GUARDIAN), json.dumps(specification)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=dict(os.environ if environment is None else environment),
            start_new_session=True,
        )
        first = self._next_line(deadline=time.monotonic() + 30)
        if first is None:
            self.close()
            raise ProcessFailed(f"{self.name} could not be started")
        self.pid: int = first["pid"]

    def _next_line(self, deadline: float | None) -> dict[str, Any] | None:
        """Return the guardian's next line; None when the deadline passes first or the guardian is gone."""
        assert self._guardian.stdout is not None
        while b"\n" not in self._received:
            patience = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._guardian.stdout], [], [], patience)[0]:
                return None
            data = self._guardian.stdout.read(4096)
            if not data:
                return None
            self._received += data
        line, self._received = self._received.split(b"\n", 1)
        parsed: dict[str, Any] = json.loads(line)
        return parsed

    def poll(self) -> Exit | None:
        """Return how the child ended, or None while it runs."""
        return self._look(time.monotonic())

    def _look(self, deadline: float | None) -> Exit | None:
        if self._exit is None and (line := self._next_line(deadline)) is not None:
            self._exit = Exit(line["code"], line["user"], line["system"], line["memory"])
        return self._exit

    def wait(self, seconds: float) -> Exit:
        """Return how the child ended, waiting for that; raise ProcessFailed when it still runs then."""
        ended = self._look(time.monotonic() + seconds)
        if ended is None:
            raise ProcessFailed(f"{self.name} still runs after {seconds:g} s\n{self.last_lines()}")
        return ended

    def signal(self, number: int) -> None:
        """Send the child a signal; nothing happens when it has ended."""
        assert self._guardian.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._guardian.stdin.write(f"{int(number)}\n".encode())

    def peak_memory(self) -> int:
        """Return the most memory that the child has had resident since its program began, in bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise ProcessFailed(f"{self.name} has ended")

    def log_text(self) -> str:
        """Return everything that the child has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def last_lines(self) -> str:
        """Return the end of the log, for an error message."""
        lines = self.log_text().splitlines()[-LINES_SHOWN:]
        return "\n".join(f"  | {line}" for line in lines) or "  | (its log is empty)"

    def wait_until(self, condition: Callable[[], object], *, seconds: float, what: str) -> None:
        """Wait until the condition is true; raise ProcessFailed when the child ends before that, or time does."""

        def ended_or_true() -> bool:
            return bool(condition()) or self.poll() is not None

        try:
            wait_until(ended_or_true, seconds=seconds, what=what)
        except TimeoutError as error:
            raise ProcessFailed(f"{self.name}: {error}\n{self.last_lines()}") from None
        if self._exit is not None and not condition():
            raise ProcessFailed(
                f"{self.name} ended with {self._exit.code} before {what}\n{self.last_lines()}"
            )

    def close(self) -> None:
        """Kill the child and all that descends from it, and wait until they are gone."""
        assert self._guardian.stdin is not None
        assert self._guardian.stdout is not None
        self._guardian.stdin.close()
        self._guardian.wait()
        self._guardian.stdout.close()


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user: str | None = None,
) -> Iterator[Process]:
    """Run a command with its output in a log file; kill it, and what it has started, at the end of the block.

    `environment` is the whole environment of the child (ours by default). `user` is a name to run it as, for
    which we must be root.
    """
    process = Process(command, log=log, environment=environment, cwd=cwd, user=user)
    try:
        yield process
    finally:
        process.close()
