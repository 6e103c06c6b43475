from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pytest

from iterum_sidecar.local import subreaper
from tests.unit.local.processes.places import (
    DAEMON,
    FOREVER,
    Pipe,
    Place,
    a_line,
    answers,
    parent_of,
    python,
    request,
    signal_to,
)


async def test_a_run_that_does_not_read_hinders_nothing(
    line: socket.socket, place: Place, pipe: Pipe
) -> None:
    for number in range(100):
        line.sendall(request(number, ["/no/such/command"], place.log))
    line.sendall(request(100, ["/bin/sh", "-c", "echo served; exec sleep 60"], pipe.path))
    await pipe.says(b"served")
    told = sorted(
        (words[:2] for words in islice(answers(line), 101)), key=lambda each: int(each[1])
    )
    assert told == [*([b"failed", b"%d" % n] for n in range(100)), [b"started", b"100"]]


async def test_everything_ends_with_a_line_whose_answers_no_one_reads(
    line: socket.socket, place: Place, pipe: Pipe
) -> None:
    for number in range(100):
        line.sendall(request(number, ["/no/such/command"], place.log))
    line.sendall(request(100, python(DAEMON, FOREVER), pipe.path))
    await pipe.says(b"daemon")
    line.shutdown(socket.SHUT_WR)
    await pipe.is_let_go()


async def test_a_request_may_come_in_pieces(line: socket.socket, place: Place, pipe: Pipe) -> None:
    for byte in request(1, ["/bin/sh", "-c", "echo served"], pipe.path):
        line.sendall(bytes([byte]))
    await pipe.says(b"served")


def test_a_signal_that_comes_too_late_does_not_reach_the_next_of_the_same_process_id(
    line: socket.socket, place: Place
) -> None:
    said = answers(line)
    line.sendall(request(1, ["/bin/true"], place.log))
    verb, _, process = next(said)
    assert (verb, next(said)) == (b"started", [b"exited", b"1", b"0"])
    with suppress(OSError):
        # Where we may, we see to it that the next has this number.
        Path("/proc/sys/kernel/ns_last_pid").write_text(f"{int(process) - 1}")
    line.sendall(request(2, ["/bin/sleep", "60"], place.log))
    assert next(said)[:2] == [b"started", b"2"]
    line.sendall(signal_to(1, signal.SIGKILL) + signal_to(2, signal.SIGTERM))
    assert next(said) == [b"exited", b"2", b"-15"]


@pytest.mark.parametrize("victim", ["worker", "keeper"])
async def test_no_process_file_descriptors_are_needed(
    place: Place, pipe: Pipe, victim: str
) -> None:
    # Neither kernels before 5.3 nor PyPy have them.
    program = (
        "import os, runpy, sys; del os.pidfd_open; runpy.run_path(sys.argv[1], run_name='__main__')"
    )
    with a_line("-c", program, subreaper.__file__) as line:
        line.sendall(request(1, python(DAEMON, FOREVER), pipe.path))
        verb, _, process = next(answers(line))
        assert verb == b"started"
        await pipe.says(b"daemon")
        worker = parent_of(int(process))
        os.kill(worker if victim == "worker" else parent_of(worker), signal.SIGKILL)
        await pipe.is_let_go()


def test_the_subreaper_imports_only_what_it_must() -> None:
    # Without a line, it ends at once.
    told = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "importtime", subreaper.__file__],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=True,
        text=True,
    ).stderr
    imported = {line.rpartition("|")[2].strip() for line in told.splitlines()}
    assert {"os", "select", "signal"} <= imported
    assert not {"contextlib", "json", "socket", "subprocess", "trio", "typing"} & imported
