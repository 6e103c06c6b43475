"""The words that podman and docker are given; what comes of them is in `tests/wire/test_local_images.py`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.local.containers import (
    Containers,
    ContainersUnusable,
    ContainerTool,
    find_container_tool,
)
from iterum_sidecar.local.processes import open_children

if TYPE_CHECKING:
    from pathlib import Path

VARIABLES = {"ITERUM_NAME": "hash-edges", "ITERUM_CONFIG": '{"words": "a b"}'}


def words_of(tool: str, user: str) -> list[str]:
    return ContainerTool(tool).command(
        "me/edges:2", "/v", VARIABLES, name="iterum-abc-edges-1", run="abc", user=user
    )


COMMON = [
    "--name=iterum-abc-edges-1",
    "--label=iterum.run=abc",
    "--userns=host",
    "--user=1000:1000",
    "--security-opt=label=disable",
    "--volume=/v:/v",
    "--env=ITERUM_NAME=hash-edges",
    '--env=ITERUM_CONFIG={"words": "a b"}',
    "me/edges:2",
]


def test_the_words_for_podman() -> None:
    assert words_of("podman", "1000:1000") == ["podman", "run", "--rm", *COMMON]


def test_the_words_for_docker_bring_an_init() -> None:
    assert words_of("docker", "1000:1000") == ["docker", "run", "--rm", "--init", *COMMON]


@pytest.mark.parametrize(
    ("there", "found"), [(["docker", "podman"], "podman"), (["docker"], "docker"), ([], None)]
)
def test_podman_comes_first(
    there: list[str], found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in there:
        write_tool(tmp_path / name, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    tool = find_container_tool()
    assert (tool.name if tool else None) == found


def write_tool(path: Path, does: str) -> None:
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("name", "says", "user"),
    [
        ("podman", "", "0:0"),
        ("docker", "[name=seccomp,profile=builtin name=rootless name=cgroupns]", "0:0"),
        ("docker", "[name=seccomp,profile=builtin name=cgroupns]", "us"),
    ],
)
async def test_the_user_in_a_container_is_the_one_that_runs_us_outside(
    name: str, says: str, user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    monkeypatch.setattr(os, "getgid", lambda: 567)
    write_tool(tmp_path / name, f'[ "$1" != info ] || echo "{says}"')
    with trio.fail_after(10):
        async with open_children() as children:
            containers = Containers(
                ContainerTool(name), tmp_path / "out", children, tmp_path / "log", print
            )
            await containers.prepare({"edges"})
    words = containers.command("edges", "edges-1", "/v", {})
    assert f"--user={'1234:567' if user == 'us' else user}" in words


async def test_a_tool_that_hangs_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tool(tmp_path / "docker", "exec sleep 1000")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("iterum_sidecar.local.containers.ANSWER_SECONDS", 0.01)
    async with open_children() as children:
        containers = Containers(
            ContainerTool("docker"), tmp_path, children, tmp_path / "log", print
        )
        with pytest.raises(ContainersUnusable, match="`docker ps` has not answered"):
            await containers.prepare({"edges"})


async def test_the_names_are_of_the_output_folder_however_it_is_reached(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "link").symlink_to("one")
    async with open_children() as children:
        one, two, link = (
            Containers(
                ContainerTool("podman"), tmp_path / name, children, tmp_path / "log", print
            ).command("edges", "edges-1", "/v", {})
            for name in ("one", "two", "link")
        )
    assert one == link
    assert [word for word in one if word in two] == [
        word for word in one if not word.startswith(("--name", "--label"))
    ]
