"""The beginning of a run: the input folder is looked at, and becomes the first fragments, in the journal."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import Raw

from iterum_sidecar.local.fragmenting import FirstFragment, first_fragment_id, hash_contents
from iterum_sidecar.local.inputs import InputsRefused, Scan, shown
from iterum_sidecar.local.own_fragmenter import run_own_fragmenter
from iterum_sidecar.local.store import INPUT_BUCKET
from iterum_sidecar.messages import RemoteFile, RemoteFragment, RemoteMetadata, encode_message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from iterum_sidecar.local.fragmenting import Grouping
    from iterum_sidecar.local.inputs import InputFile
    from iterum_sidecar.local.journal import Journal
    from iterum_sidecar.local.own_fragmenter import Child

__all__ = ["FirstFragments", "OwnFragmenter", "make_first_fragments"]


@dataclass(frozen=True, slots=True)
class OwnFragmenter:
    """A fragmenter of the user's own: how it is started, in which volume, and its ITERUM_CONFIG."""

    start: Callable[[dict[str, str]], Awaitable[Child]]
    volume: str
    config: str


@dataclass(slots=True)
class FirstFragments:
    """The first fragments of a run: how many there are of how many files, and a digest of the set of their IDs."""

    files: int = 0
    fragments: int = 0
    _sum: int = 0

    @property
    def digest(self) -> str:
        """The same for two sets exactly if they are equal, in whatever order they were made."""
        return f"{self._sum % 2**256:064x}"

    def count(self, fragment_id: str) -> None:
        """A fragment has been made."""
        self.fragments += 1
        self._sum += int(fragment_id, 16)


async def make_first_fragments(
    journal: Journal,
    scan: Scan,
    grouping: Grouping,
    own: OwnFragmenter | None,
    *,
    channel: str,
    pipeline_hash: str,
    progress: Callable[[int, int], None] | None = None,
) -> FirstFragments:
    """Look at the input folder and tell the journal the fragments that it becomes, by `grouping`, or by the user's `own` fragmenter.

    Raises:
        InputsRefused: the folder cannot be used as it is, or holds nothing.
        FragmenterFailed: of the user's own.
    """
    found = FirstFragments()
    taken: list[tuple[InputFile, str]] = []
    repeated: Counter[str] = Counter()

    def add(fragment: FirstFragment) -> None:
        fragment_id = first_fragment_id(pipeline_hash, fragment, 0)
        if own is not None:
            ordinal = repeated[fragment_id]
            repeated[fragment_id] += 1
            fragment_id = first_fragment_id(pipeline_hash, fragment, ordinal)
        journal.add_first(fragment_id, channel, _describe(fragment_id, fragment))
        found.count(fragment_id)

    def take(file: InputFile, content: str) -> None:
        found.files += 1
        journal.note_input(file.name, file.size, file.mtime_ns, content)
        if own is not None:
            taken.append((file, content))
        else:
            for fragment in grouping.feed(file, content):
                add(fragment)

    await hash_contents(scan, journal, take, progress=progress)
    if not found.files:
        raise InputsRefused([_nothing_in(scan)])
    if own is None:
        for fragment in grouping.finish():
            add(fragment)
    else:
        for fragment in await _fragments_of(own, taken, pipeline_hash):
            add(fragment)
    journal.commit()
    return found


async def _fragments_of(
    own: OwnFragmenter, files: list[tuple[InputFile, str]], pipeline_hash: str
) -> list[FirstFragment]:
    by_name = {file.name: (file, content) for file, content in files}
    groups = await run_own_fragmenter(
        volume=own.volume,
        names=list(by_name),
        hashes=[content for _, content in by_name.values()],
        start=own.start,
        pipeline_hash=pipeline_hash,
        config=own.config,
    )
    return [FirstFragment([by_name[name] for name in each.names], each.custom) for each in groups]


def _describe(fragment_id: str, fragment: FirstFragment) -> bytes:
    files = [RemoteFile(file.name, file.name, INPUT_BUCKET) for file, _ in fragment.files]
    metadata = RemoteMetadata(fragment_id, [])
    if fragment.custom:
        metadata.custom = Raw(fragment.custom)
    return encode_message(RemoteFragment(files, metadata))


def _nothing_in(scan: Scan) -> str:
    folder = shown(os.fspath(scan.root))
    if scan.unmatched:
        return f"{folder}: none of its {scan.unmatched:,} files matches --match; check the pattern"
    hidden = (
        f" but {scan.hidden:,} hidden ones, which are left out (their names begin with a dot)"
        if scan.hidden
        else ""
    )
    return f"{folder}: there are no files in it{hidden}; check --input"
