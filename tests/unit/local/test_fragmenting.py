from __future__ import annotations

import os
import time
from hashlib import blake2b
from itertools import count, islice
from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.local.fragmenting import (
    ByFolder,
    ByNumber,
    FirstFragment,
    GroupingRefused,
    OneEach,
    first_fragment_id,
    hash_contents,
    parse_grouping,
)
from iterum_sidecar.local.inputs import InputFile, InputsRefused, Scan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from iterum_sidecar.local.fragmenting import Grouping

LONG_AGO = 1_000_000_123_456_789


class Known:
    """A cache in memory."""

    def __init__(self) -> None:
        self.hashes: dict[tuple[str, int, int], str] = {}

    def lookup(self, name: str, size: int, mtime_ns: int) -> str | None:
        return self.hashes.get((name, size, mtime_ns))

    def remember(self, name: str, size: int, mtime_ns: int, content_hash: str) -> None:
        self.hashes[name, size, mtime_ns] = content_hash


class Taken(list[tuple[str, str]]):
    """What `take` was called with: names and hashes."""

    def __call__(self, file: InputFile, content_hash: str) -> None:
        self.append((file.name, content_hash))


def write(path: Path, content: bytes, mtime_ns: int = LONG_AGO) -> None:
    path.write_bytes(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))


def hash_of(content: bytes) -> str:
    return blake2b(content, digest_size=32).hexdigest()


# -- the hashes


async def test_every_file_is_taken_in_order_with_the_hash_of_its_content(tmp_path: Path) -> None:
    contents = {f"{number:04}": b"%d" % number for number in range(700)}
    contents |= {"0010": os.urandom(9_000_000), "0011": b"", "0300": os.urandom(5_000_000)}
    for name, content in contents.items():
        write(tmp_path / name, content)
    taken, cache = Taken(), Known()
    await hash_contents(Scan(tmp_path), cache, taken)
    assert taken == [(name, hash_of(contents[name])) for name in sorted(contents)]
    assert len(cache.hashes) == 700


async def test_what_is_known_is_not_read_again_and_what_has_changed_is(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / name, name.encode())
    cache = Known()
    await hash_contents(Scan(tmp_path), cache, Taken())
    cache.hashes["a", 1, LONG_AGO] = "from the cache"
    write(tmp_path / "b", b"B", LONG_AGO + 1)
    write(tmp_path / "c", b"longer")
    taken = Taken()
    await hash_contents(Scan(tmp_path), cache, taken)
    assert taken == [("a", "from the cache"), ("b", hash_of(b"B")), ("c", hash_of(b"longer"))]


async def test_a_file_is_told_as_it_was_when_it_was_read(tmp_path: Path) -> None:
    write(tmp_path / "a", b"old")
    scanned = list(Scan(tmp_path))
    write(tmp_path / "a", b"newer", LONG_AGO + 7)
    files: list[InputFile] = []
    await hash_contents(scanned, cache := Known(), lambda file, _: files.append(file))
    assert [(file.size, file.mtime_ns) for file in files] == [(5, LONG_AGO + 7)]
    assert cache.hashes == {("a", 5, LONG_AGO + 7): hash_of(b"newer")}


async def test_a_file_changed_a_moment_ago_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_700_000_002_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: now)
    for name, mtime_ns in {
        "in-the-future": now + 3_600_000_000_001,
        "now": now,
        "a-moment-ago": now - 49_000_000,
        "longer-ago": now - 51_000_000,
        "whole-second": now - 1_000_000_000,
        "old-whole-second": now - 2_000_000_000,
    }.items():
        write(tmp_path / name, b"x", mtime_ns)
    taken, cache = Taken(), Known()
    await hash_contents(Scan(tmp_path), cache, taken)
    assert len(taken) == 6
    assert sorted(name for name, _, _ in cache.hashes) == ["longer-ago", "old-whole-second"]


def changing(monkeypatch: pytest.MonkeyPatch, path: Path, times: int) -> None:
    """Let a file grow while it is read, so often."""
    read, left = os.read, iter(range(times))

    def growing(descriptor: int, size: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(path) and next(left, None) is not None:
            with path.open("ab") as file:
                file.write(b"+")
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", growing)


async def test_a_file_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a", b"a")
    changing(monkeypatch, tmp_path / "a", 2)
    taken = Taken()
    await hash_contents(Scan(tmp_path), Known(), taken)
    assert taken == [("a", hash_of(b"a++"))]


async def test_a_file_that_does_not_keep_still_is_refused_and_the_rest_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        write(tmp_path / name, name.encode())
    changing(monkeypatch, tmp_path / "b", 3)
    taken = Taken()
    with pytest.raises(InputsRefused, match=r"/b: changes while it is read; let what writes it"):
        await hash_contents(Scan(tmp_path), Known(), taken)
    assert [name for name, _ in taken] == ["a", "c"]


async def test_problems_of_the_scan_and_of_reading_are_told_together(tmp_path: Path) -> None:
    write(tmp_path / "a", b"a")
    write(tmp_path / "b", b"b")
    (tmp_path / "dangling").symlink_to("nowhere")

    def broken() -> Iterator[InputFile]:
        for file in Scan(tmp_path):
            if file.name == "b":
                (tmp_path / "b").unlink()
                (tmp_path / "b").symlink_to("b")
            yield file

    taken = Taken()
    with pytest.raises(InputsRefused) as refused:
        await hash_contents(broken(), Known(), taken)
    assert taken == [("a", hash_of(b"a"))]
    first, second = refused.value.problems
    assert "/dangling: the link leads nowhere" in first
    assert "/b: cannot be read: Too many levels of symbolic links; make it readable" in second


async def test_files_that_have_gone_or_are_no_files_any_more_are_skipped(tmp_path: Path) -> None:
    for name in "abcd":
        write(tmp_path / name, name.encode())
    scanned = list(Scan(tmp_path))
    (tmp_path / "b").unlink()
    (tmp_path / "c").unlink()
    os.mkfifo(tmp_path / "c")
    taken = Taken()
    with trio.fail_after(10):
        await hash_contents(scanned, Known(), taken)
    assert [name for name, _ in taken] == ["a", "d"]


async def test_reading_a_large_file_is_cancelled_soon(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 43)
    began = trio.Event()

    async def hash_it() -> None:
        def progress(_files: int, _bytes: int) -> None:
            began.set()

        await hash_contents(Scan(tmp_path), Known(), Taken(), progress=progress)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hash_it)
            await began.wait()
            nursery.cancel_scope.cancel("the test has seen it begin")


async def test_progress_is_told_within_a_large_file_and_ends_with_everything(
    tmp_path: Path,
) -> None:
    (tmp_path / "a").write_bytes(b"a" * 10)
    with (tmp_path / "b").open("wb") as file:
        file.truncate(130 << 20)
    told: list[tuple[int, int]] = []
    await hash_contents(
        Scan(tmp_path), Known(), Taken(), progress=lambda files, size: told.append((files, size))
    )
    assert told == [(0, 64 << 20), (0, 128 << 20), (2, (130 << 20) + 10)]


async def test_what_take_raises_comes_bare_and_few_files_are_held_by_then(tmp_path: Path) -> None:
    write(tmp_path / "a", b"a")
    (file,) = Scan(tmp_path)
    pulled = count()

    def endless() -> Iterator[InputFile]:
        while True:
            next(pulled)
            yield file

    taken = Taken()

    def take(file: InputFile, content_hash: str) -> None:
        taken(file, content_hash)
        if len(taken) == 10_000:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        await hash_contents(endless(), Known(), take)
    assert next(pulled) - 10_000 < 3_500


# -- the groups

FILES = [
    (InputFile(name, f"/in/{name}", 1, 1), hash_of(name.encode()))
    for name in ["a", "b", "c/1", "c/2", "c/d/3", "e/4", "e/5"]
]


def grouped(grouping: Grouping) -> list[list[str]]:
    fragments: list[FirstFragment] = []
    for file, content_hash in FILES:
        fragments += grouping.feed(file, content_hash)
    fragments += grouping.finish()
    assert [each for fragment in fragments for each in fragment.files] == FILES
    assert not grouping.finish()
    return [[file.name for file, _ in fragment.files] for fragment in fragments]


def test_one_each() -> None:
    assert grouped(OneEach()) == [[file.name] for file, _ in FILES]


def test_by_number_the_last_may_be_smaller() -> None:
    assert grouped(ByNumber(3)) == [["a", "b", "c/1"], ["c/2", "c/d/3", "e/4"], ["e/5"]]
    assert [len(group) for group in grouped(ByNumber(7))] == [7]
    assert [len(group) for group in grouped(ByNumber(100))] == [7]
    with pytest.raises(ValueError, match="at least one file"):
        ByNumber(0)


def test_by_folder_the_files_at_the_top_are_a_group() -> None:
    assert grouped(ByFolder()) == [["a", "b"], ["c/1", "c/2"], ["c/d/3"], ["e/4", "e/5"]]


def test_groups_come_as_soon_as_they_are_complete() -> None:
    by_number, by_folder = ByNumber(2), ByFolder()
    assert [len(by_number.feed(*each)) for each in FILES] == [0, 1, 0, 1, 0, 1, 0]
    assert [len(by_folder.feed(*each)) for each in FILES] == [0, 0, 1, 0, 1, 1, 0]


def test_no_files_are_no_fragments() -> None:
    assert [*OneEach().finish(), *ByNumber(2).finish(), *ByFolder().finish()] == []


def test_a_scan_yields_folders_in_one_piece(tmp_path: Path) -> None:
    for name in ["f/z", "f/a", "f/m/x", "f/b", "a"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    grouping = ByFolder()
    fragments = [each for file in Scan(tmp_path) for each in grouping.feed(file, "")]
    fragments += grouping.finish()
    names = [[file.name for file, _ in fragment.files] for fragment in fragments]
    assert names == [["a"], ["f/a", "f/b", "f/z"], ["f/m/x"]]


def test_options_say_the_grouping() -> None:
    assert isinstance(parse_grouping(None, None), OneEach)
    assert isinstance(parse_grouping(None, "folder"), ByFolder)
    by_number = parse_grouping("012", None)
    assert isinstance(by_number, ByNumber)
    assert by_number.number == 12


@pytest.mark.parametrize(
    "value", ["0", "000", "-1", "x", "", "1.5", "1e3", " 1", "1_0", "1\n", "٣", "9" * 50]
)
def test_a_group_of_no_number_is_refused(value: str) -> None:
    with pytest.raises(GroupingRefused) as refused:
        parse_grouping(value, None)
    assert str(refused.value).startswith(f"--group {value!r} is no number of files; give a whole")


def test_other_groupings_are_refused() -> None:
    with pytest.raises(GroupingRefused, match=r"--group-by 'date' is not known; .* by 'folder'"):
        parse_grouping(None, "date")
    with pytest.raises(GroupingRefused, match="exclude each other"):
        parse_grouping("2", "folder")


# -- identity


def test_an_id_is_the_same_for_ever() -> None:
    fragment = FirstFragment(FILES[:2], b'{"a":1}')
    assert first_fragment_id("pipeline", fragment, 0) == (
        "93c6324f37df493445082dd0b786189098cce589c0694db195bd2b046f05ad75"
    )


def test_an_id_depends_on_each_of_its_parts_and_on_nothing_else() -> None:
    file, content_hash = FILES[0]
    other, other_hash = FILES[1]
    fragments = [
        FirstFragment([(file, content_hash)]),
        FirstFragment([(file, other_hash)]),
        FirstFragment([(other, content_hash)]),
        FirstFragment([(file, content_hash), (other, other_hash)]),
        FirstFragment([(other, other_hash), (file, content_hash)]),
        FirstFragment([(file, content_hash)], b""),
        FirstFragment([(file, content_hash)], b"{}"),
    ]
    ids = {
        first_fragment_id(pipeline, fragment, ordinal)
        for pipeline in ("p", "q")
        for fragment in fragments
        for ordinal in (0, 1)
    }
    assert len(ids) == 28
    elsewhere = InputFile(file.name, "/moved/a", 9, 9)
    assert first_fragment_id("p", FirstFragment([(elsewhere, content_hash)]), 0) in ids


def test_endless_input_is_grouped_as_it_comes() -> None:
    grouping = ByNumber(2)
    fragments = (each for _ in count() for each in grouping.feed(*FILES[0]))
    assert [len(fragment.files) for fragment in islice(fragments, 3)] == [2, 2, 2]
