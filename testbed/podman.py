"""A podman of one's own: its storage, its networks and its settings are in one directory, and go with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["PAUSE_IMAGE", "Podman", "PodmanFailed", "running_podman", "why_podman_cannot_run"]

ROOT = Path(__file__).parents[1]
#: Seconds that one call may take unless told otherwise; starting a container takes less than one.
CALL_SECONDS = 120
#: What a pod's own container, which only holds its namespaces, is made of; podman's default needs a program that Debian keeps apart.
PAUSE_IMAGE = "localhost/pause"
#: Debian's podman 4.3 asks for limits that a sandbox does not grant, and crun refuses cgroups of version 1 beside 2.
ENGINE = """\
[containers]
default_ulimits = []
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "{directory}/tmp"
runtime = "{runtime}"
infra_image = "{pause}"
[network]
network_backend = "netavark"
network_config_dir = "{directory}/networks"
"""
STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{directory}/storage"
runroot = "{directory}/run"
"""


class PodmanFailed(Exception):
    """A call of podman failed; the message has what it said."""


class Podman:
    """Calls podman with storage and settings below `directory`, which should be in memory and have a short path."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        engine, storage = directory / "containers.conf", directory / "storage.conf"
        runtime = "runc" if shutil.which("runc") else "crun"
        settings = ENGINE.format(directory=directory, runtime=runtime, pause=PAUSE_IMAGE)
        engine.write_text(settings, encoding="utf-8")
        storage.write_text(STORAGE.format(directory=directory), encoding="utf-8")
        self.environment: Mapping[str, str] = {
            **os.environ,
            "CONTAINERS_CONF": str(engine),
            "CONTAINERS_STORAGE_CONF": str(storage),
        }

    def __call__(self, *words: str, seconds: float = CALL_SECONDS, text: str | None = None) -> str:
        """Run `podman` with these words and `text` as its input, and return what it prints.

        Raises:
            PodmanFailed: it ended with anything but 0, or not in time.
        """
        return self.run(["podman", *words], seconds=seconds, text=text)

    def run(self, command: list[str], *, seconds: float, text: str | None = None) -> str:
        """Run any command that calls podman in turn, and return what it prints; errors as above."""
        try:
            ended = subprocess.run(
                command,
                env=self.environment,
                cwd=ROOT,
                input=text,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PodmanFailed(f"{' '.join(command)}: not done in {seconds:g} s") from error
        if ended.returncode != 0:
            said = f"{ended.stdout}{ended.stderr}".strip()
            raise PodmanFailed(f"{' '.join(command)}: ended with {ended.returncode}\n{said}")
        return ended.stdout

    def close(self) -> None:
        """End and remove every container, pod and network, and unmount what is mounted."""
        for words in (
            ("pod", "rm", "--all", "--force", "--time=0"),
            ("rm", "--all", "--force", "--time=0", "--volumes"),
            ("network", "prune", "--force"),
        ):
            with contextlib.suppress(PodmanFailed):
                self(*words)


def why_podman_cannot_run() -> str | None:
    """Return what is missing for containers to be run here, or None."""
    if os.getuid() != 0:
        return "the tests' base image is made by root (mmdebstrap)"
    missing = [name for name in ("podman", "mmdebstrap") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)} (make containers)" if missing else None


@contextlib.contextmanager
def running_podman(directory: Path) -> Iterator[Podman]:
    """Give a podman that leaves nothing running."""
    directory.mkdir(parents=True, exist_ok=True)
    podman = Podman(directory)
    try:
        yield podman
    finally:
        podman.close()
