"""Copying the contents of one open file to another in the cheapest way that the two file systems allow.

Copies, never hard links: whoever writes to one of the two files later must not reach the other. Where the file system
can share blocks until one of them is written to (reflinks), a copy costs nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FileCopier", "copy_contents"]

# Up to this size a copy is cheaper (0.3 ms) than the hop to a thread is worth.
COPY_INLINE: Final = 1024 * 1024

# How many large files are copied at a time: a disk does not get faster with more.
COPY_THREADS: Final = 4

# Bytes copied between two looks at whether the copy has been cancelled.
COPY_CHUNK: Final = 8 * 1024 * 1024

# ioctl(2) FICLONE of <linux/fs.h>: share all blocks of a file, on Btrfs, XFS and the like.
_FICLONE: Final = 0x40049409

# "Not here, not for these files": each of the kernel's ways to copy may say so, and the next one is
# tried then.
_CANNOT: Final = frozenset(
    {
        errno.EBADF,
        errno.EINVAL,
        errno.ENOSYS,
        errno.ENOTTY,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.ETXTBSY,
        errno.EXDEV,
    }
)


class FileCopier:
    """Copies small files at once, and large ones in threads, a few at a time."""

    def __init__(self) -> None:
        self._copying = trio.CapacityLimiter(COPY_THREADS)

    async def copy(self, source: int, target: int, size: int) -> int:
        """Copy the first `size` bytes of the descriptor `source` to `target`, which is empty; returns how many there were.

        Raises:
            OSError: either cannot be used, or there is no room.
        """
        if size <= COPY_INLINE:
            await trio.lowlevel.checkpoint()
            return copy_contents(source, target, size)
        return await trio.to_thread.run_sync(
            copy_contents,
            source,
            target,
            size,
            trio.from_thread.check_cancelled,
            limiter=self._copying,
        )


def copy_contents(
    source: int, target: int, size: int, look: Callable[[], None] = lambda: None
) -> int:
    """Copy the first `size` bytes of `source` to `target`, which is empty; return how many.

    The cheapest way that the two file systems allow is taken: shared blocks, a copy inside the
    kernel, a copy through memory. `look` is called between chunks.
    """
    done = 0
    # Small files are not worth the system calls that find out what is possible.
    if size > COPY_INLINE:
        if _clone(source, target, size):
            return size
        for copy_some in (_copy_file_range, _sendfile):
            try:
                while done < size:
                    count = copy_some(source, target, min(COPY_CHUNK, size - done), done)
                    if count == 0:
                        return done
                    done += count
                    look()
                return done
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
    while done < size:
        data = os.pread(source, min(COPY_INLINE, size - done), done)
        if not data:
            return done
        view = memoryview(data)
        while view:
            count = os.pwrite(target, view, done)
            view = view[count:]
            done += count
        look()
    return done


def _clone(source: int, target: int, size: int) -> bool:
    # All of a file or nothing: a part of it would have to end on a block.
    if os.fstat(source).st_size != size:
        return False
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    # It may have grown between the two calls.
    os.ftruncate(target, size)
    return os.fstat(target).st_size == size


def _copy_file_range(source: int, target: int, count: int, offset: int) -> int:
    return os.copy_file_range(source, target, count, offset, offset)


def _sendfile(source: int, target: int, count: int, offset: int) -> int:
    os.lseek(target, offset, os.SEEK_SET)
    return os.sendfile(target, source, offset, count)
