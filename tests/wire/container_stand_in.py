"""A stand-in for podman and docker, where neither can start a container.

It is a program on a PATH folder that passes its command line to a daemon in the test, as docker does, and passes signals on, as both
do. The daemon knows the words that are given in this project, with their meaning, and refuses all others. An "image" is a program
with variables of its own: its container is a process that has those and the given ones, and no others, and an empty working directory.
What it does not give a container is a file system of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_CLIENT = """\
#!{python} -IS
import json, signal, socket, sys
line = socket.socket(socket.AF_UNIX)
try:
    line.connect({address!r})
except OSError:
    sys.exit("Cannot connect to the daemon. Is the daemon running?")
socket.send_fds(line, [json.dumps(sys.argv[1:]).encode() + b"\\n"], [1, 2])
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: line.send(bytes([number])))
sys.exit((line.recv(1) or b"\\x7d")[0])
"""


@dataclass(frozen=True)
class Image:
    """A program, and the variables that it brings."""

    command: Sequence[str | Path]
    variables: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Container:
    """A container that was started: the words for it as they were understood, and its process."""

    given: argparse.Namespace
    process: subprocess.Popen[bytes]

    @property
    def variables(self) -> dict[str, str]:
        """The variables that were given to it."""
        return dict(word.split("=", 1) for word in self.given.env)


class _Refused(Exception):
    """The tool does not know a word, or cannot do what it says; with its exit code."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Refused(f"unknown words: {message}")


def _parsers(tool: str) -> dict[str, _Parser]:
    parsers = {
        words: _Parser(allow_abbrev=False, add_help=False)
        for words in ("run", "ps", "info", "kill", "rm", "pull", "image inspect")
    }
    run = parsers["run"]
    run.add_argument("--rm", action="store_true", required=True)
    if tool == "docker":
        run.add_argument("--init", action="store_true")
    for name in ("--name", "--userns", "--user"):
        run.add_argument(name)
    for name in ("--label", "--security-opt", "--volume", "--env"):
        run.add_argument(name, action="append", default=[])
    run.add_argument("image")
    run.add_argument("command", nargs=argparse.REMAINDER)
    parsers["ps"].add_argument("--all", action="store_true", required=True)
    parsers["ps"].add_argument("--filter", required=True)
    parsers["ps"].add_argument("--format", required=True, choices=["{{.Names}}"])
    parsers["info"].add_argument("--format", required=True, choices=["{{.SecurityOptions}}"])
    parsers["rm"].add_argument("--force", action="store_true", required=True)
    for words in ("kill", "rm"):
        parsers[words].add_argument("names", nargs="+")
    for words in ("pull", "image inspect"):
        parsers[words].add_argument("image")
    return parsers


class ContainerStandIn:
    """The daemon. `here` are the images that need not be fetched, `elsewhere` those that can be."""

    def __init__(self, tool: str) -> None:
        self.tool = tool
        self.here: dict[str, Image] = {}
        self.elsewhere: dict[str, Image] = {}
        self.refused: list[str] = []
        self.started: list[Container] = []
        self.alive: dict[str, Container] = {}
        self.may_fetch = threading.Event()
        self.may_fetch.set()
        self.folder = Path(tempfile.mkdtemp(prefix="tool-", dir="/dev/shm"))
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        self._lock = threading.Lock()
        self._parsers = _parsers(tool)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.folder / "daemon.sock"))
        self._listener.listen()
        client = self.bin / tool
        client.write_text(
            _CLIENT.format(python=sys.executable, address=str(self.folder / "daemon.sock"))
        )
        client.chmod(0o755)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def stop(self) -> None:
        """Stop listening: from now on the daemon is away."""
        # Closing it alone would not wake the thread.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def close(self) -> None:
        """End all containers, and the daemon."""
        self.stop()
        self.may_fetch.set()
        for container in list(self.alive.values()):
            container.process.kill()
        for thread in self._threads:
            thread.join(10)
        shutil.rmtree(self.folder)

    # -- one client

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                line, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(line,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, line: socket.socket) -> None:
        with line:
            data, descriptors, _, _ = socket.recv_fds(line, 65536, 2)
            while not data.endswith(b"\n"):
                data += line.recv(65536)
            out, err = descriptors
            try:
                code = self._obey(json.loads(data), line, out, err)
            except _Refused as error:
                self.refused.append(str(error))
                os.write(err, f"Error: {error}\n".encode())
                code = 125
            finally:
                os.close(out)
                os.close(err)
            with contextlib.suppress(OSError):
                line.send(bytes([code]))

    def _obey(self, words: list[str], line: socket.socket, out: int, err: int) -> int:
        verb = " ".join(words[:2]) if words[0] == "image" else words[0]
        if verb not in self._parsers:
            raise _Refused(f"unknown command: {verb}")
        given = self._parsers[verb].parse_args(words[len(verb.split()) :])
        if verb == "run":
            return self._run(given, line, out, err)
        if verb == "ps":
            key, _, label = given.filter.partition("=")
            assert key == "label"
            names = [name for name, each in list(self.alive.items()) if label in each.given.label]
            os.write(out, "".join(f"{name}\n" for name in names).encode())
        elif verb == "info":
            os.write(out, b"[name=seccomp,profile=builtin name=cgroupns]\n")
        elif verb == "pull":
            return self._pull(given.image, out, err)
        elif verb == "image inspect":
            return 0 if given.image in self.here else 1
        else:
            self._end(given.names)
        return 0

    def _pull(self, image: str, out: int, err: int) -> int:
        self.may_fetch.wait()
        if image not in self.elsewhere:
            os.write(err, f"Error: {image}: not found in any registry\n".encode())
            return 1
        os.write(out, b"fetched\n")
        self.here[image] = self.elsewhere[image]
        return 0

    def _end(self, names: list[str]) -> None:
        for name in names:
            container = self.alive.get(name)
            if container is not None:
                container.process.kill()
                container.process.wait()
                self.alive.pop(name, None)

    # -- containers

    def _run(self, given: argparse.Namespace, line: socket.socket, out: int, err: int) -> int:
        if given.image not in self.here:
            raise _Refused(f"{given.image}: image not known")
        image = self.here[given.image]
        # The first process of a container hears no signal that it has not asked for, unless there is an init.
        deaf = (
            [] if getattr(given, "init", False) else ["sh", "-c", 'trap "" TERM; exec "$@"', "sh"]
        )
        with self._lock:
            if given.name in self.alive:
                raise _Refused(f"the container name {given.name} is already in use")
            process = subprocess.Popen(
                [*deaf, *image.command, *given.command],
                cwd=tempfile.mkdtemp(prefix="work-", dir=self.folder),
                env={
                    "PATH": os.defpath,
                    **image.variables,
                    **dict(word.split("=", 1) for word in given.env),
                },
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            container = Container(given, process)
            self.started.append(container)
            self.alive[given.name] = container
        signals = threading.Thread(target=self._pass_signals_on, args=(line, process))
        signals.start()
        code = process.wait()
        self.alive.pop(given.name, None)
        with contextlib.suppress(OSError):
            line.shutdown(socket.SHUT_RD)
        signals.join()
        return code if code >= 0 else 128 - code

    def _pass_signals_on(self, line: socket.socket, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(OSError):
            while number := line.recv(1):
                process.send_signal(signal.Signals(number[0]))


@contextlib.contextmanager
def container_stand_in(tool: str) -> Iterator[ContainerStandIn]:
    """Put a stand-in for `podman` or `docker` into a folder; its containers end with the context."""
    stand_in = ContainerStandIn(tool)
    try:
        yield stand_in
    finally:
        stand_in.close()
