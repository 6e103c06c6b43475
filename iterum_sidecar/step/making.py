"""What one call of the function makes: the paths that it was given, and the results that are to be sent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw

from iterum_sidecar.messages import LocalFile
from iterum_sidecar.step.files import File
from iterum_sidecar.step.wire import NOTHING, result_frame

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from types import TracebackType

    from iterum_sidecar.step.volume import Volume

__all__ = [
    "Creation",
    "Making",
    "Origin",
    "Result",
    "decode_custom",
    "encode_custom",
    "frames_of",
    "moved",
]


class Origin:
    """What a result comes of, and where it goes."""

    __slots__ = ("channel", "custom", "predecessors")

    def __init__(self, predecessors: list[str], channel: str | None, custom: Raw) -> None:
        self.predecessors = predecessors
        self.channel = channel
        self.custom = custom


class Result:
    """Some files that become one fragment for the next step. `result` and `create` of a fragment or a batch make it."""

    __slots__ = ("_frame", "_making", "_origin", "files")

    def __init__(self, making: Making, files: tuple[File, ...], origin: Origin) -> None:
        self._making = making
        self._origin = origin
        self.files = files
        """Its files, each with its logical name and its path."""
        self._frame = result_frame(
            [LocalFile(file.name, os.fspath(file)) for file in files],
            origin.predecessors,
            origin.channel,
            origin.custom,
        )

    @property
    def channel(self) -> str | None:
        """The output channel that it goes to; None for the step's own."""
        return self._origin.channel

    @property
    def custom(self) -> dict[str, Any]:
        """The metadata that travels with it; empty when there is none."""
        return decode_custom(self._origin.custom)

    @property
    def predecessors(self) -> tuple[str, ...]:
        """The IDs of the fragments that it was made of."""
        return tuple(self._origin.predecessors)

    def __repr__(self) -> str:
        names = ", ".join(repr(file.name) for file in self.files)
        return f"<Result {names}{f' for {self.channel!r}' if self.channel else ''}>"


class Making:
    """All that one call of the function makes; nothing of it is sent before the call has ended well."""

    __slots__ = (
        "_created", "_identities", "_names", "_owners", "_results", "_unreturned", "_volume",
    )  # fmt: skip

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._names: dict[str, str] = {}
        """The logical names of paths that are known, by path."""
        self._owners: dict[str, str] = {}
        """The IDs of the fragments that input files are of, by path."""
        self._created: dict[str, Creation | None] = {}
        self._identities: dict[str, tuple[int, ...]] = {}
        """What the files of results were when they became that."""
        self._results: dict[Result, None] = {}
        self._unreturned: dict[Result, None] = {}

    def know(self, files: Sequence[File], fragment_id: str) -> None:
        """Note the input files of a fragment."""
        for file in files:
            path = os.fspath(file)
            self._names[path] = file.name
            self._owners[os.path.abspath(path)] = fragment_id

    def new_path(self, name: str, creation: Creation | None = None) -> str:
        """Return a path for an output of that logical name, at which there is nothing yet."""
        path = self._volume.new_path(name)
        self._names[path] = name
        self._created[path] = creation
        return path

    def result(
        self,
        paths: Sequence[str | os.PathLike[str]],
        names: Sequence[str] | None,
        origin: Origin,
    ) -> Result:
        """Return a result of these files, which the function still has to give back.

        Raises:
            ValueError: one of them cannot be a result's file, or the sidecar would refuse the result.
        """
        if not paths:
            raise ValueError("a result has at least one file")
        if names is not None and len(names) != len(paths):
            raise ValueError(f"a result of {len(paths)} files was given {len(names)} names")
        files = []
        for number, given in enumerate(paths):
            path = self._path_of(given)
            own_name = self._names.get(os.fspath(given)) or os.path.basename(path)
            name = own_name if names is None else names[number]
            self._check_owner(path, name, origin.predecessors)
            identity = self._volume.identity(path, name)
            if self._identities.setdefault(path, identity) != identity:
                raise ValueError(
                    f"{path} is the file of a result already, and was written again before that was sent: take a path"
                    " from `create` or `new_path` for each"
                )
            files.append(File(name, path))
        made = Result(self, tuple(files), origin)
        self._unreturned[made] = None
        return made

    def _check_owner(self, path: str, name: str, predecessors: list[str]) -> None:
        """Refuse an input file of another fragment, as a sidecar would, which then could not say at which line it was."""
        # What comes of several comes of the whole batch, and every input file of this call is of that.
        if len(predecessors) == 1 and self._owners.get(path) not in {None, *predecessors}:
            raise ValueError(
                f"{name!r} is an input file of another fragment of the batch: make the result of the batch, with"
                " `batch.result`, or of a copy at a path from `new_path`"
            )

    def _path_of(self, given: str | os.PathLike[str]) -> str:
        path = os.fspath(given)
        if path not in self._created:
            return self._volume.checked(path)
        creation = self._created[path]
        if creation is not None:
            creation.hand_over()
        return path

    def give(self, result: Result) -> None:
        """Take a result that the function gives back; a second time changes nothing."""
        if result._making is not self:
            raise ValueError(f"{result!r} was made in an earlier call, which has ended")
        self._unreturned.pop(result, None)
        self._results[result] = None

    def is_made_by_block(self, path: str | os.PathLike[str]) -> bool:
        """Tell whether a `create` block makes, or has made, a result of that path."""
        creation = self._created.get(os.fspath(path))
        return creation is not None and not creation.handed_over

    def finish(self) -> list[Result]:
        """End the call well: return what is to be sent, and remove the files that are in no result.

        Raises:
            ValueError: a result was made and not given back.
        """
        if self._unreturned:
            names = ", ".join(repr(each.files[0].name) for each in self._unreturned)
            raise ValueError(
                f"`result` was called for {names}, but the function did not give it back: `return` or `yield` every"
                " result, or make it with `create`"
            )
        results = list(self._results)
        sent = {os.fspath(file) for each in results for file in each.files}
        _remove((path for path in self._created if path not in sent), sent)
        return results

    def discard(self) -> None:
        """End the call badly: remove all that it made in the directory of results."""
        made = [*self._results, *self._unreturned]
        paths = {os.fspath(file) for each in made for file in each.files}
        _remove(path for path in paths.union(self._created) if self._volume.is_output(path))


class Creation:
    """A `with` block in which one file is made. When it ends well the file is a result; otherwise the file is removed."""

    __slots__ = ("_ended", "_making", "_name", "_origin", "_path", "handed_over")

    def __init__(self, making: Making, name: str, origin: Origin) -> None:
        self._making = making
        self._name = name
        self._origin = origin
        self._path: str | None = None
        self._ended = False
        self.handed_over = False
        """Whether the function has made the result itself."""

    def hand_over(self) -> None:
        """Let the function make a result of the file itself, which it may within the block.

        Raises:
            ValueError: the block has ended, and has made one.
        """
        if self._ended and not self.handed_over:
            raise ValueError(
                f"{self._name!r} became a result when its `create` block ended: give `channel` and `custom` to"
                " `create`, or take the path from `new_path`"
            )
        self.handed_over = True

    def __enter__(self) -> Path:
        if self._path is not None:
            raise ValueError("`create` makes one file: call it again for another")
        self._path = self._making.new_path(self._name, self)
        return Path(self._path)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        path = self._path
        if path is None:
            raise AssertionError("a block ended that was not entered")
        if error is None and not self.handed_over:
            made = self._making.result([path], [self._name], self._origin)
            self._making.give(made)
            self.handed_over = False
        elif error is not None and not self.handed_over:
            _remove([path])
        self._ended = True


def frames_of(results: Iterable[Result]) -> list[bytes]:
    """Return the frames that send these results."""
    return [result._frame for result in results]


def moved(result: Result, files: Sequence[File]) -> Result:
    """Return the same result with its files at other paths."""
    return Result(result._making, tuple(files), result._origin)


def encode_custom(custom: Mapping[str, Any]) -> Raw:
    """Return metadata as it travels; nothing for an empty dictionary.

    Raises:
        ValueError: it cannot be written as JSON.
    """
    if not hasattr(custom, "keys"):
        raise ValueError(f"custom metadata is a dictionary, not {type(custom).__name__}")
    try:
        return Raw(msgspec.json.encode(custom)) if custom else NOTHING
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"custom metadata cannot be written as JSON: {error}") from None


def decode_custom(custom: Raw) -> dict[str, Any]:
    """Return metadata that has travelled.

    Raises:
        ValueError: it is JSON, but no object.
    """
    if not bytes(custom):
        return {}
    value = msgspec.json.decode(custom)
    if not isinstance(value, dict):
        raise ValueError(f"the custom metadata is no object: {bytes(custom)[:80]!r}")
    return value


def _remove(paths: Iterable[str], sent: Collection[str] = ()) -> None:
    """Remove files, and folders with all that is in them, unless a file that is to be sent is there."""
    for path in paths:
        # What is gone already, or cannot be removed, is no reason to fail: nothing was sent of it.
        try:
            os.unlink(path)
        except IsADirectoryError:
            if not any(each.startswith(f"{path}/") for each in sent):
                import shutil

                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass
