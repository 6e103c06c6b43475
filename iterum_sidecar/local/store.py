"""The object store of a local run: results in a directory, the input folder and the config files as buckets that are only read.

An input file is held against what it was when its content was looked at: one that has changed since would be worked under the
identity of its old content.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final, final

from iterum_sidecar.config_files import CONFIG_PREFIX
from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.stores.copying import FileCopier
from iterum_sidecar.stores.directory import DirectoryStore
from iterum_sidecar.stores.port import ObjectMissing, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from iterum_sidecar.stores.port import Admit

__all__ = ["INPUT_BUCKET", "LocalStore"]

#: The bucket in the descriptions of the first fragments; an object's key is the file's name in the input folder.
INPUT_BUCKET: Final = "input"

_NO_ROOM: Final = frozenset({"ENOSPC", "EDQUOT", "EFBIG", "EROFS"})
#: What says nothing of the file: neither a descriptor nor memory is free.
_OUR_WANT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@final
class LocalStore:
    """`stores.port.Store` for a local run.

    `input_stamp` tells the size and time (ns) that an input file had when its content was looked at.
    """

    def __init__(
        self,
        *,
        objects: Path,
        inputs: Path,
        input_stamp: Callable[[str], tuple[int, int] | None],
        config_bucket: str,
        config_folder: Path,
    ) -> None:
        self._root = objects
        self._objects = DirectoryStore(objects)
        self._copier = FileCopier()
        self._inputs = os.path.abspath(inputs)
        self._input_stamp = input_stamp
        self._config_bucket = config_bucket
        self._config_folder = os.path.abspath(config_folder)

    async def fetch(self, bucket: str, key: str, file: int, *, admit: Admit | None = None) -> int:
        """Write the object's bytes to `file` and return how many there were; as `Store.fetch`."""
        if bucket == INPUT_BUCKET:
            return await self._fetch_input(key, file, admit)
        if bucket == self._config_bucket:
            path = os.path.join(self._config_folder, key.removeprefix(CONFIG_PREFIX))
            return await self._fetch_file(bucket, key, path, file, admit)
        return await self._objects.fetch(bucket, key, file, admit=admit)

    async def put(self, bucket: str, key: str, file: int, size: int) -> None:
        """Store the first `size` bytes of `file` as the object; as `Store.put`.

        Raises:
            VolumeUnusable: there is no room for it; to wait for room, as for a store that is away, would help nobody here.
        """
        try:
            await self._objects.put(bucket, key, file, size)
        except StoreError as error:
            if error.code not in _NO_ROOM:
                raise
            raise VolumeUnusable(
                f"there is no room for a result in {self._root}: {error}; make room, and run again"
            ) from None

    async def ensure_bucket(self, bucket: str) -> None:
        """Make the bucket unless it is there already; as `Store.ensure_bucket`."""
        await self._objects.ensure_bucket(bucket)

    async def check_bucket(self, bucket: str) -> None:
        """Return when the bucket exists; as `Store.check_bucket`."""
        await self._objects.check_bucket(bucket)

    async def _fetch_input(self, name: str, file: int, admit: Admit | None) -> int:
        stamp = self._input_stamp(name)
        path = os.path.join(self._inputs, name)
        size = await self._fetch_file(INPUT_BUCKET, name, path, file, admit, stamp)
        # Again afterwards: it may have been written to while it was copied.
        try:
            found = os.stat(path)
        except OSError:
            found = None
        if found is None or (found.st_size, found.st_mtime_ns) != stamp:
            raise _has_changed(name)
        return size

    async def _fetch_file(
        self,
        bucket: str,
        key: str,
        path: str,
        file: int,
        admit: Admit | None,
        stamp: tuple[int, int] | None = None,
    ) -> int:
        try:
            source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in _OUR_WANT:
                raise StoreUnavailable(
                    f"{path} cannot be read now: {error.strerror}",
                    bucket=bucket,
                    key=key,
                    code=errno.errorcode[error.errno],
                ) from None
            raise ObjectMissing(
                f"{path} cannot be read: {error.strerror}", bucket=bucket, key=key, code="NoSuchKey"
            ) from None
        try:
            found = os.fstat(source)
            if stamp is not None and (found.st_size, found.st_mtime_ns) != stamp:
                raise _has_changed(key)
            if admit is not None:
                admit(found.st_size)
            copied = await self._copier.copy(source, file, found.st_size)
        finally:
            os.close(source)
        if copied != found.st_size:
            raise _has_changed(key)
        return copied


def _has_changed(name: str) -> StoreError:
    return StoreError(
        f"the input file {name} has changed since the run began; run again",
        bucket=INPUT_BUCKET,
        key=name,
        code="InputChanged",
    )
