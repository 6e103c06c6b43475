"""What a run keeps in its output folder: the lock, the journal and the objects of the steps in `.iterum`, logs, and failures."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.local.inputs import shown
from iterum_sidecar.local.journal import Journal, JournalRefused
from iterum_sidecar.removal import remove_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["OutputFolder", "open_output", "remove_result", "synchronise"]

#: Seconds that the steps of a killed run may still write: 2 after SIGTERM until they are killed, and a reserve for a busy machine.
LAST_WRITES = 5.0
#: Seconds between two attempts to remove what they write to.
LOOK_AGAIN = 0.05


class OutputFolder:
    """The places in an output folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / ".iterum"
        self.lock = self.state / "lock"
        self.journal = self.state / "journal.sqlite"
        self.objects = self.state / "store"
        self.volumes = self.state / "volumes"
        self.incoming = self.state / "incoming"
        self.logs = root / "logs"
        self.failed = root / "failed"
        self.lineage = root / "lineage.jsonl"
        self._taking_over = self.state / "take-over"

    @property
    def is_there(self) -> bool:
        """Whether what the run stands on has not been removed."""
        return self.lock.exists()

    @property
    def has_journal(self) -> bool:
        """Whether there is a journal, of which SQLite would take an empty file for a new one."""
        return self.journal.exists() and self.journal.stat().st_size > 0

    def clear_remains(self) -> None:
        """Remove what a killed run has left half done."""
        for folder in (self.volumes, self.incoming):
            _remove_folder(folder)
        for unfinished in self.objects.glob("*/.incoming-*"):
            unfinished.unlink()

    def start_over(self) -> None:
        """Remove what earlier runs have made, and all that they kept; `takes_over` if their journal cannot tell what they made.

        Wherever this is killed, the next run can begin, and knows as much: what the journal tells goes before it, and what only it
        makes sense of after it. Without a journal whatever is here is not of a run.
        """
        if self.journal.exists():
            self._remove_results()
            _remove_folder(self.failed)
            self.lineage.unlink(missing_ok=True)
            self.journal.unlink()
        for path in self.state.glob("journal.sqlite-*"):
            path.unlink()
        _remove_folder(self.objects)

    def _remove_results(self) -> None:
        try:
            with Journal(self.journal, trusted=False) as journal:
                for live in (True, False):
                    for delivered in list(journal.deliveries(live=live)):
                        remove_result(self.root, delivered.name)
        except JournalRefused:
            self._taking_over.touch()

    @property
    def takes_over(self) -> bool:
        """Whether the journal that knew of earlier results was lost, so that files in the way of a result may be replaced."""
        return self._taking_over.exists()

    def has_taken_over(self) -> None:
        """Note that a run has delivered every result, so that the journal knows of all again."""
        self._taking_over.unlink(missing_ok=True)

    def kept_bytes(self) -> int:
        """Return how many bytes are kept to resume from."""
        kept = 0
        folders = [os.fspath(self.state)]
        while folders:
            # What is gone by now is not kept.
            with suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        kept += entry.stat(follow_symlinks=False).st_size
        return kept


def _remove_folder(folder: Path) -> None:
    """Remove a folder, with what is written to it meanwhile: the steps of a killed run have a while to end."""
    give_up = time.monotonic() + LAST_WRITES
    while folder.exists():
        try:
            remove_folder(folder)
        except OSError as error:
            changes = error.errno in {errno.ENOTEMPTY, errno.ENOENT}
            if not changes or time.monotonic() > give_up:
                raise
            time.sleep(LOOK_AGAIN)


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
        descriptor = os.open(output.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
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
        if output.lineage.exists() and not output.has_journal:
            raise VolumeUnusable(
                f"{told} holds a lineage.jsonl, but no .iterum/ of a run beside it: it is not of a run, or its journal was removed"
                " or emptied; move it away, or choose another --output"
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
