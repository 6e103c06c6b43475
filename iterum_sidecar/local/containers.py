"""Steps that are an image alone: how podman or docker runs one beside its sidecar, so that nothing of it is left.

A container may outlive whoever ran it. One of docker's is a child of docker's daemon and goes on when its client is killed; one of
podman's is ended with the run, and its name stays in podman's books. So each bears a label with the output folder, which one run
at a time can use: whatever bears it when a run begins was left by one that was killed. That is removed, and nothing else.

Inside, the program is a user who is the one that runs us on this machine, so that the sidecar can read and remove what it writes:
root with podman, whose root is its user, and with a docker that is rootless; our own number with any other docker.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from iterum_sidecar.exit_codes import ExitCode, SidecarError
from iterum_sidecar.local.log_tail import last_lines
from iterum_sidecar.local.processes import (
    ChildrenLost,
    CommandFailed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from iterum_sidecar.local.processes import Children

__all__ = [
    "ANSWER_SECONDS",
    "ContainerTool",
    "Containers",
    "ContainersUnusable",
    "find_container_tool",
]

#: Seconds that the tool has for one answer: `docker` waits for ever for a daemon that hangs.
ANSWER_SECONDS: Final = 30.0
_LABEL: Final = "iterum.run"


class ContainersUnusable(SidecarError):
    """A container cannot be run, or its image cannot be had."""

    exit_code = ExitCode.TRANSFORMATION_LOST


@dataclass(frozen=True, slots=True)
class ContainerTool:
    """A program that runs containers: `podman`, or `docker` with the same options."""

    name: str

    def command(
        self,
        image: str,
        volume: str,
        variables: Mapping[str, str],
        *,
        name: str,
        run: str,
        user: str,
    ) -> list[str]:
        """Return the command that runs an image with the volume at the path that it has here, so that both sides write the same paths.

        Nothing else is said than must be: network, limits and the image's own program are as the tool has them.
        """
        # The first process of a container hears no SIGTERM that it has not asked for; an init hears it and passes it on, also
        # when the run was killed. With podman the container is ended then all the same, and not every podman brings an init.
        init = ["--init"] if self.name == "docker" else []
        return [
            self.name,
            "run",
            "--rm",
            *init,
            f"--name={name}",
            f"--label={_LABEL}={run}",
            # Numbers of users mean here what they mean to the tool, also where it is set up to shift them.
            "--userns=host",
            f"--user={user}",
            # Where SELinux labels files, a container may not touch those of the user otherwise. A new label (`:z`) would stay on them.
            "--security-opt=label=disable",
            f"--volume={volume}:{volume}",
            *(f"--env={variable}={value}" for variable, value in variables.items()),
            image,
        ]


def find_container_tool() -> ContainerTool | None:
    """Return podman, or docker, whichever is there first on PATH; None if neither is."""
    for name in ("podman", "docker"):
        if shutil.which(name):
            return ContainerTool(name)
    return None


class Containers:
    """The containers of one run. `output` is its output folder; what is fetched for them is told to `say` and written to `log`."""

    def __init__(
        self,
        tool: ContainerTool,
        output: Path,
        children: Children,
        log: Path,
        say: Callable[[str], None],
    ) -> None:
        self._tool = tool
        self._run = hashlib.sha256(os.fsencode(os.path.realpath(output))).hexdigest()[:12]
        self._children = children
        self._log = log
        self._say = say
        self._user = "0:0"

    async def prepare(self, images: Collection[str]) -> None:
        """Remove what a killed run has left, and fetch the images that are not here; without images, do nothing.

        They are fetched before any step begins, because a step has 30 s to connect.

        Raises:
            ContainersUnusable: the tool does not work here, a container cannot be removed, or an image cannot be had.
        """
        if not images:
            return
        await self._remove(await self._names())
        if self._tool.name == "docker":
            options = await self._ask("info", "--format", "{{.SecurityOptions}}")
            self._user = "0:0" if "name=rootless" in options else f"{os.getuid()}:{os.getgid()}"
        for image in sorted(images):
            if (await self._call("image", "inspect", image)).returncode:
                await self._fetch(image)

    def command(
        self, image: str, instance: str, volume: str, variables: Mapping[str, str]
    ) -> list[str]:
        """Return the command that runs an image as an instance of a step, after `prepare`.

        Raises:
            ContainersUnusable: the volume's path is none that a container can be given.
        """
        if volume.startswith("/proc/"):
            raise ContainersUnusable(
                f"{instance} is an image, and the path of the output folder is too long for one; choose a shorter --output"
            )
        if ":" in volume:
            raise ContainersUnusable(
                f"{instance} is an image, and {self._tool.name} takes no folder with a colon in its path, as {volume} has;"
                " choose another --output"
            )
        name = self._name(instance)
        return self._tool.command(
            image, volume, variables, name=name, run=self._run, user=self._user
        )

    async def remove(self, instance: str) -> None:
        """Remove the container of an instance, if it has not gone with whoever ran it.

        Raises:
            ContainersUnusable: it cannot be removed.
        """
        await self._remove({self._name(instance)} & await self._names())

    def _name(self, instance: str) -> str:
        return f"iterum-{self._run}-{instance}"

    async def _names(self) -> set[str]:
        """Return the names of all containers of this output folder, those that have ended too."""
        label = f"label={_LABEL}={self._run}"
        told = await self._ask("ps", "--all", "--filter", label, "--format", "{{.Names}}")
        return set(told.split())

    async def _remove(self, names: Collection[str]) -> None:
        if not names:
            return
        # By itself, podman's `rm` waits 10 s for a program that does not hear SIGTERM. Either may fail on one that has just gone.
        await self._call("kill", *names)
        removal = await self._call("rm", "--force", *names)
        if left := await self._names() & set(names):
            raise ContainersUnusable(
                f"the container {min(left)} of an earlier start cannot be removed: {_reason(removal)}"
            )

    async def _fetch(self, image: str) -> None:
        """Pull an image, as long as that takes, as a child of the run: it ends with the run."""
        self._say(f"fetching the image {image}")
        try:
            child = await self._children.start(
                [self._tool.name, "pull", image],
                environment=os.environ,
                directory="/",
                log=self._log,
            )
            try:
                code = await child.wait()
            finally:
                child.kill()
        except (CommandFailed, ChildrenLost) as error:
            raise ContainersUnusable(f"the image {image} cannot be had: {error}") from None
        if code:
            reason = " ".join(last_lines(self._log, 1))
            raise ContainersUnusable(
                f"the image {image} cannot be had: {reason}; see that `{self._tool.name} pull {image}` works"
            )

    async def _ask(self, *words: str) -> str:
        """Return what the tool answers.

        Raises:
            ContainersUnusable: it answers with an error, or not in time.
        """
        answer = await self._call(*words)
        if answer.returncode:
            raise ContainersUnusable(
                f"{self._tool.name}, which is to run the images, does not work: {_reason(answer)};"
                f' see that `{self._tool.name} {words[0]}` works, or give the steps a "command"'
            )
        return answer.stdout.decode(errors="replace")

    async def _call(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """Run the tool to its end, whatever that is."""
        try:
            with trio.fail_after(ANSWER_SECONDS):
                return await trio.run_process(
                    [self._tool.name, *words],
                    stdin=subprocess.DEVNULL,
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                )
        except trio.TooSlowError:
            raise ContainersUnusable(
                f"`{self._tool.name} {words[0]}` has not answered for {ANSWER_SECONDS:.0f} s"
            ) from None
        except OSError as error:
            raise ContainersUnusable(f"{self._tool.name} cannot be run: {error}") from None


def _reason(answer: subprocess.CompletedProcess[bytes]) -> str:
    """Return the last line of what a tool has said of its failure."""
    lines = answer.stderr.decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it does not say why")
