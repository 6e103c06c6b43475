"""The image: small, without a shell, read-only, for any uid, and the same when it is built again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import iterum_sidecar
from testbed.podman import PodmanFailed

if TYPE_CHECKING:
    from testbed.podman import Podman

#: What is promised of its size, unpacked, on the base that is made here.
MOST_BYTES = 180_000_000


def configuration(podman: Podman, image: str) -> dict[str, Any]:
    (inspected,) = json.loads(podman("image", "inspect", image))
    found: dict[str, Any] = inspected
    return found


def test_it_is_small(podman: Podman, image: str) -> None:
    assert configuration(podman, image)["Size"] < MOST_BYTES


def test_it_stops_by_sigterm_runs_the_sidecar_and_says_what_it_is(
    podman: Podman, image: str
) -> None:
    config = configuration(podman, image)["Config"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Cmd"] == ["run"]
    assert config["Labels"]["org.opencontainers.image.title"] == "iterum-sidecar"
    assert config["Labels"]["org.opencontainers.image.version"] == iterum_sidecar.__version__


@pytest.mark.parametrize("user", ["0:0", "1234:5678"])
def test_it_runs_read_only_as_any_user_without_capabilities(
    podman: Podman, image: str, user: str
) -> None:
    options = ("--rm", "--read-only", "--cap-drop=all", "--network=none", f"--user={user}")
    said = podman("run", *options, "--security-opt=no-new-privileges", image, "--version")
    assert said == f"iterum-sidecar {iterum_sidecar.__version__}\n"


def test_without_variables_it_names_each_that_is_missing(podman: Podman, image: str) -> None:
    with pytest.raises(PodmanFailed, match="ended with 10") as failed:
        podman("run", "--rm", "--read-only", "--network=none", image)
    for name in ("DATA_VOLUME_PATH", "MQ_BROKER_URL", "MINIO_URL", "MINIO_OUTPUT_BUCKET"):
        assert f"{name} is missing" in str(failed.value)


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_it_has_no_shell(podman: Podman, image: str, shell: str) -> None:
    with pytest.raises(PodmanFailed, match="ended with 127"):
        podman("run", "--rm", "--network=none", f"--entrypoint={shell}", image, "-c", "true")


def test_the_same_sources_make_the_same_image(podman: Podman, image: str, base_image: str) -> None:
    again = "localhost/iterum-sidecar-again"
    podman.run(["deploy/image/build", again, base_image], seconds=400)
    layers = [configuration(podman, name)["RootFS"]["Layers"] for name in (image, again)]
    assert layers[0] == layers[1]


def test_an_image_that_can_trace_is_built_of_the_other_lock(
    podman: Podman, base_image: str
) -> None:
    name = "localhost/iterum-sidecar-otel"
    podman.run(
        ["env", "LOCK=requirements-otel.lock", "deploy/image/build", name, base_image], seconds=400
    )
    program = "import iterum_sidecar.telemetry.tracing; print('it traces')"
    said = podman(
        "run",
        "--rm",
        "--network=none",
        "--entrypoint=/opt/iterum-sidecar/bin/python3",
        name,
        "-c",
        program,
    )
    assert said == "it traces\n"
    assert configuration(podman, name)["Size"] < MOST_BYTES
