"""A sidecar and its step, started again when they end as a cluster would do it, looked at, and met by faults."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from iterum_sidecar.exit_codes import ExitCode
from testbed.process import Process
from tests.wire.journey import ROOT, SIDECAR, listens

from .faults import Fault, FaultLog, Kind
from .samples import Sample, sample_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from testbed.step import Step

__all__ = ["Life", "Pod"]

TRANSFORMATION: Final = Path(__file__).with_name("transformation.py")
LOOK_SECONDS: Final = 0.05
SAMPLE_SECONDS: Final = 2.0
#: Seconds that a step has to end after its sidecar is done.
STEP_SECONDS: Final = 20.0
#: Seconds after which a fragment in flight is called stuck: longer than any fault, and what a client waits for by it.
STUCK_SECONDS: Final = 150.0
#: Seconds for which a sidecar that is ready may have nothing in flight while messages wait.
IDLE_SECONDS: Final = 60.0
#: Seconds for which one may not be ready: a broker takes half a minute to start on a machine that is busy, and may be killed again.
WAITING_SECONDS: Final = 150.0
#: Ends that no fault explains, after which it makes no sense to start another sidecar.
MOST_STRANGE: Final = 3
#: What a step is told to do wrong.
WRONGS: Final = {Kind.STEP_GARBAGE: "garbage", Kind.STEP_HALF: "half", Kind.STEP_HANGS: "hang"}
#: What a SIGTERM may end with: the drain takes too long where the broker or the store is away.
STOPPED: Final = {ExitCode.TERMINATED, ExitCode.DRAIN}
#: What may end a sidecar that is at its end when a fault meets it or another one of its step.
AT_THE_END: Final = {ExitCode.WORK_LEFT, ExitCode.TRANSFORMATION_LOST}


@dataclasses.dataclass
class Life:
    """One life of a sidecar."""

    pod: str
    number: int
    process: Process
    began: float
    told: signal.Signals | None = None
    """The signal that a fault has sent, if it was one that ends it."""
    code: int | None = None
    seconds: float = 0.0
    samples: list[Sample] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        """What it is called in the report."""
        return f"{self.pod}-{self.number}"


class Pod:
    """One sidecar after another beside one step after another, in a thread of their own. Use as a context manager.

    `waiting` tells how many messages wait in the input queue, and `finished` whether upstream is finished.
    """

    def __init__(
        self,
        name: str,
        step: Step,
        *,
        sidecar: Mapping[str, str],
        port: int,
        step_arguments: tuple[object, ...],
        directory: Path,
        log: FaultLog,
        waiting: Callable[[], int],
        finished: Callable[[], bool],
    ) -> None:
        self.name = name
        self.lives: list[Life] = []
        self.steps = 0
        """How many times the step was started."""
        self.problems: list[str] = []
        """What may not be, in words."""
        self.done = threading.Event()
        self.injected: list[Kind] = []
        self.longest: dict[str, float] = {}
        """The most seconds that a fragment was seen in each stage."""
        self._step = step
        self._environment = dict(sidecar) | {
            "SIDECAR_HTTP_ADDRESS": f"127.0.0.1:{port}",
            "PYTHONPATH": str(ROOT),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
        }
        self._port = port
        self._command = directory / f"{name}-command"
        self._step_command = [
            sys.executable,
            str(TRANSFORMATION),
            *map(str, step_arguments),
            str(self._command),
        ]
        self._directory = directory
        self._log = log
        self._waiting = waiting
        self._finished = finished
        self._faults: queue.SimpleQueue[Fault] = queue.SimpleQueue()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"pod {name}")
        self._process: Process | None = None
        self._step_is_wanted = True
        self._sampled = self._busy = self._served = time.monotonic()
        self._said_stuck = 0
        self._strange = 0

    @property
    def has_given_up(self) -> bool:
        """Whether its sidecar is not started again, though it is not done."""
        return not self._thread.is_alive() and not self.done.is_set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def meet(self, fault: Fault) -> None:
        """Let a fault happen as soon as those before it have."""
        self._faults.put(fault)

    def forget_faults(self) -> None:
        """Let no more of those happen that have not yet."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._faults.get_nowait()

    def status(self) -> str:
        """Return what the sidecar says of itself, for a person."""
        samples = self.lives[-1].samples if self.lives else []
        return json.dumps(samples[-1].status, indent=1) if samples else "(it has not been asked)"

    @property
    def log(self) -> str:
        """The end of the log of the present sidecar."""
        return self.lives[-1].process.last_lines() if self.lives else ""

    # -- the thread

    def _run(self) -> None:
        try:
            self._start_sidecar()
            while not self._over.is_set() and not self.done.is_set():
                with contextlib.suppress(queue.Empty):
                    self._suffer(self._faults.get(timeout=LOOK_SECONDS))
                self._look()
        except Exception as error:  # it is for the report
            self.problems.append(f"pod {self.name}: {type(error).__name__}: {error}")
        finally:
            for process in (self._process, self.lives[-1].process if self.lives else None):
                if process is not None:
                    process.close()

    def _start_sidecar(self) -> None:
        number = len(self.lives) + 1
        log = self._directory / f"{self.name}-{number}-sidecar.log"
        process = Process(SIDECAR, log=log, environment=self._environment, cwd=self._directory)
        self._busy = self._served = time.monotonic()
        self.lives.append(Life(self.name, number, process, self._busy))

    def _start_step(self) -> None:
        self.steps += 1
        log = self._directory / f"{self.name}-step.log"
        environment = self._step.transformation_environment()
        self._process = Process(
            self._step_command, log=log, environment=environment, cwd=self._directory
        )

    def _look(self) -> None:
        life = self.lives[-1]
        ended = life.process.poll()
        if ended is not None:
            self._at_end(life, ended.code)
            return
        step = None if self._process is None else self._process.poll()
        if step is not None and self._process is not None:
            # One that ended well was told to, and is started again with the next sidecar.
            self._step_is_wanted = step.code != 0
            self._process = None
        sockets = (self._step.input_socket, self._step.output_socket)
        if self._process is None and self._step_is_wanted and all(map(listens, sockets)):
            self._start_step()
        if time.monotonic() - self._sampled >= SAMPLE_SECONDS:
            self._sample(life)

    def _at_end(self, life: Life, code: int) -> None:
        life.code, life.seconds = code, time.monotonic() - life.began
        life.process.close()
        if not self._is_explained(life):
            self._strange += 1
            self.problems.append(
                f"sidecar {life.name} ended with {code}, which no fault explains\n{life.process.last_lines()}"
            )
            if self._strange == MOST_STRANGE:
                self._over.set()
                return
        if code != 0:
            self._start_sidecar()
            self._step_is_wanted = True
            return
        if self._process is not None:
            try:
                self._process.wait(STEP_SECONDS)
            except Exception:  # what it has to say is in its log
                self.problems.append(
                    f"the step of {life.name} goes on after its sidecar was done\n{self._process.last_lines()}"
                )
        self.done.set()

    def _is_explained(self, life: Life) -> bool:
        if life.code == -signal.SIGKILL:
            return life.told is signal.SIGKILL
        if life.code in STOPPED:
            return life.told is signal.SIGTERM
        if life.code == 0 or life.code in AT_THE_END:
            return self._finished()
        return False

    # -- looks

    def _sample(self, life: Life) -> None:
        self._sampled = now = time.monotonic()
        sample = sample_of(life.process.pid, self._port, now - life.began)
        if sample is None:
            return
        life.samples.append(sample)
        fragments = sample.status.get("fragments", [])
        for each in fragments:
            seconds = max(self.longest.get(each["stage"], 0.0), each["seconds_in_stage"])
            self.longest[each["stage"]] = seconds
        if fragments or not self._waiting() or sample.status.get("state") != "ready":
            self._busy = now
        if sample.status.get("state") != "waiting":
            self._served = now
        oldest = max((each["seconds"] for each in fragments), default=0.0)
        if self._said_stuck == life.number:
            return
        if oldest > STUCK_SECONDS:
            self._stuck(life, f"has a fragment in flight for {oldest:.0f} s")
        elif now - self._busy > IDLE_SECONDS:
            self._stuck(life, f"has taken nothing for {now - self._busy:.0f} s")
        elif now - self._served > WAITING_SECONDS:
            self._stuck(
                life, f"has waited for {now - self._served:.0f} s for {sample.status['missing']}"
            )

    def _stuck(self, life: Life, what: str) -> None:
        """Keep what a stuck sidecar says of itself: its next life may hide it."""
        self._said_stuck = life.number
        file = self._directory / f"{life.name}-stuck.json"
        file.write_text(self.status(), encoding="utf-8")
        shutil.copy(life.process.log, self._directory / f"{life.name}-stuck.log")
        self.problems.append(f"sidecar {life.name} {what}; see {file}")

    # -- faults

    def _suffer(self, fault: Fault) -> None:
        life, step = self.lives[-1], self._process
        self._log.note(fault, "begins")
        match fault.kind:
            case Kind.STEP_KILLED:
                self._kill_step()
            case Kind.STEP_STOPPED if step is not None:
                step.signal(signal.SIGSTOP)
                time.sleep(fault.seconds)
                step.signal(signal.SIGCONT)
            case Kind.STEP_GARBAGE | Kind.STEP_HALF | Kind.STEP_HANGS:
                self._command.write_text(WRONGS[fault.kind], encoding="ascii")
            case Kind.SIDECAR_KILLED:
                self._end_sidecar(life, signal.SIGKILL)
            case Kind.POD_KILLED:
                self._end_sidecar(life, signal.SIGKILL)
                self._kill_step()
            case Kind.SIDECAR_TOLD:
                self._end_sidecar(life, signal.SIGTERM)
            case Kind.SIDECAR_STOPPED:
                life.process.signal(signal.SIGSTOP)
                time.sleep(fault.seconds)
                life.process.signal(signal.SIGCONT)
            case _:
                return
        self.injected.append(fault.kind)

    def _kill_step(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGKILL)

    def _end_sidecar(self, life: Life, number: signal.Signals) -> None:
        if life.process.poll() is None:
            # One that drains may be killed; one that was killed hears nothing more.
            life.told = number if life.told is not signal.SIGKILL else life.told
            life.process.signal(number)
            if number is signal.SIGKILL:
                life.process.wait(10)
