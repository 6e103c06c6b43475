from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.local.containers import ContainerTool, find_container_tool

if TYPE_CHECKING:
    from pathlib import Path

VARIABLES = {"PIPELINE_HASH": "0123456789abcdef", "DATA_VOLUME_PATH": "/v", "ITERUM_CONFIG": "{}"}


def test_podman_runs_the_image_with_the_volume_at_its_own_path_and_the_contracts_variables() -> (
    None
):
    command = ContainerTool("podman").command("me/edges:2", "edges-1", "/v", VARIABLES)
    assert command[:3] == ["podman", "run", "--rm"]
    assert command[-1] == "me/edges:2"
    assert "--volume=/v:/v" in command
    assert "--env=ITERUM_CONFIG={}" in command
    assert f"--name=0123456789ab-edges-1-{os.getpid()}" in command
    assert not any(word.startswith("--user") for word in command)


def test_docker_runs_it_as_the_user_who_runs_us() -> None:
    command = ContainerTool("docker").command("edges", "edges-1", "/v", VARIABLES)
    assert command[command.index("--user") + 1] == f"{os.getuid()}:{os.getgid()}"


@pytest.mark.parametrize(
    ("there", "found"), [(["docker", "podman"], "podman"), (["docker"], "docker"), ([], None)]
)
def test_podman_comes_first(
    there: list[str], found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in there:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    tool = find_container_tool()
    assert (tool.name if tool else None) == found
