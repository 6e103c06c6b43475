"""Run the steps' programs for a local run, and see to it that none outlives the run, however that ends.

This file is a program of its own, started once for a run by `processes.py`; it imports only what it must, because the
run waits for it. Its standard input is one end of a socket pair, its line to the run. Frames go both ways on it, a
4-byte little-endian length and then the frame; a frame of the run is fields with a NUL between them, one of the
answers is words with a space between them:

    start REQUEST DIRECTORY LOG COUNT WORD... NAME=VALUE...    ->  started REQUEST PID
                                                                   failed REQUEST ERRNO log|directory|command
                                                                   exited REQUEST CODE    (-9: by signal 9)
    signal REQUEST NUMBER                                          (to the program's group, if it still runs)

A program goes by the number of its request, which is given once: a process ID may be another's soon after its exit,
and a signal that was sent before the exit was read would reach that.

The end of the line, for whatever reason, is the end of all programs: SIGTERM to their groups, 2 s of patience, then
SIGKILL to everything that descends from them. Nothing that the run does or leaves undone can block this.

Each program has a session of its own, standard input from /dev/null, both outputs in its log, every signal at its
default, and no other file open. When it has exited, what is left of its session is killed before its exit is told: a
forgotten background process would hold the step's volume. One that has made a session of its own (a daemon) is found
at the end of the run only, and only by /proc, without which no run begins. One that hides what is other users'
(hidepid) serves as well, but for daemons that forbid tracing: it hides those from their own user too.

There are two processes, so that not even SIGKILL lets a program escape. The worker does what is said above. The
keeper, its parent, does nothing but wait: if the worker is killed, all that descended from it becomes the keeper's,
who kills it; if the keeper is killed, the worker takes that for the end of its line. If someone kills both in one
moment, the kernel still kills the programs at their parent's death, though not what these have started.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import time

# The name that type checkers know, without the import that costs more than all of the others.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

PROC = "/proc"
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

LINE = 0
LENGTH_SIZE = 4
READ_SIZE = 64 * 1024
#: Seconds that programs have to end after SIGTERM (`podman run` passes it on to its container and waits), and those
#: that the processes of a user whom we may not signal have after SIGKILL to all others.
TERM_PATIENCE = 2.0
KILL_PATIENCE = 1.0
#: Seconds between two looks at a session whose processes have been killed and are not gone yet.
LOOK_AGAIN = 0.02

libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """Call prctl(2) for this process."""
    number = ctypes.c_ulong
    if libc.prctl(option, number(value), number(0), number(0), number(0)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def send(process: int, number: int, *, group: bool = False) -> bool:
    """Send a signal to a process or to a process group; say whether there was one that we may signal."""
    try:
        (os.killpg if group else os.kill)(process, number)
    except OSError:
        return False
    return True


def proc_is_ours() -> bool:
    """Say whether /proc is there and shows this PID namespace; the numbers of another mean other processes."""
    try:
        return os.readlink(f"{PROC}/self") == str(os.getpid())
    except OSError:
        return False


def processes() -> Iterator[tuple[int, bytes, int, int, int]]:
    """Yield ID, state, parent, group and session of every process that /proc shows, the newest first as a rule.

    Some processes live so short that they are gone when others have been looked at before them. None if /proc is not ours.
    """
    try:
        names = os.listdir(PROC) if proc_is_ours() else []
    except OSError:
        names = []
    for process in sorted(map(int, filter(str.isdecimal, names)), reverse=True):
        try:
            file = os.open(f"{PROC}/{process}/stat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            status = os.read(file, 4096)
        except OSError:
            continue
        finally:
            os.close(file)
        # The second field is a name in parentheses, with any bytes in it.
        state, parent, group, session = status.rpartition(b")")[2].split(maxsplit=4)[:4]
        yield process, state, int(parent), int(group), int(session)


def kill_sessions(leaders: set[int]) -> set[int]:
    """Kill whatever is in the sessions of these processes; return the leaders whose sessions live on yet.

    The leaders have exited and are not reaped, which keeps their numbers theirs.
    """
    for leader in leaders:
        send(leader, signal.SIGKILL, group=True)
    alive = set()
    for process, state, _, _, session in processes():
        # A signal does nothing to a zombie, except where only its first thread is one.
        if session in leaders and send(process, signal.SIGKILL) and state not in b"ZX":
            alive.add(session)
    return alive


def kill_children() -> bool:
    """Kill all children of this process, with their groups; say whether there was one that we may kill.

    Their own children then become ours. Only children are killed by number: one that is not reaped cannot have
    become another process in the meantime. A group is killed at once, so a member that forks cannot outrun it.
    """
    this, our_group = os.getpid(), os.getpgrp()
    found = False
    for process, state, parent, group, _ in processes():
        if parent == this and send(process, signal.SIGKILL):
            found = found or state not in b"ZX"
            if group != our_group:
                send(group, signal.SIGKILL, group=True)
    return found


def end_descendants() -> None:
    """Kill children, and what becomes a child by that, until there is none (or none that we may kill)."""
    give_up = time.monotonic() + KILL_PATIENCE
    try:
        while time.monotonic() < give_up:
            reaped, _ = os.waitpid(-1, os.WNOHANG)
            if not reaped and kill_children():
                reaped, _ = os.waitpid(-1, 0)
            if reaped:
                give_up = time.monotonic() + KILL_PATIENCE
            else:
                time.sleep(LOOK_AGAIN)
    except ChildProcessError:
        return


def has_exited(child: int) -> bool:
    """Say whether a child has exited, without reaping it."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def become(fields: list[bytes], report: int, parent: int) -> NoReturn:
    """Turn this forked process into a program; write to `report` why it cannot be.

    `fields` are those of a start request from DIRECTORY on.
    """
    what = b"command"
    try:
        directory, log, count, *rest = fields
        words = rest[: int(count)]
        environment = dict(entry.split(b"=", 1) for entry in rest[int(count) :])
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(127)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        what = b"log"
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        what = b"directory"
        os.chdir(directory)
        what = b"command"
        os.execvpe(words[0], words, environment)
    except OSError as error:
        os.write(report, b"%d %s" % (error.errno or errno.EIO, what))
    finally:
        os._exit(127)


class Worker:
    """The process that is the parent of all programs; `keeper` is a pipe that ends when its own parent does."""

    def __init__(self, keeper: int) -> None:
        #: The process of each request.
        self.children: dict[bytes, int] = {}
        #: The requests whose programs are not known to run yet, by the pipe that says so.
        self.starting: dict[int, bytes] = {}
        #: The requests whose process could not become a program; its exit is no one's business.
        self.failed: set[bytes] = set()
        self.line_ended = False
        #: Whether the run must not take what happens now for what its programs did: the keeper has been killed.
        self.silent = False
        #: Whether there are programs that have exited and have something left in their session.
        self.lingering = False
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.keeper = keeper
        self.woken, waker = os.pipe()
        os.set_blocking(self.woken, False)
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.poll = select.poll()
        for descriptor in (LINE, keeper, self.woken):
            self.poll.register(descriptor, select.POLLIN)

    def run(self) -> None:
        """Do what comes down the line until it ends, then end all programs."""
        while not self.line_ended:
            self.turn(LOOK_AGAIN if self.lingering else None)
        self.poll.unregister(LINE)
        self.poll.unregister(self.keeper)
        # What is no program yet has nothing to clean up, and may still ignore SIGTERM as this process does.
        for request in self.starting.values():
            send(self.children[request], signal.SIGKILL)
        self.signal_all(signal.SIGTERM)
        # One that is stopped would not notice.
        self.signal_all(signal.SIGCONT)
        self.turn_until_none_is_left(TERM_PATIENCE)
        self.signal_all(signal.SIGKILL)
        self.turn_until_none_is_left(KILL_PATIENCE)
        self.poll.register(LINE, select.POLLOUT)
        deadline = time.monotonic() + KILL_PATIENCE
        while self.outbox and (left := deadline - time.monotonic()) > 0:
            self.turn(left)

    def turn_until_none_is_left(self, seconds: float) -> None:
        """Wait until all programs have exited, for some seconds at most."""
        deadline = time.monotonic() + seconds
        while self.children and (left := deadline - time.monotonic()) > 0:
            self.turn(min(left, LOOK_AGAIN) if self.lingering else left)

    def signal_all(self, number: int) -> None:
        """Send a signal to the groups of all programs."""
        for process in self.children.values():
            # One that was forked a moment ago may have no group of its own yet.
            if not send(process, number, group=True):
                send(process, number)

    def turn(self, seconds: float | None) -> None:
        """Wait for something to happen, some seconds at most, and do what there is to do."""
        for descriptor, events in self.poll.poll(None if seconds is None else seconds * 1000):
            if descriptor == LINE:
                if events & ~select.POLLOUT:
                    self.read()
            elif descriptor == self.keeper:
                self.line_ended = self.silent = True
            elif descriptor == self.woken:
                os.read(self.woken, READ_SIZE)
            else:
                self.see_start(descriptor)
        self.reap()
        self.write()

    # -- the line

    def read(self) -> None:
        """Read from the line, and do what is asked."""
        try:
            data = os.read(LINE, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.line_ended = True
        self.inbox += data
        while (end := LENGTH_SIZE + int.from_bytes(self.inbox[:LENGTH_SIZE], "little")) <= len(
            self.inbox
        ):
            verb, *fields = bytes(self.inbox[LENGTH_SIZE:end]).split(b"\0")
            del self.inbox[:end]
            if verb == b"start":
                self.start(fields)
            elif fields[0] in self.children:
                send(self.children[fields[0]], int(fields[1]), group=True)

    def tell(self, answer: bytes) -> None:
        """Put a frame for the run into the outbox: it may read when it likes, or never."""
        if not self.silent:
            self.outbox += len(answer).to_bytes(LENGTH_SIZE, "little") + answer

    def write(self) -> None:
        """Write as much of the outbox as the line takes."""
        try:
            while self.outbox:
                del self.outbox[: os.write(LINE, self.outbox)]
        except BlockingIOError:
            pass
        except OSError:
            self.outbox.clear()
        if not self.line_ended:
            self.poll.modify(LINE, select.POLLIN | (select.POLLOUT if self.outbox else 0))

    # -- the programs

    def start(self, fields: list[bytes]) -> None:
        """Fork a process that is to become a program."""
        request = fields[0]
        try:
            said, report = os.pipe()
        except OSError as error:
            self.tell_failure(request, error)
            return
        parent = os.getpid()
        try:
            process = os.fork()
        except OSError as error:
            self.tell_failure(request, error)
            os.close(said)
        else:
            if process == 0:
                become(fields[1:], report, parent)
            self.children[request] = process
            self.starting[said] = request
            self.poll.register(said, select.POLLIN)
        finally:
            os.close(report)

    def tell_failure(self, request: bytes, error: OSError) -> None:
        """Tell that there is not even a process."""
        self.tell(b"failed %s %d command" % (request, error.errno or errno.EAGAIN))

    def see_start(self, said: int) -> None:
        """Tell that a process has become a program, which closes its pipe, or why it could not."""
        request = self.starting.pop(said)
        reason = os.read(said, READ_SIZE)
        self.poll.unregister(said)
        os.close(said)
        if reason:
            self.failed.add(request)
            self.tell(b"failed %s %s" % (request, reason))
        else:
            self.tell(b"started %s %d" % (request, self.children[request]))

    def reap(self) -> None:
        """Reap what has exited, and tell of each program of which nothing is left."""
        unknown = set(self.starting.values())
        ended = {
            request: process
            for request, process in self.children.items()
            if request not in unknown and has_exited(process)
        }
        alive = kill_sessions(set(ended.values())) if ended else set()
        self.lingering = bool(alive)
        for request, process in ended.items():
            if process in alive:
                continue
            _, status = os.waitpid(process, 0)
            del self.children[request]
            if request in self.failed:
                self.failed.remove(request)
            else:
                self.tell(b"exited %s %d" % (request, os.waitstatus_to_exitcode(status)))
        try:
            # Orphans: up to the first program that has exited meanwhile, which is for the next turn.
            while orphan := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if orphan.si_pid in self.children.values():
                    break
                os.waitpid(orphan.si_pid, 0)
        except ChildProcessError:
            pass


def main() -> None:
    """Serve the run at the other end of the line, and end with it."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    os.set_blocking(LINE, False)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    # No process file descriptor: kernels before 5.3 have none, and PyPy.
    keeper, held = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(held)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        Worker(keeper).run()
    else:
        os.waitpid(worker, 0)
    end_descendants()


if __name__ == "__main__":
    main()
