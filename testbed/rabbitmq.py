"""A RabbitMQ node of one's own, on free ports, with its data under a directory that is given.

`running_rabbitmq` runs the one that is installed here; `testbed.rabbitmq4` runs a newer one in the same way.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from testbed.ports import LOCAL, accepts_connections, free_ports
from testbed.process import Process, ProcessFailed, running

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from testbed.tls import Tls

__all__ = [
    "Depth",
    "Installation",
    "RabbitMQ",
    "RabbitMQMissing",
    "running_node",
    "running_rabbitmq",
]

USER = "rabbitmq"
PLACES = ("/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
START_SECONDS = 60
STOP_SECONDS = 60
#: A call of rabbitmqctl starts an Erlang of its own, which takes a second or two; one that a frozen node leaves waiting fails.
CTL_SECONDS = 60
#: A share of the machine's memory that every node is over, and one that none is.
NO_MEMORY, ENOUGH_MEMORY = "0.0001", "0.9"


class RabbitMQMissing(Exception):
    """No RabbitMQ is installed; the message says what to install."""


class Depth(NamedTuple):
    """How many messages of a queue are ready, and how many are delivered and not acknowledged."""

    ready: int
    unacknowledged: int


class Installation(Protocol):
    """RabbitMQ's programs, and how they are called."""

    @property
    def user(self) -> str | None:
        """The user as whom a command must be started; None: as whom we are."""
        ...

    def home(self, directory: Path) -> Path:
        """Return what a node's directory is called where its programs see it."""
        ...

    def command(self, directory: Path, program: str, *arguments: str) -> list[str]:
        """Return the command that runs one of the programs for the node in `directory`."""
        ...

    def hand_over(self, directory: Path) -> None:
        """Give a node's directory, and all in it, to whom the node runs as."""
        ...


class InstalledHere:
    """The RabbitMQ of this machine; as root, its programs run as the user rabbitmq."""

    def __init__(self) -> None:
        self._scripts = scripts()
        self.user = USER if os.getuid() == 0 else None

    def home(self, directory: Path) -> Path:
        """Return the directory as it is."""
        return directory

    def command(self, directory: Path, program: str, *arguments: str) -> list[str]:
        """Return the command that runs one of the programs."""
        beside = self._scripts / program
        return [str(beside) if beside.exists() else program, *arguments]

    def hand_over(self, directory: Path) -> None:
        """Give the directory to the user rabbitmq, who must be able to reach it."""
        if self.user is None:
            return
        account = pwd.getpwnam(self.user)
        for parent in directory.resolve().parents:
            mode = parent.stat()
            if mode.st_uid != account.pw_uid and not mode.st_mode & stat.S_IXOTH:
                raise ProcessFailed(
                    f"{parent} lets nobody in but its owner (mode {mode.st_mode & 0o777:o}), and RabbitMQ runs as"
                    f" {self.user}: chmod it to 711, or give another directory"
                )
        give_all(directory, account.pw_uid, account.pw_gid)


def scripts() -> Path:
    """Return the directory of RabbitMQ's own scripts (Debian's wrappers in /usr/sbin insist on being root)."""
    for place in PLACES:
        if Path(place, "rabbitmq-server").exists() and shutil.which("epmd"):
            return Path(place)
    found = shutil.which("rabbitmq-server")
    if found is None or shutil.which("epmd") is None:
        raise RabbitMQMissing(
            "RabbitMQ is not installed: install the package rabbitmq-server (Debian, Ubuntu: apt-get install"
            " rabbitmq-server; Fedora: dnf install rabbitmq-server; macOS: brew install rabbitmq)"
        )
    return Path(found).resolve().parent


def give_all(directory: Path, user: int, group: int) -> None:
    """Give a directory and all in it to a user and a group, by their numbers."""
    for path in (directory, *directory.rglob("*")):
        os.chown(path, user, group, follow_symlinks=False)


class RabbitMQ:
    """A running node. `url` has the vhost `/`; `port` takes plain AMQP and `tls_port`, if any, AMQP over TLS."""

    host = LOCAL

    def __init__(
        self,
        directory: Path,
        *,
        installation: Installation,
        tls: Tls | None,
        configuration: str,
        plugins: Sequence[str] = (),
    ) -> None:
        self.port, self.tls_port, self.epmd_port, distribution = free_ports(4)
        self.url = f"amqp://guest:guest@{LOCAL}:{self.port}/"
        self.tls_url = f"amqps://guest:guest@localhost:{self.tls_port}/"
        self.log = directory / "rabbitmq.log"
        self.installation = installation
        self._directory = directory
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
        installation.hand_over(directory)
        home = installation.home(directory)
        self.environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(home),
            "ERL_EPMD_ADDRESS": LOCAL,
            "ERL_EPMD_PORT": str(self.epmd_port),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "none.config"),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(home / "empty.conf"),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(home / "data"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG_BASE": str(home / "data"),
            "RABBITMQ_MNESIA_BASE": str(home / "data"),
            "RABBITMQ_NODENAME": f"node{self.port}@localhost",
            "RABBITMQ_PID_FILE": str(home / "data" / "pid"),
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
        user = self.installation.user
        account = None if user is None else pwd.getpwnam(user)
        try:
            result = subprocess.run(
                self.installation.command(self._directory, "rabbitmqctl", "--quiet", *arguments),
                env=self.environment,
                cwd=self._directory,
                user=None if account is None else account.pw_uid,
                group=None if account is None else account.pw_gid,
                extra_groups=None if account is None else [],
                capture_output=True,
                text=True,
                check=False,
                timeout=CTL_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise ProcessFailed(
                f"rabbitmqctl {' '.join(arguments)}: no answer within {CTL_SECONDS} s"
            ) from None
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
            self.installation.command(self._directory, "rabbitmq-server"),
            log=self.log,
            environment=self.environment,
            cwd=self._directory,
            user=self.installation.user,
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

    def stop(self) -> None:
        """End the node as an administrator would: it says goodbye to whoever is connected."""
        if self._node is None:
            raise RuntimeError("the node does not run")
        # To Erlang itself: of the script around it, 4.3's ends at a signal without passing it on where /bin/sh is dash.
        os.kill(self._erlang(), signal.SIGTERM)
        self._node.wait(STOP_SECONDS)
        self.kill()

    def restart(self) -> None:
        """Stop the node in order, and start it."""
        self.stop()
        self.start()

    def crash(self) -> None:
        """Kill the node, and start it."""
        self.kill()
        self.start()

    def _erlang(self) -> int:
        return int((self._directory / "data" / "pid").read_text(encoding="ascii"))

    def stop_app(self) -> None:
        """Let the node refuse connections, while its Erlang goes on."""
        self.ctl("stop_app")

    def start_app(self) -> None:
        """Let the node take connections again after `stop_app`."""
        self.ctl("start_app")

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the node's process for the length of the block: its connections stand, and nothing moves on them."""
        erlang = self._erlang()
        os.kill(erlang, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(erlang, signal.SIGCONT)

    @contextlib.contextmanager
    def short_of_memory(self) -> Iterator[None]:
        """Let the node block whoever publishes (`connection.blocked`) for the length of the block."""
        self.ctl("set_vm_memory_high_watermark", NO_MEMORY)
        try:
            yield
        finally:
            self.ctl("set_vm_memory_high_watermark", ENOUGH_MEMORY)

    def close_connections(self, reason: str) -> None:
        """Close all connections with 320 CONNECTION_FORCED and the reason."""
        self.ctl("close_all_connections", reason)

    def delete_queue(self, queue: str) -> None:
        """Delete a queue with all that is in it."""
        self.ctl("delete_queue", queue)

    def depth(self, queue: str) -> Depth:
        """Return how many messages a queue holds; no queue of that name holds none."""
        columns = ("name", "messages_ready", "messages_unacknowledged")
        for line in self.ctl("list_queues", "--no-table-headers", *columns).splitlines():
            name, ready, unacknowledged = line.split("\t")
            if name == queue:
                return Depth(int(ready), int(unacknowledged))
        return Depth(0, 0)


@contextlib.contextmanager
def running_node(broker: RabbitMQ, directory: Path) -> Iterator[RabbitMQ]:
    """Run a node, and the port mapper that it is found by; kill both at the end of the block."""
    installation = broker.installation
    epmd = installation.command(
        directory, "epmd", "-port", str(broker.epmd_port), "-address", LOCAL
    )
    log = directory / "epmd.log"
    with running(epmd, log=log, environment=broker.environment, user=installation.user) as mapper:
        mapper.wait_until(
            lambda: accepts_connections(broker.epmd_port), seconds=10, what="epmd to listen"
        )
        try:
            broker.start()
            yield broker
        finally:
            broker.kill()


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
    broker = RabbitMQ(
        directory,
        installation=InstalledHere(),
        tls=tls,
        configuration=configuration,
        plugins=plugins,
    )
    with running_node(broker, directory) as node:
        yield node
