"""Steps that are an image alone: how podman or docker runs one beside its sidecar."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ContainerTool", "find_container_tool"]


@dataclass(frozen=True, slots=True)
class ContainerTool:
    """A program that runs containers: `podman`, or `docker` with the same options."""

    name: str

    def command(
        self, image: str, instance: str, volume: str, variables: Mapping[str, str]
    ) -> list[str]:
        """Return the command that runs an image with the volume at the path that it has here, so that both sides write the same paths.

        The program in it runs as the user who runs us, so that what it writes can be removed; podman's root is that user already.
        """
        user = [] if self.name == "podman" else ["--user", f"{os.getuid()}:{os.getgid()}"]
        given = [f"--env={name}={value}" for name, value in variables.items()]
        return [
            self.name,
            "run",
            "--rm",
            f"--name={variables['PIPELINE_HASH'][:12]}-{instance}-{os.getpid()}",
            # Where SELinux labels files, a container may not touch those of the user otherwise.
            "--security-opt=label=disable",
            f"--volume={volume}:{volume}",
            *user,
            *given,
            image,
        ]


def find_container_tool() -> ContainerTool | None:
    """Return podman, or docker, whichever is there first on PATH; None if neither is."""
    for name in ("podman", "docker"):
        if shutil.which(name):
            return ContainerTool(name)
    return None
