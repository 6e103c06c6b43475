"""The volume that the two containers share, and the sidecar's own directory in it.

Nothing that a message says can lead out of it: names are walked component by component from an open directory, no
symlink is followed, and what is opened is looked at again through its descriptor, so that a path swapped between the check
and the use gains nothing. Only what is below the sidecar's own directory is ever removed unasked; a result's own path is
removed only while it still leads to the file that was taken. The file is long because all that touches the volume is in it, so that this
can be read in one place.

    <volume>/.iterum-sidecar/fragments/<life>/<name>    input files, a directory for each fragment
    <volume>/.iterum-sidecar/results/<number>           results held by a link instead of a descriptor
    <volume>/.iterum-sidecar/state                      not of this module, and left alone by it: `telemetry/marker.py`
"""

from __future__ import annotations

import errno
import math
import os
import resource
import stat
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.large_files import LARGE, LargeFiles
from iterum_sidecar.messages import MAX_LOCAL_PATH_BYTES
from iterum_sidecar.removal import OPEN_DIRECTORY, remove_tree
from iterum_sidecar.telemetry.logs import get_log
from iterum_sidecar.telemetry.probe import OWN_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import Self

__all__ = ["OUR_WANT", "OWN_DIRECTORY", "PathRefused", "TakenFile", "Volume", "Workspace"]

_log = get_log(__name__)

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO must not wait for its writer.
_EXISTING_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

#: Errors that say nothing of the path, but that this process or the machine has no descriptor or memory free (open(2)).
OUR_WANT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR})

#: From so many bytes on a file is looked at for holes.
_LARGE = 1 << 30

#: The share of the allowed descriptors that results may hold; sockets and files being moved need the rest.
_RESULTS_SHARE = 4
#: The share that one stage may open to move files; the store's connections and the transformation's need the rest.
_MOVING_SHARE = 16
#: How many large files may wait to be freed: so many gigabytes are slower than any loop.
_MOST_LARGE_FILES = 64


class PathRefused(ValueError):
    """A path of a result cannot be taken: it leads out of the volume, or to nothing that is a regular file."""


class Workspace:
    """The directory of one fragment: its name among the others, and its path as both containers see it.

    It is opened for the first of its files, and stays open for the others until `rest`.
    """

    __slots__ = ("_directory", "name", "path")

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self.path = path
        self._directory: int | None = None

    def open(self, fragments: int) -> int:
        """Return its descriptor, which is valid until `rest`; `fragments` is that of the directory in which it is."""
        if self._directory is None:
            self._directory = os.open(self.name, OPEN_DIRECTORY, dir_fd=fragments)
        return self._directory

    def rest(self) -> None:
        """Give back the descriptor while no file is made. Calling it again changes nothing."""
        directory, self._directory = self._directory, None
        if directory is not None:
            os.close(directory)


class TakenFile:
    """A result's file, held so that it stays what it was when its frame was read.

    Held by its descriptor, or, where too many are, by a link in the sidecar's own directory. A file that is written to in
    place all the same is found out by `has_changed`.
    """

    __slots__ = ("_descriptor", "_link", "_results", "identity", "path", "removable", "size")

    def __init__(
        self, descriptor: int, path: str, status: os.stat_result, *, removable: bool
    ) -> None:
        self._descriptor: int | None = descriptor
        self._link: str | None = None
        self._results = -1
        self.path = path
        """Relative to the volume."""
        self.identity = _identity(status)
        self.size = status.st_size
        self.removable = removable

    def become_link(self, results: int, name: str) -> bool:
        """Hold a link in the directory `results` instead of the descriptor; False where no link can be made."""
        try:
            os.link(
                f"/proc/self/fd/{self._descriptor}", name, dst_dir_fd=results, follow_symlinks=True
            )
        except OSError:
            return False
        self._results, self._link = results, name
        self.rest()
        return True

    def open(self) -> int:
        """Return a descriptor to read the file from; it is valid until `release`.

        Raises:
            PathRefused: the link by which it is held leads to something else by now.
            OSError: of `OUR_WANT`; it can be opened later.
        """
        if self._descriptor is None:
            if self._link is None:
                raise AssertionError(f"{self.path} was released")
            self._descriptor = self._open_link(self._link)
        return self._descriptor

    def _open_link(self, link: str) -> int:
        """Open the file by its link; the transformation, which can write there too, may have put something else in its place."""
        reason = "it is another file"
        try:
            descriptor = os.open(link, _EXISTING_FILE, dir_fd=self._results)
        except OSError as error:
            if error.errno in OUR_WANT:
                raise
            reason = error.strerror or str(error)
        else:
            if _identity(os.fstat(descriptor))[:2] == self.identity[:2]:
                return descriptor
            os.close(descriptor)
        raise PathRefused(
            f"{self.path} was changed in the sidecar's own directory, {OWN_DIRECTORY}: {reason}"
        )

    def rest(self) -> None:
        """Give back the descriptor while nothing is read, if there is a link to open the file by again."""
        if self._link is not None and self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def has_changed(self) -> bool:
        """Whether the file was written to since it was taken, as far as its size and time of change tell."""
        return _identity(os.fstat(self.open())) != self.identity

    @property
    def is_link(self) -> bool:
        """Whether it is held by a link, which does not count against the limit of open files."""
        return self._link is not None

    def release(self, large_files: LargeFiles) -> None:
        """Let go of the file. Calling it again changes nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            large_files.close(descriptor, self.size)
        link, self._link = self._link, None
        if link is not None:
            if self.size >= LARGE:
                large_files.hold(link, self._results)
            # Whatever has been put there may be anything, or nothing any more.
            remove_tree(link, self._results)


class Volume:
    """The shared volume, opened. Use as a context manager; leaving it removes everything of the sidecar's own."""

    def __init__(self, root: str, *, protected: tuple[str, ...] = ()) -> None:
        """Open `root` and clear what an earlier life left behind.

        `protected` are directories, relative to the volume, whose files may be sent as results but are never removed.

        Raises:
            VolumeUnusable: the root is no directory, or the sidecar's own directory cannot be made in it.
        """
        self.root = root
        self._prefixes = tuple(
            dict.fromkeys((root.rstrip("/") or "/", os.path.abspath(root), os.path.realpath(root)))
        )
        self._protected = protected
        self._lives = count(1)
        self._links = count(1)
        self._told_of_left_overs = False
        self._postponed: list[Callable[[], None]] = []
        """What could not be removed for want of a descriptor, and is removed with what is removed next."""
        self._walked: tuple[list[str], int] | None = None
        """Where the last walk of a call led to."""
        self._held: set[TakenFile] = set()
        self._descriptors_held = 0
        allowed = _raise_descriptor_limit()
        self._descriptors_allowed = allowed // _RESULTS_SHARE
        self._descriptors_to_move = max(1, allowed // _MOVING_SHARE)
        self.large_files = LargeFiles(min(_MOST_LARGE_FILES, self._descriptors_to_move))
        """Frees large ones in a thread, as long as somebody keeps it at that."""
        try:
            self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise VolumeUnusable(
                f"the volume {root} cannot be opened: {error.strerror}; DATA_VOLUME_PATH must name a directory"
            ) from None
        try:
            self._own = self._make_directory(OWN_DIRECTORY, self._root)
            self._fragments = self._make_empty_directory("fragments")
            self._results = self._make_empty_directory("results")
        except OSError as error:
            raise VolumeUnusable(
                f"{os.path.join(root, OWN_DIRECTORY)} cannot be made or cleared: {error.strerror}"
                f" ({error.filename}); the sidecar must be able to write to the volume"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all that is held, remove what is the sidecar's own, and close the volume."""
        for taken in tuple(self._held):
            self.release(taken)
        self._remove_postponed()
        for name, descriptor in (("fragments", self._fragments), ("results", self._results)):
            os.close(descriptor)
            self._remove_if_allowed(name, self._own)
        os.close(self._own)
        # Something else has been put into it or in its place, which is not ours to remove, or somebody has removed it.
        with suppress(OSError):
            os.rmdir(OWN_DIRECTORY, dir_fd=self._root)
        os.close(self._root)

    # -- what there is

    def available(self) -> int | None:
        """Return how many bytes are free for who is not root; None where the file system does not tell."""
        found = os.fstatvfs(self._root)
        return found.f_bavail * found.f_frsize if found.f_blocks else None

    def capacity(self) -> float:
        """Return the size of the whole file system in bytes; infinite where it does not tell."""
        found = os.fstatvfs(self._root)
        return found.f_blocks * found.f_frsize or math.inf

    def may_hold(self, size: int) -> bool:
        """Whether so many bytes more are free now, as far as the file system tells."""
        found = os.fstatvfs(self._root)
        return found.f_blocks == 0 or size <= found.f_bfree * found.f_frsize

    def files_at_a_time(self, groups: int, files: int) -> tuple[int, int]:
        """Return how many groups of how many files may be moved at a time: as wished, or as many as may be open."""
        groups = min(groups, self._descriptors_to_move)
        return groups, min(files, self._descriptors_to_move // groups)

    # -- fragments

    def make_workspace(self) -> Workspace:
        """Make the directory of one fragment."""
        name = format(next(self._lives), "x")
        try:
            os.mkdir(name, dir_fd=self._fragments)
        except FileNotFoundError:
            raise self._own_is_gone() from None
        return Workspace(name, f"{self.root.rstrip('/')}/{OWN_DIRECTORY}/fragments/{name}")

    def create_file(self, workspace: Workspace, name: str) -> int:
        """Create a file of a fragment, its directories too, and return its descriptor for writing; `Workspace.rest` is due after the last.

        Raises:
            OSError: a name longer than the file system takes (ENAMETOOLONG), a full disk.
        """
        if len(os.fsencode(workspace.path)) + 1 + len(os.fsencode(name)) > MAX_LOCAL_PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
        *parents, last = parts = name.split("/")
        if not {"", ".", ".."}.isdisjoint(parts):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
        try:
            top = directory = workspace.open(self._fragments)
        except (FileNotFoundError, NotADirectoryError):
            raise self._own_is_gone() from None
        try:
            for parent in parents:
                inner = self._make_directory(parent, directory)
                if directory != top:
                    os.close(directory)
                directory = inner
            return os.open(last, _NEW_FILE, 0o666, dir_fd=directory)
        except FileNotFoundError:
            raise self._own_is_gone() from None
        finally:
            if directory != top:
                os.close(directory)

    def remove_workspace(self, workspace: Workspace, names: list[str], size: int = 0) -> None:
        """Remove the directory of a fragment with everything in it; `names` are the files that we put there, `size` their bytes."""
        workspace.rest()
        self._remove_postponed()
        if size >= LARGE:
            self._hold_large(workspace, names)
        try:
            if not any("/" in name for name in names):
                directory = os.open(workspace.name, OPEN_DIRECTORY, dir_fd=self._fragments)
                try:
                    for name in names:
                        os.unlink(name, dir_fd=directory)
                finally:
                    os.close(directory)
            os.rmdir(workspace.name, dir_fd=self._fragments)
        except OSError:
            # More or less in it than we put there: the transformation may do with its input what it likes.
            self._remove_if_allowed(workspace.name, self._fragments)

    def _hold_large(self, workspace: Workspace, names: list[str]) -> None:
        try:
            for name in names:
                *parents, last = name.split("/")
                with suppress(OSError):  # whatever is there instead is removed all the same
                    directory = self._walk([OWN_DIRECTORY, "fragments", workspace.name, *parents])
                    self.large_files.hold(last, directory)
        finally:
            self._leave()

    # -- results

    def take(
        self, paths: Iterable[str], taken: list[TakenFile], allowed: Collection[str] = ()
    ) -> None:
        """Open the files that a result names and hold them, one after the other; those before a refused one are in `taken` then.

        `allowed` are the names of the workspaces whose files may be sent as results: those of its predecessors.

        Raises:
            PathRefused: it leads out of the volume, into what is ours, over a symlink, or to no regular file.
            OSError: of `OUR_WANT`; it can be opened later.
        """
        try:
            for path in paths:
                taken.append(self._take(path, allowed))  # noqa: PERF401 - those before a refused one count
        finally:
            self._leave()

    def _take(self, path: str, allowed: Collection[str]) -> TakenFile:
        relative = self._relative(path)
        if relative[0] == OWN_DIRECTORY and not (
            len(relative) > 3 and relative[1] == "fragments" and relative[2] in allowed
        ):
            raise PathRefused(f"{path[:200]!r} belongs to the sidecar or to another fragment")
        descriptor = self._open_beneath(relative, path)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise PathRefused(f"{path[:200]!r} is not a regular file")
        if status.st_size > _LARGE and self._must_have_holes(descriptor, status.st_size):
            os.close(descriptor)
            raise PathRefused(
                f"{path[:200]!r} has {status.st_size:,} bytes, most of them holes: more than the volume can hold"
            )
        joined = "/".join(relative)
        # An input file stays until its fragment is settled: it may be handed out again.
        removable = relative[0] != OWN_DIRECTORY and not any(
            joined.startswith(f"{directory}/") for directory in self._protected
        )
        taken = TakenFile(descriptor, joined, status, removable=removable)
        if self._descriptors_held < self._descriptors_allowed or not taken.become_link(
            self._results, format(next(self._links), "x")
        ):
            self._descriptors_held += 1
        self._held.add(taken)
        return taken

    @property
    def holds_results(self) -> bool:
        """Whether any result is held, which is let go of when it is stored."""
        return bool(self._held)

    def release(self, taken: TakenFile) -> None:
        """Let go of a file that was taken. Calling it again changes nothing."""
        if taken in self._held:
            self._held.discard(taken)
            self._descriptors_held -= not taken.is_link
            taken.release(self.large_files)

    def remove_results(self, results: list[TakenFile]) -> None:
        """Remove the own path of each result, if it still leads to the file that was taken, and empty the list."""
        self._remove_postponed()
        try:
            for taken in results:
                if taken.removable:
                    self._remove_result(taken)
        finally:
            self._leave()
        results.clear()

    def _remove_result(self, taken: TakenFile) -> None:
        *parents, last = taken.path.split("/")
        try:
            directory = self._walk(parents)
        except OSError as error:
            if error.errno in OUR_WANT:
                self._postponed.append(partial(self.remove_results, [taken]))
            return
        try:
            status = os.stat(last, dir_fd=directory, follow_symlinks=False)
            if _identity(status) == taken.identity:
                if taken.size >= LARGE:
                    self.large_files.hold(last, directory)
                os.unlink(last, dir_fd=directory)
        except FileNotFoundError:
            pass  # gone already: what matters is that it was taken
        except OSError as error:
            self._tell_of_left_over(taken.path, error)

    def make_public_directory(self, relative: str) -> int:
        """Make a directory that both containers use, with its parents, and return its descriptor.

        Raises:
            VolumeUnusable: something else is in its place.
        """
        directory = os.dup(self._root)
        try:
            for part in relative.split("/"):
                inner = self._make_directory(part, directory)
                os.close(directory)
                directory = inner
        except OSError as error:
            os.close(directory)
            raise VolumeUnusable(
                f"the directory {relative} cannot be made in the volume {self.root}: {error.strerror}"
            ) from None
        return directory

    # -- within

    def _own_is_gone(self) -> VolumeUnusable:
        """Say what it means that a directory is gone in which nobody else has any business."""
        own = os.path.join(self.root, OWN_DIRECTORY)
        return VolumeUnusable(
            f"{own} was removed, or something in it, while the sidecar was at work: it is the sidecar's own;"
            " a new start makes it again"
        )

    def _remove_if_allowed(self, name: str, parent: int) -> None:
        """Remove a tree, or say once that it cannot be: what a root transformation wrote only root can remove."""
        try:
            remove_tree(name, parent)
        except OSError as error:
            # On NFS a file that is held leaves a name behind where it was removed, until it is closed.
            is_held = error.errno in {errno.ENOTEMPTY, errno.EBUSY} and self.large_files.are_waiting
            if is_held or error.errno in OUR_WANT:
                self._postponed.append(partial(self._remove_if_allowed, name, parent))
                return
            self._tell_of_left_over(f"{OWN_DIRECTORY}/…/{error.filename}", error)

    def _remove_postponed(self) -> None:
        if self._postponed:
            postponed, self._postponed = self._postponed, []
            while postponed and not self._postponed:
                postponed.pop()()
            self._postponed += postponed

    def _tell_of_left_over(self, path: str, error: OSError) -> None:
        if not self._told_of_left_overs:
            self._told_of_left_overs = True
            _log.warning(
                "a file on the volume cannot be removed; further ones are not told",
                file=path,
                reason=error.strerror,
            )

    def _must_have_holes(self, descriptor: int, size: int) -> bool:
        """Tell whether a file is larger than its file system and has holes, without which a compressing one could hold it."""
        return size > self.capacity() and os.lseek(descriptor, 0, os.SEEK_HOLE) < size

    def _relative(self, path: str) -> list[str]:
        if len(os.fsencode(path)) > MAX_LOCAL_PATH_BYTES:
            raise PathRefused(
                f"{path[:200]!r} is longer than the {MAX_LOCAL_PATH_BYTES} bytes that a path may have"
            )
        for prefix in self._prefixes:
            if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in {"/", ""}:
                parts = [part for part in path[len(prefix) :].split("/") if part not in {"", "."}]
                break
        else:
            raise PathRefused(f"{path[:200]!r} is outside the volume {self.root}")
        if not parts or ".." in parts or "\0" in path:
            raise PathRefused(f"{path[:200]!r} leads out of the volume")
        return parts

    def _open_beneath(self, parts: list[str], shown: str) -> int:
        *parents, last = parts
        try:
            directory = self._walk(parents)
            # A device is recognised before it is opened: opening one can have effects.
            if not stat.S_ISREG(os.stat(last, dir_fd=directory, follow_symlinks=False).st_mode):
                raise PathRefused(f"{shown[:200]!r} is not a regular file")
            return os.open(last, _EXISTING_FILE, dir_fd=directory)
        except OSError as error:
            if error.errno in OUR_WANT:
                raise
            reason = "it is leased" if error.errno == errno.EAGAIN else error.strerror
            raise PathRefused(f"{shown[:200]!r} cannot be opened: {reason}") from None

    def _walk(self, parents: list[str]) -> int:
        """Return a descriptor of a directory, valid until the next walk or `_leave`: the files of a result are mostly in one."""
        if self._walked is not None:
            known, directory = self._walked
            if known == parents:
                return directory
            self._leave()
        directory = self._root
        for parent in parents:
            try:
                inner = os.open(parent, OPEN_DIRECTORY, dir_fd=directory)
            finally:
                if directory != self._root:
                    os.close(directory)
            directory = inner
        if directory != self._root:
            self._walked = parents, directory
        return directory

    def _leave(self) -> None:
        """Forget where the last walk led to: by the next call something else may be there."""
        if self._walked is not None:
            _, directory = self._walked
            self._walked = None
            os.close(directory)

    def _make_directory(self, name: str, parent: int) -> int:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=parent)
        return os.open(name, OPEN_DIRECTORY, dir_fd=parent)

    def _make_empty_directory(self, name: str) -> int:
        try:
            os.mkdir(name, dir_fd=self._own)
        except FileExistsError:
            remove_tree(name, self._own)
            os.mkdir(name, dir_fd=self._own)
        return os.open(name, OPEN_DIRECTORY, dir_fd=self._own)


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _raise_descriptor_limit() -> int:
    """Allow this process as many open files as it may have, and return how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 1 << 20
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):
            return soft
    return wanted
