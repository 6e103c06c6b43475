"""What a run keeps in its output folder: the lock, the journal and the objects of the steps in `.iterum`, logs, and failures."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.local.inputs import shown
from iterum_sidecar.local.journal import Journal, JournalRefused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["OutputFolder", "open_output", "remove_result", "synchronise"]


class OutputFolder:
    """The places in an output folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / ".iterum"
        self.journal = self.state / "journal.sqlite"
        self.objects = self.state / "store"
        self.volumes = self.state / "volumes"
        self.incoming = self.state / "incoming"
        self.logs = root / "logs"
        self.failed = root / "failed"
        self.lineage = root / "lineage.jsonl"

    def clear_remains(self) -> None:
        """Remove what a killed run has left half done."""
        for folder in (self.volumes, self.incoming):
            if folder.exists():
                shutil.rmtree(folder)
        for unfinished in self.objects.glob("*/.incoming-*"):
            unfinished.unlink()

    def start_over(self) -> bool:
        """Remove what earlier runs have made, and all that they kept; False if their journal cannot tell what they made."""
        if not self.journal.exists():
            # Whatever is here is not of a run.
            return True
        known = True
        try:
            with Journal(self.journal, trusted=False) as journal:
                for live in (True, False):
                    for delivered in list(journal.deliveries(live=live)):
                        remove_result(self.root, delivered.name)
        except JournalRefused:
            known = False
        for path in (self.journal, *self.state.glob("journal.sqlite-*"), self.lineage):
            path.unlink(missing_ok=True)
        for folder in (self.objects, self.failed):
            if folder.exists():
                shutil.rmtree(folder)
        return known

    def kept_bytes(self) -> int:
        """Return how many bytes are kept to resume from."""
        return sum(
            os.lstat(os.path.join(folder, file)).st_size
            for folder, _, files in os.walk(self.state)
            for file in files
        )


def remove_result(root: Path, name: str) -> None:
    """Remove a result, and the folders that are empty by that."""
    path = root / name
    path.unlink(missing_ok=True)
    for parent in path.parents:
        if parent == root:
            return
        try:
            parent.rmdir()
        except OSError:
            return


@contextmanager
def open_output(root: Path) -> Iterator[OutputFolder]:
    """Make the output folder if need be, and lock it for this run.

    Raises:
        VolumeUnusable: it cannot be made or written to, or another run is using it.
    """
    output = OutputFolder(root.absolute())
    told = shown(str(root))
    try:
        output.state.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output.state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise VolumeUnusable(
            f"{told} cannot be used for results: {error.strerror}; choose another --output"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            raise VolumeUnusable(
                f"{told} is in use by another run{f' (process {holder})' if holder else ''};"
                " wait for its end, or choose another --output"
            ) from None
        if output.lineage.exists() and not output.journal.exists():
            raise VolumeUnusable(
                f"{told} holds a lineage.jsonl, but no .iterum/ of a run beside it: it is not of a run, or its journal was removed;"
                " move it away, or choose another --output"
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield output
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def synchronise(folder: Path) -> None:
    """Write everything of the file system that `folder` is on to the disk (syncfs(2)).

    Raises:
        VolumeUnusable: the disk would not take it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise VolumeUnusable(
                f"the disk would not take what was written to {folder}: {os.strerror(number)}"
            )
    finally:
        os.close(descriptor)
