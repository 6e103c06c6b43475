"""How the program may end, and the errors that end it: one exit code for each kind of end."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "CHECK_MEANINGS",
    "DEAD_LETTERS_MEANINGS",
    "LINT_MEANINGS",
    "LOCAL_MEANINGS",
    "NEW_MEANINGS",
    "PROBE_MEANINGS",
    "AddressUnusable",
    "BadConfiguration",
    "DrainDeadlinePassed",
    "ExitCode",
    "ManagerForgot",
    "PrefetchTooSmall",
    "ServiceLost",
    "SidecarError",
    "TransformationLost",
    "TransformationNeverCame",
    "VolumeUnusable",
    "WorkLeft",
]


class ExitCode(IntEnum):
    """The exit codes of `run`. `meaning` is what `--help` and `docs/operating.md` say of each."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Self:
        """Make a member that knows what it means."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    DONE = 0, "this step is done: upstream finished, queue empty, everything settled, kill answered"
    FAULT = 1, "a fault of the sidecar itself; the log has its traceback"
    USAGE = 2, "the command line was not understood"
    CONFIGURATION = 10, "variables are missing or wrong; each is named, nothing was opened"
    VOLUME = (
        11,
        "the volume cannot be used: not there, not writable, full for minutes, a foreign file where a socket belongs",
    )
    SERVICE = (
        12,
        "the broker or the store was lost, or could not be reached in SIDECAR_SERVICE_TIMEOUT",
    )
    TRANSFORMATION_ABSENT = (
        13,
        ("the transformation did not connect within SIDECAR_TRANSFORMATION_START_TIMEOUT"),
    )
    TRANSFORMATION_LOST = (
        14,
        (
            "the transformation left and did not return, did not answer the kill message in time, "
            "or ended with fragments undone"
        ),
    )
    MANAGER = 15, "the manager has forgotten this pipeline"
    DRAIN = (
        16,
        "SIDECAR_DRAIN_SECONDS passed before the drain was over; the rest goes back to the queue",
    )
    WORK_LEFT = (
        17,
        "messages came back to the input queue after the transformation had been told to stop",
    )
    DEAD_LETTERS = 18, "done, with dead letters, and SIDECAR_FAIL_ON_DEAD_LETTERS is set"
    INTERRUPTED = 130, "SIGINT: drained, or ended at once by a second one; not done"
    TERMINATED = 143, "SIGTERM: drained; not done"


#: The exit codes of `local`, and what each means there.
LOCAL_MEANINGS = {
    ExitCode.DONE: "every fragment has gone through every step, and the results are in the output folder",
    ExitCode.FAULT: "a fault of the program itself; logs/run.log has its traceback",
    ExitCode.USAGE: "the command line was not understood",
    ExitCode.CONFIGURATION: "the pipeline file, the input folder or the journal cannot be used; nothing was begun",
    ExitCode.VOLUME: "the output folder cannot be used: not writable, full, or in use by another run",
    ExitCode.TRANSFORMATION_LOST: "a step or the fragmenter cannot go on; what was finished is kept",
    ExitCode.DEAD_LETTERS: "done, but for fragments that failed and were set aside",
    ExitCode.INTERRUPTED: "Ctrl-C: what was in work is finished, or ended at once by a second one; not done",
    ExitCode.TERMINATED: "SIGTERM or SIGHUP: the same",
}

#: The same of `lint`.
LINT_MEANINGS = {
    ExitCode.DONE: "nothing is wrong, or there are warnings alone",
    ExitCode.USAGE: "the command line was not understood",
    ExitCode.CONFIGURATION: "there are errors, or the file cannot be read",
}

#: The same of `new`.
NEW_MEANINGS = {
    ExitCode.DONE: "the folder is made",
    ExitCode.USAGE: "the command line was not understood",
    ExitCode.CONFIGURATION: "the folder cannot be made: its name is none, it has files in it, or it would lie in no folder",
    ExitCode.VOLUME: "the folder cannot be written",
}

#: The same of `check`: the code is that of the first kind of thing in which something failed.
CHECK_MEANINGS = {
    ExitCode.DONE: "nothing failed; there may be warnings, and what could not be looked at",
    ExitCode.FAULT: "a fault of the program itself",
    ExitCode.USAGE: "the command line was not understood",
    ExitCode.CONFIGURATION: "variables are missing or wrong",
    ExitCode.VOLUME: "the volume failed, and no variable",
    ExitCode.SERVICE: "the broker or the store failed, and nothing before them",
    ExitCode.MANAGER: "the manager failed, and nothing else",
}


#: The same of `probe`.
PROBE_MEANINGS = {
    ExitCode.DONE: "yes",
    ExitCode.FAULT: "no; the line that is printed says why",
    ExitCode.USAGE: "the command line was not understood",
}

#: The same of `dead-letters`.
DEAD_LETTERS_MEANINGS = {
    ExitCode.DONE: "done; also where there is no dead letter, or no queue for any, to list",
    ExitCode.FAULT: "not done, or not all: none fits, an ID is none or that of several, a queue is not there or full, the answer was"
    " no; or a fault of the program itself",
    ExitCode.USAGE: "the command line was not understood, or says not which dead letters",
    ExitCode.CONFIGURATION: "variables are missing or wrong",
    ExitCode.VOLUME: "the file of --save cannot be written; nothing was discarded",
    ExitCode.SERVICE: "the broker could not be reached, refused us, or was lost",
    ExitCode.INTERRUPTED: "SIGINT: what was done until then is told",
    ExitCode.TERMINATED: "SIGTERM: the same",
}


class SidecarError(Exception):
    """An end of the program with a message for its operator and an exit code of its own.

    `retryable` tells whether a new start of the same pod may succeed with nothing else changed.
    """

    exit_code: ExitCode = ExitCode.FAULT
    retryable: bool = True


class BadConfiguration(SidecarError):
    """Variables are missing or wrong; `problems` has one line for each."""

    exit_code = ExitCode.CONFIGURATION
    retryable = False

    def __init__(self, problems: list[str]) -> None:
        super().__init__("bad configuration:\n" + "\n".join(f"  {problem}" for problem in problems))
        self.problems = problems


class AddressUnusable(SidecarError):
    """Probes and metrics cannot be served where SIDECAR_HTTP_ADDRESS says."""

    exit_code = ExitCode.CONFIGURATION
    retryable = False


class PrefetchTooSmall(SidecarError):
    """The transformation gathers `gathered` fragments at a time, and `window` may be in flight, so that no batch is ever complete."""

    exit_code = ExitCode.CONFIGURATION
    retryable = False

    def __init__(self, gathered: int, window: int) -> None:
        super().__init__(
            f"the transformation gathers {gathered} fragments at a time, and MQ_PREFETCH_COUNT is {window}:"
            f" set it to {gathered} or more, or leave it unset"
        )
        self.gathered = gathered
        self.window = window


class VolumeUnusable(SidecarError):
    """The volume cannot be used as it is."""

    exit_code = ExitCode.VOLUME
    retryable = False


class ServiceLost(SidecarError):
    """The broker or the store went away, or did not come in time."""

    exit_code = ExitCode.SERVICE


class TransformationNeverCame(SidecarError):
    """The transformation did not connect in time."""

    exit_code = ExitCode.TRANSFORMATION_ABSENT


class TransformationLost(SidecarError):
    """The transformation left with work unfinished, or did not answer the kill message."""

    exit_code = ExitCode.TRANSFORMATION_LOST


class ManagerForgot(SidecarError):
    """The manager answered for this pipeline once and has not known it for a long time since."""

    exit_code = ExitCode.MANAGER


class DrainDeadlinePassed(SidecarError):
    """The drain took longer than `SIDECAR_DRAIN_SECONDS`."""

    exit_code = ExitCode.DRAIN


class WorkLeft(SidecarError):
    """Messages came back to the input queue when the transformation could take no more."""

    exit_code = ExitCode.WORK_LEFT
