"""How the input's files become first fragments: their content is hashed, they are grouped, and each group gets its ID."""

from __future__ import annotations

import os
import re
import stat
import time
from collections import deque
from dataclasses import dataclass, field, replace
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

import trio

from iterum_sidecar.local.inputs import InputsRefused, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from iterum_sidecar.local.inputs import InputFile

__all__ = [
    "ByFolder",
    "ByNumber",
    "FirstFragment",
    "Grouping",
    "GroupingRefused",
    "HashCache",
    "OneEach",
    "first_fragment_id",
    "hash_contents",
    "parse_grouping",
]

# -- the hashes

#: A hop to a thread costs about as much as hashing ten files of 4 KiB: many share one.
_FILES_AT_A_TIME = 256
#: What is read in one hop before its result is looked at, unless a single file is larger.
_BYTES_AT_A_TIME = 4 * 1024 * 1024
#: Hops that may be on their way: a large file holds up those behind it no sooner, and few files are held meanwhile.
_BATCHES_AHEAD = 8
#: BLAKE2b takes a core for each file; more than two slow the steps down, and a disk is not faster for it.
_THREADS = 2
#: Bytes read between two looks at whether the hashing was cancelled, and between two words of progress.
_CHUNK = 1024 * 1024
_PROGRESS_EVERY = 64 * 1024 * 1024
_ATTEMPTS = 3
#: A file system's clock ticks every 10 ms at worst; where it keeps whole seconds alone, every two (FAT).
_TICK_NS = 50_000_000
_COARSE_TICK_NS = 2_000_000_000
_SECOND_NS = 1_000_000_000


class HashCache(Protocol):
    """Content hashes of earlier runs, kept by name, size and time of change. Called in Trio's own thread."""

    def lookup(self, name: str, size: int, mtime_ns: int) -> str | None:
        """Return the hash of the file of this name, size and time, or None when it is not known."""

    def remember(self, name: str, size: int, mtime_ns: int, content_hash: str) -> None:
        """Keep a hash."""


class _Read(NamedTuple):
    """What reading a file came to: the file as it was then, its hash, and whether they may be remembered together."""

    file: InputFile
    content_hash: str
    settled: bool


@dataclass(eq=False, slots=True)
class _Batch:
    """Consecutive files on their way to a thread and back; `known` has their hashes from the cache, or None."""

    files: list[InputFile]
    known: list[str | None]
    outcomes: list[_Read | str | None] = field(default_factory=list)
    """For each file that was not known: what was read, why it could not be, or None for a file that has gone."""
    ready: trio.Event = field(default_factory=trio.Event)
    bytes_read: int = 0
    """How much of a large file has been read."""


async def hash_contents(
    files: Iterable[InputFile],
    cache: HashCache,
    take: Callable[[InputFile, str], None],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Call `take` with every file, in order, and the BLAKE2b hash of its content: 32 bytes, as 64 hexadecimal digits.

    A hash that `cache` knows is not computed again. `files` may be of any number; it is advanced in a worker thread, at
    most a few thousand files ahead of `take`. `take` is given the file as it was when it was read, which is what the cache
    remembers, unless the file was changed so shortly before that a later change might bear the same time.
    `progress` is called with the files taken and the bytes read or known, several times in a large file.

    A file that has gone since it was scanned is skipped. One that changes while it is read is read again, twice at most.

    Raises:
        InputsRefused: after the last file: those that `files` itself raised, those that could not be read, and those
            that would not keep still.
    """
    failure: Exception | None = None
    hashing = _Hashing(cache, take, progress)
    async with trio.open_nursery() as nursery:
        try:
            await hashing.run(iter(files), nursery)
        except Exception as error:
            # Raised bare, behind the nursery: what `take`, the cache or the files raise is the caller's own.
            failure = error
            nursery.cancel_scope.cancel("the hashing has failed")
    if failure is not None:
        raise failure
    if hashing.problems:
        raise InputsRefused(hashing.problems)


class _Hashing:
    """One call of `hash_contents`."""

    def __init__(
        self,
        cache: HashCache,
        take: Callable[[InputFile, str], None],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.problems: list[str] = []
        self._cache = cache
        self._take = take
        self._progress = progress
        self._limiter = trio.CapacityLimiter(_THREADS)
        self._ahead: deque[_Batch] = deque()
        self._files = 0
        self._bytes = 0

    async def run(self, files: Iterator[InputFile], nursery: trio.Nursery) -> None:
        """Keep a few batches ahead on their way, and take the oldest as it comes back."""
        refused: list[str] = []
        while pulled := await trio.to_thread.run_sync(_pull, files, refused):
            for batch in self._divide(pulled):
                self._ahead.append(batch)
                if None in batch.known:
                    nursery.start_soon(self._read, batch)
                else:
                    batch.ready.set()
                while len(self._ahead) > _BATCHES_AHEAD or (
                    self._ahead and self._ahead[0].ready.is_set()
                ):
                    await self._take_oldest()
        while self._ahead:
            await self._take_oldest()
        self.problems[:0] = refused

    def _divide(self, files: list[InputFile]) -> Iterator[_Batch]:
        batch, unread = _Batch([], []), 0
        for file in files:
            known = self._cache.lookup(file.name, file.size, file.mtime_ns)
            batch.files.append(file)
            batch.known.append(known)
            unread += file.size if known is None else 0
            if unread >= _BYTES_AT_A_TIME:
                yield batch
                batch, unread = _Batch([], []), 0
        if batch.files:
            yield batch

    async def _read(self, batch: _Batch) -> None:
        pairs = zip(batch.files, batch.known, strict=True)
        unknown = [file for file, known in pairs if known is None]
        batch.outcomes = await trio.to_thread.run_sync(
            self._read_in_thread, batch, unknown, limiter=self._limiter
        )
        batch.ready.set()

    def _read_in_thread(self, batch: _Batch, files: list[InputFile]) -> list[_Read | str | None]:
        def tell(bytes_read: int) -> None:
            trio.from_thread.check_cancelled()
            if bytes_read and bytes_read % _PROGRESS_EVERY == 0:
                batch.bytes_read = bytes_read
                trio.from_thread.run_sync(self._tell)

        return [_read(file, tell) for file in files]

    async def _take_oldest(self) -> None:
        batch = self._ahead[0]
        await batch.ready.wait()
        outcomes = iter(batch.outcomes)
        for file, known in zip(batch.files, batch.known, strict=True):
            if known is not None:
                self._pass_on(file, known)
                continue
            outcome = next(outcomes)
            if isinstance(outcome, _Read):
                file, content_hash = outcome.file, outcome.content_hash
                if outcome.settled:
                    self._cache.remember(file.name, file.size, file.mtime_ns, content_hash)
                self._pass_on(file, content_hash)
            elif outcome is not None:
                self.problems.append(outcome)
        self._ahead.popleft()
        self._tell()

    def _pass_on(self, file: InputFile, content_hash: str) -> None:
        self._take(file, content_hash)
        self._files += 1
        self._bytes += file.size

    def _tell(self) -> None:
        if self._progress is not None:
            ahead = sum(batch.bytes_read for batch in self._ahead)
            self._progress(self._files, self._bytes + ahead)


def _pull(files: Iterator[InputFile], refused: list[str]) -> list[InputFile]:
    """Return the next files, none when there are no more; what is refused at their end goes into `refused`."""
    pulled: list[InputFile] = []
    try:
        for file in files:
            pulled.append(file)
            if len(pulled) == _FILES_AT_A_TIME:
                break
    except InputsRefused as error:
        refused += error.problems
    return pulled


def _read(file: InputFile, tell: Callable[[int], None]) -> _Read | str | None:
    """Hash one file. Returns why it could not be in words, and None for one that has gone."""
    told = shown(file.path)
    try:
        for _ in range(_ATTEMPTS):
            found = _read_once(file, tell)
            if found is not None:
                return found
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"{told}: cannot be read: {error.strerror}; make it readable, or take it out of the input"
    return f"{told}: changes while it is read; let what writes it finish, then start again"


def _read_once(file: InputFile, tell: Callable[[int], None]) -> _Read | None:
    """Hash one file as it is now, or return None when it was changed meanwhile."""
    # Not blocking: a pipe may have taken its place, and would wait for a writer.
    descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        started = time.time_ns()
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise FileNotFoundError(file.path)
        digest = blake2b(digest_size=32)
        size = 0
        while size < before.st_size:
            tell(size)
            chunk = os.read(descriptor, min(_CHUNK, before.st_size - size))
            if not chunk:
                break
            digest.update(chunk)
            size += len(chunk)
        after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if (size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        return None
    if (size, after.st_mtime_ns) != (file.size, file.mtime_ns):
        file = replace(file, size=size, mtime_ns=after.st_mtime_ns)
    tick = _TICK_NS if file.mtime_ns % _SECOND_NS else _COARSE_TICK_NS
    return _Read(file, digest.hexdigest(), settled=started - file.mtime_ns >= tick)


# -- the groups


@dataclass(frozen=True, slots=True)
class FirstFragment:
    """A fragment of the input's files, each with the hash of its content; `custom` is JSON of the fragmenter's own."""

    files: Sequence[tuple[InputFile, str]]
    custom: bytes | None = None


class GroupingRefused(ValueError):
    """The options say no way to group files; the text says which one and what it may be."""


class OneEach:
    """Every file is a fragment."""

    def feed(self, file: InputFile, content_hash: str) -> tuple[FirstFragment, ...]:
        """Take the next file and return the fragments that are complete now."""
        return (FirstFragment([(file, content_hash)]),)

    def finish(self) -> tuple[FirstFragment, ...]:
        """Return what is left behind the last file."""
        return ()


class ByNumber:
    """`number` files in a row are a fragment; the last may be smaller. Raises ValueError for less than one."""

    def __init__(self, number: int) -> None:
        if number < 1:
            raise ValueError("a fragment holds at least one file")
        self.number = number
        self._waiting: list[tuple[InputFile, str]] = []

    def feed(self, file: InputFile, content_hash: str) -> tuple[FirstFragment, ...]:
        """Take the next file and return the fragments that are complete now."""
        self._waiting.append((file, content_hash))
        return self.finish() if len(self._waiting) == self.number else ()

    def finish(self) -> tuple[FirstFragment, ...]:
        """Return what is left behind the last file."""
        waiting, self._waiting = self._waiting, []
        return (FirstFragment(waiting),) if waiting else ()


class ByFolder:
    """The files of one folder are a fragment, without those of the folders in it; those at the top are one too.

    They must come folder by folder, as a scan yields them.
    """

    def __init__(self) -> None:
        self._folder = ""
        self._waiting: list[tuple[InputFile, str]] = []

    def feed(self, file: InputFile, content_hash: str) -> tuple[FirstFragment, ...]:
        """Take the next file and return the fragments that are complete now."""
        folder = file.name.rpartition("/")[0]
        complete = self.finish() if folder != self._folder else ()
        self._folder = folder
        self._waiting.append((file, content_hash))
        return complete

    def finish(self) -> tuple[FirstFragment, ...]:
        """Return what is left behind the last file."""
        waiting, self._waiting = self._waiting, []
        return (FirstFragment(waiting),) if waiting else ()


Grouping: TypeAlias = OneEach | ByNumber | ByFolder


def parse_grouping(group: str | None, group_by: str | None) -> Grouping:
    """Return what `--group` and `--group-by` ask for; one file each when neither is given.

    Raises:
        GroupingRefused: a value that is none, or both options.
    """
    if group is not None and group_by is not None:
        raise GroupingRefused("--group and --group-by exclude each other; give one of them")
    if group is not None:
        # Ten digits are more files than a folder holds, and less than Python refuses to read.
        if not re.fullmatch(r"0*[1-9][0-9]{0,9}", group, re.ASCII):
            raise GroupingRefused(
                f"--group {group!r} is no number of files; give a whole number from 1 on, such as --group 10"
            )
        return ByNumber(int(group))
    if group_by is not None:
        if group_by != "folder":
            raise GroupingRefused(
                f"--group-by {group_by!r} is not known; files can be grouped by 'folder'"
            )
        return ByFolder()
    return OneEach()


def first_fragment_id(pipeline_hash: str, fragment: FirstFragment, ordinal: int) -> str:
    """Return the ID of a first fragment: the same wherever the same files are grouped in the same way.

    It is the SHA-256, as 64 hexadecimal digits, over: the pipeline hash, the custom metadata, the name and the content
    hash of each file in their order, and the ordinal. A text or the metadata counts as its length in 8 bytes,
    big-endian, and its bytes; the absent metadata as the number 0 in 8 bytes and other metadata as the number 1 and then
    itself; the files as their number in 8 bytes and then each of them; the ordinal as 8 bytes. `ordinal` counts the
    fragments, from 0, that agree in all else: only a fragmenter of the user's own makes such.
    """
    digest = sha256(_part(pipeline_hash.encode()))
    custom = fragment.custom
    digest.update(_number(0) if custom is None else _number(1) + _part(custom))
    digest.update(_number(len(fragment.files)))
    for file, content_hash in fragment.files:
        digest.update(_part(file.name.encode()) + _part(content_hash.encode()))
    digest.update(_number(ordinal))
    return digest.hexdigest()


def _number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def _part(value: bytes) -> bytes:
    return _number(len(value)) + value
