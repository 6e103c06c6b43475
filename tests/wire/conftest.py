"""Servers for the whole session, names and a volume for each test.

A server that cannot be had fails the tests that ask for it: a suite that skips what it cannot run proves
nothing on a machine where it always skips.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed.object_stores import ObjectStore, running_minio, running_moto, running_rclone
from testbed.rabbitmq import RabbitMQ, running_rabbitmq
from testbed.tls import Tls, make_tls

from .journey import Journey, journey_of

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def session_directory() -> Iterator[Path]:
    """A directory in memory, where there is such a thing, that other users may enter (the broker is one)."""
    directory = Path(tempfile.mkdtemp(prefix="wire-", dir=MEMORY if MEMORY.is_dir() else None))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def tls(session_directory: Path) -> Tls:
    """Certificates by an authority of our own: for 127.0.0.1 and localhost, and for a client."""
    return make_tls(session_directory / "tls")


@pytest.fixture(scope="session")
def rabbitmq(session_directory: Path, tls: Tls) -> Iterator[RabbitMQ]:
    """A broker for the session: `url` is plain, `tls_url` speaks TLS by the authority in `tls`."""
    with running_rabbitmq(session_directory / "rabbitmq", tls=tls) as broker:
        yield broker


@pytest.fixture(scope="session")
def rclone(session_directory: Path) -> Iterator[ObjectStore]:
    """rclone's S3 server over a directory in memory."""
    with running_rclone(session_directory / "rclone") as store:
        yield store


@pytest.fixture(scope="session")
def rclone_tls(session_directory: Path, tls: Tls) -> Iterator[ObjectStore]:
    """The same over TLS."""
    with running_rclone(session_directory / "rclone-tls", tls=tls) as store:
        yield store


@pytest.fixture(scope="session")
def moto(session_directory: Path) -> Iterator[ObjectStore]:
    """moto's S3 server."""
    with running_moto(session_directory / "moto") as store:
        yield store


@pytest.fixture(scope="session")
def minio(session_directory: Path) -> Iterator[ObjectStore]:
    """MinIO's server code, in JuiceFS's gateway."""
    with running_minio(session_directory / "minio") as store:
        yield store


@pytest.fixture
def unique() -> str:
    """Eight characters that no other test has, fit for a queue's or a bucket's name."""
    return uuid.uuid4().hex[:8]


@pytest.fixture
def pipeline_hash() -> str:
    """A pipeline's hash, 32 characters as the manager makes them."""
    return uuid.uuid4().hex


@pytest.fixture
def queue(unique: str) -> str:
    """The name of a queue that nobody has declared yet."""
    return f"queue-{unique}"


@pytest.fixture
def bucket(unique: str) -> str:
    """The name of a bucket that nobody has made yet."""
    return f"bucket-{unique}"


@pytest.fixture
def volume() -> Iterator[Path]:
    """An empty directory in memory with a path so short that a socket's path in it fits (107 bytes)."""
    directory = Path(tempfile.mkdtemp(prefix="v-", dir=MEMORY if MEMORY.is_dir() else None))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def journey(
    rabbitmq: RabbitMQ, rclone: ObjectStore, volume: Path, tmp_path: Path
) -> Iterator[Journey]:
    """One step of a pipeline, to be driven from outside."""
    with journey_of(rabbitmq, rclone, volume, tmp_path) as one:
        yield one
