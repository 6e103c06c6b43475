"""Pods of `deploy/kubernetes`, played by podman: what the manifests say, with the tests' own images, services and names."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]

from testbed.process import wait_until

if TYPE_CHECKING:
    from testbed.podman import Podman

__all__ = ["SIDECAR", "STEP", "Pod", "manifest_of"]

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
SIDECAR, STEP = "sidecar", "transformation-step"
VOLUME = "data-volume"
#: Seconds that a container may take for its whole life here.
END_SECONDS = 60

Object = dict[str, Any]


def manifest_of(
    form: str,
    *,
    images: dict[str, str],
    command: list[str],
    told: dict[str, str],
    volume: str,
    secrets: Path,
) -> list[Object]:
    """Return what `form` says of its pod, as documents that podman plays.

    `told` are variables with the tests' own values; a form says which container is told them, and how. A native sidecar becomes a
    container like the other, for podman 4.3 knows none. The pod has the host's network, where the services are.
    """
    document = yaml.safe_load((FOLDER / f"{form}.yaml").read_text(encoding="utf-8"))
    spec = document["spec"] if document["kind"] == "Pod" else document["spec"]["template"]["spec"]
    spec["containers"] = spec.pop("initContainers", []) + spec["containers"]
    spec["hostNetwork"] = True
    documents: list[Object] = []
    for container in spec["containers"]:
        container.pop("restartPolicy", None)
        container["image"] = images[container["name"]]
        container["imagePullPolicy"] = "Never"
        for each in container.get("env", ()):
            each["value"] = told.get(each["name"], each["value"])
        if "envFrom" in container:
            documents = [_configuration(told)]
    spec["containers"][-1]["command"] = command
    for each in spec["volumes"]:
        if each.pop("secret", None):
            # podman 4.3 does not decode a Secret, and dies of one that is not said to be optional or not.
            _write_secrets(secrets, told)
            each["hostPath"] = {"path": str(secrets), "type": "Directory"}
    text = json.dumps(spec)
    # What podman makes of an emptyDir is a volume of that name, for all pods.
    text = text.replace(f'"name": "{VOLUME}"', f'"name": "{volume}"')
    text = text.replace('"name": "scratch"', f'"name": "{volume}-scratch"')
    metadata = {"name": f"pod-{volume}"}
    return [
        *documents,
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": json.loads(text)},
    ]


def _configuration(told: dict[str, str]) -> Object:
    lines = (FOLDER / "step.env").read_text(encoding="utf-8").splitlines()
    data = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    data = {name: told.get(name, value) for name, value in data.items()}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "iterum-step"},
        "data": data,
    }


def _write_secrets(secrets: Path, told: dict[str, str]) -> None:
    secrets.mkdir(exist_ok=True)
    for name, variable in (
        ("broker-url", "MQ_BROKER_URL"),
        ("access-key", "MINIO_ACCESS_KEY"),
        ("secret-key", "MINIO_SECRET_KEY"),
    ):
        (secrets / name).write_text(told[variable], encoding="utf-8")


class Pod:
    """One pod, made of documents that `manifest_of` returns."""

    def __init__(self, podman: Podman, documents: list[Object], *, start: bool = True) -> None:
        self._podman = podman
        pod = documents[-1]
        self.name = pod["metadata"]["name"]
        self._volumes = [each["name"] for each in pod["spec"]["volumes"] if "emptyDir" in each]
        text = yaml.safe_dump_all(documents)
        podman("kube", "play", f"--start={str(start).lower()}", "-", text=text)

    def name_of(self, container: str) -> str:
        """Return podman's name of a container of this pod."""
        return f"{self.name}-{container}"

    def start(self, container: str) -> None:
        """Start one container, or start it again."""
        self._podman("start", self.name_of(container))

    def execute(self, container: str, *command: str) -> str:
        """Run a command in a container, as an exec probe is, and return what it prints; it must end with 0."""
        return self._podman("exec", self.name_of(container), *command)

    def stop(self, container: str | None = None, *, seconds: int = 30) -> None:
        """Send SIGTERM to one container, or to all at once, and SIGKILL after the grace period; returns when all have ended."""
        if container is None:
            self._podman("pod", "stop", f"--time={seconds}", self.name)
        else:
            self._podman("stop", f"--time={seconds}", self.name_of(container))

    def signal(self, container: str, name: str) -> None:
        """Send a signal to a container's first process."""
        self._podman("kill", f"--signal={name}", self.name_of(container))

    def state(self, container: str) -> Object:
        """Return what podman knows of a container: Running, Pid, ExitCode and more."""
        (inspected,) = json.loads(self._podman("container", "inspect", self.name_of(container)))
        found: Object = inspected["State"] | {"RestartCount": inspected["RestartCount"]}
        return found

    def wait(self, container: str, *, seconds: float = END_SECONDS) -> int:
        """Wait until a container has ended, and return its exit code."""
        return int(self._podman("wait", self.name_of(container), seconds=seconds))

    def log(self, container: str) -> str:
        """Return what a container has written, on either of its outputs."""
        ended = subprocess.run(
            ["podman", "logs", self.name_of(container)],
            env=self._podman.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=END_SECONDS,
            check=True,
        )
        return ended.stdout

    def wait_for_line(self, container: str, pattern: str) -> None:
        """Wait until a container has written a line in which the pattern is found."""
        wait_until(
            lambda: re.search(pattern, self.log(container)), seconds=END_SECONDS, what=pattern
        )

    def remove(self) -> None:
        """Remove the pod and its volumes."""
        self._podman("pod", "rm", "--force", "--time=0", self.name)
        self._podman("volume", "rm", "--force", *self._volumes)
