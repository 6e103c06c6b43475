"""A store that keeps its objects in a directory: for local runs and deterministic tests.

A bucket is a directory and an object a file in it, named so that a person finds it again:
`iterum_data/cat 1.jpg` is `iterum_data%2Fcat%201.jpg`. An object appears whole or not at all: it is
copied to a temporary file beside it and renamed. Copies, not hard links, because what the step does
later to the file that it handed us must not reach the object.

Nothing is synchronised to the disk. Against a crash of this program the page cache is safe enough,
and a crash of the machine ends a local run anyway.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from typing import TYPE_CHECKING, Final, final

import trio

from .copying import FileCopier
from .port import (
    BucketMissing,
    ObjectMissing,
    StoredObject,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from .signature import quote

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .port import Admit

__all__ = ["DirectoryStore", "decode_name", "encode_name"]

# A file name may have 255 bytes. Quoted keys are cut below that, with room for two marks.
_NAME_PIECE: Final = 200

# Begins the names of files that are being written; no encoded name begins with a dot.
_TEMPORARY: Final = ".incoming-"


def encode_name(name: str) -> str:
    """Return a relative path for a key or a bucket: one that leads nowhere else, and is unique.

    Long names are cut into pieces, each the directory of the next. A `+` ends the name of such a
    directory and a `=` begins what is in it; neither occurs in quoted text, so no object can be
    another's directory.

    Raises:
        UnicodeEncodeError: `name` holds a lone surrogate and so has no UTF-8 form.
    """
    quoted = quote(name)
    if quoted.startswith("."):
        quoted = f"%2E{quoted[1:]}"
    if len(quoted) <= _NAME_PIECE:
        return quoted
    pieces = [quoted[i : i + _NAME_PIECE] for i in range(0, len(quoted), _NAME_PIECE)]
    return "+/=".join(pieces)


def decode_name(path: str) -> str:
    """Return the key or bucket that `encode_name` made this path of."""
    # Only listings come here, and `urllib.parse` takes a while to import.
    from urllib.parse import unquote

    return unquote(path.replace("+/=", ""), errors="strict")


@final
class DirectoryStore:
    """Objects in the directory `root`, which is made when the first bucket is.

    It keeps every promise of `Store` and has the extras of `S3Store`, so that one can stand in for
    the other. Several processes may share a directory.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = os.path.abspath(root)
        self._copier = FileCopier()
        self._numbers = itertools.count()

    def __repr__(self) -> str:
        return f"DirectoryStore({self._root!r})"

    async def __aenter__(self) -> DirectoryStore:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Do nothing: no file stays open between two requests."""
        await trio.lowlevel.checkpoint()

    async def fetch(self, bucket: str, key: str, file: int, *, admit: Admit | None = None) -> int:
        """Write the object's bytes to `file` and return how many there were; as `Store.fetch`."""
        path = self._object_path(bucket, key)
        try:
            source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise self._failure("get", bucket, key, error) from error
        try:
            size = os.fstat(source).st_size
            if admit is not None:
                admit(size)
            # Whatever fails from here on is told as it is: it is the destination that fills up.
            copied = await self._copier.copy(source, file, size)
        finally:
            os.close(source)
        if copied != size:
            raise StoreUnavailable(
                f"get {bucket}/{key}: {copied} of {size} bytes",
                bucket=bucket,
                key=key,
                code="ShortBody",
            )
        return size

    async def put(self, bucket: str, key: str, file: int, size: int) -> None:
        """Store the first `size` bytes of `file` as the object; as `Store.put`."""
        path = self._object_path(bucket, key)
        number = next(self._numbers)
        temporary = f"{self._bucket_path(bucket)}/{_TEMPORARY}{os.getpid()}-{number}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            target = os.open(temporary, flags, 0o666)
        except FileNotFoundError as error:
            raise self._bucket_missing("put", bucket, key) from error
        except OSError as error:
            raise self._failure("put", bucket, key, error) from error
        try:
            try:
                copied = await self._copier.copy(file, target, size)
            finally:
                os.close(target)
            if copied != size:
                raise StoreError(
                    f"put {bucket}/{key}: the file is shorter than announced, {copied} of {size} bytes",
                    bucket=bucket,
                    key=key,
                    code="FileShrank",
                )
            self._rename(temporary, path)
        except OSError as error:
            os.unlink(temporary)
            raise self._failure("put", bucket, key, error) from error
        except BaseException:
            os.unlink(temporary)
            raise

    async def check_bucket(self, bucket: str) -> None:
        """Return when the bucket exists; as `Store.check_bucket`."""
        await trio.lowlevel.checkpoint()
        if not self._has_bucket(bucket):
            raise self._bucket_missing("check bucket", bucket)

    async def ensure_bucket(self, bucket: str) -> None:
        """Make the bucket unless it is there already; as `Store.ensure_bucket`."""
        await trio.lowlevel.checkpoint()
        try:
            os.makedirs(self._bucket_path(bucket), exist_ok=True)
        except OSError as error:
            raise self._failure("create bucket", bucket, "", error) from error

    async def head_object(self, bucket: str, key: str) -> int:
        """Return the object's size in bytes; as `S3Store.head_object`."""
        path = self._object_path(bucket, key)
        await trio.lowlevel.checkpoint()
        try:
            found = os.stat(path, follow_symlinks=False)
        except OSError as error:
            raise self._failure("look at", bucket, key, error) from error
        return found.st_size

    async def delete_object(self, bucket: str, key: str) -> None:
        """Delete the object; that it was not there is no error; as `S3Store.delete_object`."""
        path = self._object_path(bucket, key)
        await trio.lowlevel.checkpoint()
        try:
            os.unlink(path)
        except OSError as error:
            failure = self._failure("delete", bucket, key, error)
            if not isinstance(failure, ObjectMissing):
                raise failure from error

    async def list_objects(
        self, bucket: str, prefix: str = "", *, page_size: int = 1000
    ) -> list[StoredObject]:
        """Return all objects whose keys begin with `prefix`, in the order of their UTF-8 bytes.

        `page_size` is how many are looked at between two turns of the other tasks.
        """
        if not self._has_bucket(bucket):
            raise self._bucket_missing("list", bucket)
        found = []
        for count, (path, size) in enumerate(_files(self._bucket_path(bucket))):
            if count % page_size == 0:
                await trio.lowlevel.checkpoint()
            key = decode_name(path)
            if key.startswith(prefix):
                found.append(StoredObject(key, size))
        await trio.lowlevel.checkpoint()
        found.sort(key=lambda entry: entry.key.encode())
        return found

    def _rename(self, temporary: str, path: str) -> None:
        try:
            os.rename(temporary, path)
        except FileNotFoundError:
            # A long key's directories come with its first object.
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.rename(temporary, path)

    def _has_bucket(self, bucket: str) -> bool:
        return os.path.isdir(self._bucket_path(bucket))

    def _bucket_path(self, bucket: str) -> str:
        name = self._encode(bucket, bucket, "")
        if "/" in name:
            raise StoreRefused(
                f"{bucket!r} is too long for a bucket's name",
                bucket=bucket,
                code="InvalidBucketName",
            )
        return f"{self._root}/{name}"

    def _object_path(self, bucket: str, key: str) -> str:
        return f"{self._bucket_path(bucket)}/{self._encode(key, bucket, key)}"

    def _encode(self, name: str, bucket: str, key: str) -> str:
        what = "key" if key else "bucket's name or key"
        if not name:
            raise StoreRefused(f"an empty {what}", bucket=bucket, key=key, code="InvalidKey")
        try:
            return encode_name(name)
        except UnicodeEncodeError:
            raise StoreRefused(
                f"the {what} {name!r} has no UTF-8 form", bucket=bucket, key=key, code="InvalidKey"
            ) from None

    def _bucket_missing(self, what: str, bucket: str, key: str = "") -> BucketMissing:
        return BucketMissing(
            f"{what} {bucket}/{key}: there is no such bucket",
            bucket=bucket,
            key=key,
            code="NoSuchBucket",
        )

    def _failure(self, what: str, bucket: str, key: str, error: OSError) -> StoreError:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            if not self._has_bucket(bucket):
                return self._bucket_missing(what, bucket, key)
            return ObjectMissing(
                f"{what} {bucket}/{key}: there is no such object",
                bucket=bucket,
                key=key,
                code="NoSuchKey",
            )
        refused = isinstance(error, PermissionError)
        code = errno.errorcode.get(error.errno or 0, "OSError")
        return (StoreRefused if refused else StoreUnavailable)(
            f"{what} {bucket}/{key}: {code} {error.strerror}", bucket=bucket, key=key, code=code
        )


def _files(root: str) -> Iterator[tuple[str, int]]:
    """Give each object's path below `root` and its size; files that are being written are left out."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(f"{root}/{below}") as entries:
            for entry in entries:
                path = below + entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{path}/")
                elif not entry.name.startswith("."):
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode):
                        yield path, found.st_size
