"""A RabbitMQ node of one's own, on free ports, with its data under a directory that is given."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.ports import LOCAL, accepts_connections, free_ports
from testbed.process import Process, ProcessFailed, running

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from testbed.tls import Tls

__all__ = ["RabbitMQ", "RabbitMQMissing", "running_rabbitmq"]

USER = "rabbitmq"
PLACES = ("/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
START_SECONDS = 60


class RabbitMQMissing(Exception):
    """No RabbitMQ is installed; the message says what to install."""

    def __init__(self) -> None:
        super().__init__(
            "RabbitMQ is not installed: install the package rabbitmq-server (Debian, Ubuntu: apt-get install"
            " rabbitmq-server; Fedora: dnf install rabbitmq-server; macOS: brew install rabbitmq)"
        )


def scripts() -> Path:
    """Return the directory of RabbitMQ's own scripts (Debian's wrappers in /usr/sbin insist on being root)."""
    for place in PLACES:
        if Path(place, "rabbitmq-server").exists() and shutil.which("epmd"):
            return Path(place)
    found = shutil.which("rabbitmq-server")
    if found is None or shutil.which("epmd") is None:
        raise RabbitMQMissing
    return Path(found).resolve().parent


class RabbitMQ:
    """A running node. `url` has the vhost `/`; `port` takes plain AMQP and `tls_port`, if any, AMQP over TLS."""

    host = LOCAL

    def __init__(
        self, directory: Path, *, tls: Tls | None, configuration: str, plugins: Sequence[str] = ()
    ) -> None:
        self.port, self.tls_port, self._epmd_port, distribution = free_ports(4)
        self.url = f"amqp://guest:guest@{LOCAL}:{self.port}/"
        self.tls_url = f"amqps://guest:guest@localhost:{self.tls_port}/"
        self.log = directory / "rabbitmq.log"
        self._directory = directory
        self._scripts = scripts()
        self._user = USER if os.getuid() == 0 else None
        self._node: Process | None = None
        (directory / "data").mkdir(parents=True, exist_ok=True)
        (directory / "rabbitmq.conf").write_text(
            self._configuration(tls) + configuration, encoding="utf-8"
        )
        (directory / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n", encoding="utf-8")
        (directory / "empty.conf").touch()
        cookie = directory / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(secrets.token_hex(10), encoding="ascii")
            cookie.chmod(0o400)
        if self._user is not None:
            hand_over(directory, self._user)
        self._environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(directory),
            "ERL_EPMD_ADDRESS": LOCAL,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "none.config"),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(directory / "empty.conf"),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(directory / "data"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG_BASE": str(directory / "data"),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_NODENAME": f"node{self.port}@localhost",
            "RABBITMQ_PID_FILE": str(directory / "data" / "pid"),
        }

    def _configuration(self, tls: Tls | None) -> str:
        lines = [
            f"listeners.tcp.1 = {LOCAL}:{self.port}",
            "log.console.level = warning",
            # What is left of a disk, or of /dev/shm, is not what is being tested.
            "disk_free_limit.absolute = 1MB",
        ]
        if tls is not None:
            lines += [
                f"listeners.ssl.1 = {LOCAL}:{self.tls_port}",
                f"ssl_options.cacertfile = {tls.authority}",
                f"ssl_options.certfile = {tls.certificate}",
                f"ssl_options.keyfile = {tls.key}",
                "ssl_options.verify = verify_peer",
                "ssl_options.fail_if_no_peer_cert = false",
            ]
        return "\n".join(lines) + "\n"

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on this node and return what it printed; raise ProcessFailed when it fails."""
        account = None if self._user is None else pwd.getpwnam(self._user)
        result = subprocess.run(
            [str(self._scripts / "rabbitmqctl"), "--quiet", *arguments],
            env=self._environment,
            cwd=self._directory,
            user=None if account is None else account.pw_uid,
            group=None if account is None else account.pw_gid,
            extra_groups=None if account is None else [],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise ProcessFailed(
                f"rabbitmqctl {' '.join(arguments)}: {result.stdout}{result.stderr}"
            )
        return result.stdout

    def start(self) -> None:
        """Start the node, on the same ports and data as before; it takes connections when this returns."""
        if self._node is not None:
            raise RuntimeError("the node runs already")
        self._node = Process(
            [str(self._scripts / "rabbitmq-server")],
            log=self.log,
            environment=self._environment,
            cwd=self._directory,
            user=self._user,
        )
        try:
            self._node.wait_until(
                lambda: accepts_connections(self.port),
                seconds=START_SECONDS,
                what="RabbitMQ to take connections",
            )
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End the node at once, as a crash would; what is durable is there again after `start`."""
        if self._node is not None:
            self._node.close()
            self._node = None


def hand_over(directory: Path, user: str) -> None:
    """Give the directory and all in it to a user, who must be able to reach it."""
    account = pwd.getpwnam(user)
    for parent in directory.resolve().parents:
        mode = parent.stat()
        if mode.st_uid != account.pw_uid and not mode.st_mode & stat.S_IXOTH:
            raise ProcessFailed(
                f"{parent} lets nobody in but its owner (mode {mode.st_mode & 0o777:o}), and RabbitMQ runs as"
                f" {user}: chmod it to 711, or give another directory"
            )
    for path in (directory, *directory.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


@contextlib.contextmanager
def running_rabbitmq(
    directory: Path,
    *,
    tls: Tls | None = None,
    configuration: str = "",
    plugins: Sequence[str] = (),
) -> Iterator[RabbitMQ]:
    """Run a node with its data in `directory`, which is made if need be and not removed afterwards.

    As root, the node runs as the user rabbitmq and the directory becomes that user's. `configuration` is put
    at the end of the node's rabbitmq.conf, and `plugins` are enabled. The node's port mapper (epmd) is its own and ends with it. A node
    is up after about three seconds.

    Raises:
        RabbitMQMissing: there is none on this machine.
        ProcessFailed: it did not start; the message ends with its log.
    """
    broker = RabbitMQ(directory, tls=tls, configuration=configuration, plugins=plugins)
    epmd = ["epmd", "-port", broker._environment["ERL_EPMD_PORT"], "-address", LOCAL]
    environment = broker._environment
    with running(
        epmd, log=directory / "epmd.log", environment=environment, user=broker._user
    ) as mapper:
        mapper.wait_until(
            lambda: accepts_connections(int(environment["ERL_EPMD_PORT"])),
            seconds=10,
            what="epmd to listen",
        )
        try:
            broker.start()
            yield broker
        finally:
            broker.kill()
