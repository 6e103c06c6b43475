"""What the function is given: a fragment, or a batch of them when the step gathers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from iterum_sidecar.step.configuration import check_channel
from iterum_sidecar.step.files import File
from iterum_sidecar.step.making import Creation, Origin, decode_custom, encode_custom
from iterum_sidecar.step.wire import NOTHING

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from msgspec import Raw

    from iterum_sidecar.step.making import Making, Result
    from iterum_sidecar.step.wire import Handout

__all__ = ["Batch", "File", "Fragment", "making_of"]


class _Source(ABC):
    """Something that results are made of."""

    __slots__ = ("_making",)

    def __init__(self, making: Making) -> None:
        self._making = making

    def create(
        self, name: str, *, channel: str | None = None, custom: Mapping[str, Any] | None = None
    ) -> AbstractContextManager[Path, None]:
        """Give a path to write a file of that logical name to; the file is a result when the `with` block ends well.

        `channel` is the output channel that it goes to, as `queue_mapping` of the configuration names it; the step's
        own unless given. `custom` is the metadata that travels with it; without it a fragment's results carry the
        fragment's, and a batch's none.

        Raises:
            ValueError: the configuration has no such channel. At the block's end: there is no file, or its name cannot
                be one (a name is relative and has no `..`). The file is removed when the block ends with an error.
        """
        return Creation(self._making, name, self._origin(channel, custom))

    def new_path(self, name: str) -> Path:
        """Return a new path for a file of that logical name, for `result`; a file that is in no result is removed at the end."""
        from pathlib import Path

        return Path(self._making.new_path(name))

    def result(
        self,
        *paths: str | os.PathLike[str],
        name: str | Sequence[str] | None = None,
        channel: str | None = None,
        custom: Mapping[str, Any] | None = None,
    ) -> Result:
        """Make one result of these files; the function must return or yield it.

        The paths come from `new_path`, are input files, or lie anywhere on the volume. `name` is the file's logical name,
        or a list of one for each file; without it an output of `new_path` and an input file keep theirs, and another is called as
        its path ends. For `channel` and `custom` see `create`. The sidecar removes what it has taken, input
        files excepted.

        Raises:
            ValueError: there is no such file, or it is outside the volume, or an input file of another fragment than
                the result comes of; a name that cannot be one; a channel that the configuration does not have.
        """
        names = [name] if isinstance(name, str) else name
        return self._making.result(paths, names, self._origin(channel, custom))

    @abstractmethod
    def _origin(self, channel: str | None, custom: Mapping[str, Any] | None) -> Origin: ...


class Fragment(_Source):
    """Some files that belong together, and what is known of them: the unit of work."""

    __slots__ = ("_custom", "files", "id", "predecessors")

    def __init__(self, handout: Handout, making: Making) -> None:
        super().__init__(making)
        metadata = handout.metadata
        self.id = metadata.fragment_id
        """Its ID, 64 characters."""
        self.files = tuple(File(file.name, file.path) for file in handout.files)
        """Its files, each with its logical name and its path."""
        self.predecessors = tuple(metadata.predecessors or ())
        """The IDs of the fragments that it was made of."""
        self._custom: Raw = metadata.custom
        making.know(self.files, self.id)

    @property
    def custom(self) -> dict[str, Any]:
        """The metadata that came with it; empty when there is none. A copy: to change what travels, give `custom` to a result.

        Raises:
            ValueError: it is JSON, but no object.
        """
        return decode_custom(self._custom)

    def _origin(self, channel: str | None, custom: Mapping[str, Any] | None) -> Origin:
        check_channel(channel)
        own = self._custom if custom is None else encode_custom(custom)
        return Origin([self.id], channel, own)

    def __repr__(self) -> str:
        return f"<Fragment {self.id} of {_named(self.files)}>"


class Batch(_Source, Sequence[Fragment]):
    """The fragments of one call of a step that gathers. A result of the batch comes of all of them, one of `batch[0]` of that alone."""

    __slots__ = ("_fragments",)

    def __init__(self, handouts: Sequence[Handout], making: Making) -> None:
        super().__init__(making)
        self._fragments = tuple(Fragment(handout, making) for handout in handouts)

    @property
    def files(self) -> tuple[File, ...]:
        """The files of all fragments, in their order. Two may have one name when they are of different fragments."""
        return tuple(file for fragment in self._fragments for file in fragment.files)

    @overload
    def __getitem__(self, index: int) -> Fragment: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Fragment, ...]: ...

    def __getitem__(self, index: int | slice) -> Fragment | tuple[Fragment, ...]:
        return self._fragments[index]

    def __len__(self) -> int:
        return len(self._fragments)

    def _origin(self, channel: str | None, custom: Mapping[str, Any] | None) -> Origin:
        check_channel(channel)
        own = NOTHING if custom is None else encode_custom(custom)
        return Origin([fragment.id for fragment in self._fragments], channel, own)

    def __repr__(self) -> str:
        return f"<Batch of {len(self)} fragments: {_named(self.files)}>"


def making_of(work: Fragment | Batch) -> Making:
    """Return what the present call makes, which the function itself has no use for."""
    return work._making


def _named(files: Sequence[File]) -> str:
    shown = ", ".join(repr(file.name) for file in files[:3])
    return f"{shown} and {len(files) - 3} more" if len(files) > 3 else shown or "no files"
