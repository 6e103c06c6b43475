"""A RabbitMQ 4 of one's own, whatever is installed here: out of Debian's next release, in a tree beside this system.

The tree is made once (`ensure-rabbitmq4`) and only read afterwards. A node runs in it by chroot, in a mount namespace of its own that
goes with its last process, so nothing stays mounted however it ends; its data is outside of the tree. That takes root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.rabbitmq import RabbitMQ, RabbitMQMissing, give_all, running_node

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["running_rabbitmq4"]

USER = "rabbitmq"
ENSURE = Path(__file__).with_name("ensure-rabbitmq4")
PROGRAMS = "/usr/lib/rabbitmq/bin"
#: Where a node's directory is within the tree.
HOME = Path("/mnt")
#: Arguments: the tree, the node's directory, then the command to run in the tree.
ENTER = f"""\
set -e
tree=$1 directory=$2
shift 2
mount --bind "$directory" "$tree{HOME}"
mount --rbind /proc "$tree/proc"
mount --rbind /dev "$tree/dev"
exec chroot "$tree" /usr/bin/setpriv --reuid={USER} --regid={USER} --clear-groups -- "$@"
"""


class InstalledInTree:
    """RabbitMQ's programs in a tree of their own; they run as the tree's user rabbitmq, whose number is another than here."""

    user = None

    def __init__(self, tree: Path) -> None:
        self._tree = tree

    def home(self, directory: Path) -> Path:
        """Return where the directory is mounted."""
        return HOME

    def command(self, directory: Path, program: str, *arguments: str) -> list[str]:
        """Return the command that enters the tree and runs the program there."""
        within = f"{PROGRAMS}/{program}"
        if not Path(f"{self._tree}{within}").exists():
            within = f"/usr/bin/{program}"
        enter = ["unshare", "--mount", "--propagation=private", "sh", "-c", ENTER, "sh"]
        return [*enter, str(self._tree), str(directory), within, *arguments]

    def hand_over(self, directory: Path) -> None:
        """Give the directory to the tree's user rabbitmq."""
        for line in (self._tree / "etc/passwd").read_text(encoding="utf-8").splitlines():
            name, _, user, group, *_ = line.split(":")
            if name == USER:
                give_all(directory, int(user), int(group))


def find_tree() -> Path:
    """Return the tree, which is made if it is not there: half a minute, and 180 MB below the user's cache.

    Raises:
        RabbitMQMissing: it is not there and cannot be made; the message says why, and what to install.
    """
    if os.getuid() != 0:
        raise RabbitMQMissing("RabbitMQ 4 runs in a tree of its own (chroot), which takes root")
    for tool in ("unshare", "chroot"):
        if shutil.which(tool) is None:
            raise RabbitMQMissing(f"RabbitMQ 4 runs in a tree of its own, which takes {tool}")
    made = subprocess.run([str(ENSURE)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise RabbitMQMissing(f"RabbitMQ 4 cannot be had: {made.stderr.strip()}")
    return Path(made.stdout.splitlines()[-1])


@contextlib.contextmanager
def running_rabbitmq4(
    directory: Path,
    *,
    permit_transient: bool = True,
    configuration: str = "",
    plugins: Sequence[str] = (),
) -> Iterator[RabbitMQ]:
    """Run a node of RabbitMQ 4 as `running_rabbitmq` runs one of the version that is installed.

    `permit_transient` says whether it takes the transient queues that Iterum's peers declare.

    Raises:
        RabbitMQMissing: it cannot be had here.
        ProcessFailed: it did not start; the message ends with its log.
    """
    permitted = "true" if permit_transient else "false"
    broker = RabbitMQ(
        directory,
        installation=InstalledInTree(find_tree()),
        tls=None,
        configuration=f"deprecated_features.permit.transient_nonexcl_queues = {permitted}\n{configuration}",
        plugins=plugins,
    )
    with running_node(broker, directory) as node:
        yield node
