"""Run one child for a parent, and see to it that the child does not outlive the parent.

This file is a program, started by `process.py` with a JSON specification as its only argument. It imports
little, because it is started once for each child; the child inherits its environment. Its standard input is the parent's life line: a line there
is the number of a signal for the child; the end of it means that the parent is gone, however it went, and
then everything that descends from the child is killed. Its standard output tells the parent the child's
process ID first and, in the end, its exit code and what the kernel has counted.

The guardian is a subreaper, so that a descendant that left the child's session (daemons do) is still its to
find and to end. The child asks for a signal at its parent's death as well, which serves when someone kills
the guardian itself; alone that would not be enough, since a change of user clears it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def prctl(option: int, value: int) -> None:
    """Call prctl(2) for this process."""
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def become(specification: dict[str, Any], guardian: int) -> NoReturn:
    """Turn this forked process into the child."""
    try:
        os.setsid()
        log = os.open(specification["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, 256)
        if specification["user"] is not None:
            uid, gid = specification["user"]
            os.setgroups([gid])
            os.setgid(gid)
            os.setuid(uid)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guardian:
            os._exit(127)
        os.chdir(specification["cwd"])
        command: list[str] = specification["command"]
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{specification['command'][0]}: {error}\n".encode())
    os._exit(127)


def children_of(process: int) -> list[int]:
    """Return the process IDs of the direct children of a process.

    By /proc/*/stat: the list that /proc keeps for each task is an option of the kernel (CONFIG_PROC_CHILDREN).
    """
    children = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                # Behind the name of the program, which may hold anything: state, parent.
                _, parent, *_ = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(parent) == process:
            children.append(int(name))
    return children


def end_descendants(child: int) -> None:
    """Kill the child's process group, then whatever came to be a child of ours, until nothing is left."""
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    while remaining := children_of(os.getpid()):
        for process in remaining:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def tell(message: dict[str, Any]) -> None:
    """Write one line to the parent, who may be gone."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(message).encode() + b"\n")


def watch(child: int, ended: int) -> bool:
    """Forward signals until the child ends (True) or the parent is gone (False).

    `ended` is the child's process file descriptor. A child that has ended is not reaped here, so its ID cannot
    become another process's while a signal is on its way to it.
    """
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(ended, select.POLLIN)
    rest = b""
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if ended in ready:
            return True
        data = os.read(0, 4096)
        if not data:
            return False
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            os.kill(child, int(line))


def main() -> None:
    """Run the child that the specification describes."""
    specification: dict[str, Any] = json.loads(sys.argv[1])
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    guardian = os.getpid()
    child = os.fork()
    if child == 0:
        for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(ignored, signal.SIG_DFL)
        become(specification, guardian)
    # Only now: a child that was born with them ignored would lose a signal that comes before it has changed that.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    ended = os.pidfd_open(child)
    tell({"pid": child})
    if not watch(child, ended):
        end_descendants(child)
        return
    _, status, usage = os.wait4(child, 0)
    end_descendants(child)
    tell(
        {
            "code": os.waitstatus_to_exitcode(status),
            "user": usage.ru_utime,
            "system": usage.ru_stime,
            "memory": usage.ru_maxrss * 1024,
        }
    )


if __name__ == "__main__":
    main()
