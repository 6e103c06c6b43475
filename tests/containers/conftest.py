"""Images that are built once for the session, by a podman of its own.

These tests are run by `make test-containers`: where podman cannot run they are skipped, and say why.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed.podman import Podman, running_podman, why_podman_cannot_run

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMORY = Path("/dev/shm")
BUILD_SECONDS = 400


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """A podman whose storage is in memory, where there is such a thing."""
    if why := why_podman_cannot_run():
        pytest.skip(why)
    directory = Path(tempfile.mkdtemp(prefix="pod-", dir=MEMORY if MEMORY.is_dir() else None))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        yield stack.enter_context(running_podman(directory))


@pytest.fixture(scope="session")
def base_image(podman: Podman) -> str:
    """A base made of the system's packages, as `make image` does it where no registry is."""
    name = "localhost/python-base"
    podman.run(["deploy/image/make-base", name], seconds=BUILD_SECONDS)
    return name


@pytest.fixture(scope="session")
def image(podman: Podman, base_image: str) -> str:
    """The sidecar's image."""
    name = "localhost/iterum-sidecar"
    podman.run(["deploy/image/build", name, base_image], seconds=BUILD_SECONDS)
    return name
