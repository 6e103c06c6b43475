"""Large files: freed in a thread, and every descriptor closed once, however it ends."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from iterum_sidecar.large_files import LARGE, LargeFiles
from iterum_sidecar.volume import OWN_DIRECTORY, TakenFile, Volume
from tests.unit.row import copy_step, temporary_row

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_WAITING = 8


class Closer:
    """`os.close`, which waits for `go` where it is called by another thread than the loop's."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.closed: list[tuple[int, str]] = []
        """The inodes whose descriptors were closed, in that order, and by whom."""
        self._loop = threading.get_ident()
        self._close = os.close

    def __call__(self, descriptor: int) -> None:
        by = "the loop" if threading.get_ident() == self._loop else "a thread"
        if by == "a thread":
            assert self.go.wait(10)
        inode = os.fstat(descriptor).st_ino
        self._close(descriptor)
        self.closed.append((inode, by))

    def of(self, path: Path | int) -> list[str]:
        """Who has closed the descriptors of a file, in that order."""
        inode = path if isinstance(path, int) else path.stat().st_ino
        return [by for each, by in self.closed if each == inode]


@pytest.fixture
def closer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Closer]:
    closer = Closer()
    monkeypatch.setattr(os, "close", closer)
    yield closer
    closer.go.set()


def make_file(path: Path, size: int = LARGE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


def descriptor_of(path: Path) -> int:
    return os.open(path, os.O_RDONLY)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    return make_file(tmp_path / "large")


async def until_closed(closer: Closer, path: Path | int, count: int) -> None:
    """Wait for threads, which tell nobody of the loop."""
    with trio.fail_after(10):
        while len(closer.of(path)) < count:  # noqa: ASYNC110
            await trio.sleep(0.001)


async def test_a_large_file_is_closed_in_a_thread_and_a_small_one_at_once(
    large: Path, tmp_path: Path, closer: Closer
) -> None:
    large_files = LargeFiles(MOST_WAITING)
    small = make_file(tmp_path / "small", LARGE - 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(large_files.keep_closing)
        await wait_all_tasks_blocked()
        for path in (large, large, small):
            large_files.close(descriptor_of(path), path.stat().st_size)
        assert closer.of(small) == ["the loop"]
        # The loop runs on while the thread is at it.
        await wait_all_tasks_blocked()
        assert closer.of(large) == []
        closer.go.set()
        await until_closed(closer, large, 2)
        nursery.cancel_scope.cancel()
    assert closer.of(large) == ["a thread", "a thread"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_large_file_is_closed_at_once_where_nobody_is_at_it(
    large: Path, closer: Closer, when: str
) -> None:
    large_files = LargeFiles(MOST_WAITING)
    if when == "after":
        with trio.move_on_after(0):
            await large_files.keep_closing()
    large_files.close(descriptor_of(large), LARGE)
    large_files.hold(large.name, -1)
    assert closer.of(large) == ["the loop"]


async def test_what_is_left_when_it_ends_is_closed_once(large: Path, closer: Closer) -> None:
    large_files = LargeFiles(MOST_WAITING)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(large_files.keep_closing)
        await wait_all_tasks_blocked()
        for _ in range(4):
            large_files.close(descriptor_of(large), LARGE)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        closer.go.set()
    assert closer.of(large) == ["a thread", *["the loop"] * 3]


async def test_no_more_wait_than_there_are_descriptors_to_spare(
    large: Path, closer: Closer
) -> None:
    large_files = LargeFiles(MOST_WAITING)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(large_files.keep_closing)
        await wait_all_tasks_blocked()
        for _ in range(MOST_WAITING):
            large_files.close(descriptor_of(large), LARGE)
        assert closer.of(large) == []
        large_files.close(descriptor_of(large), LARGE)
        assert closer.of(large) == ["the loop"]
        closer.go.set()
        nursery.cancel_scope.cancel()
    assert len(closer.of(large)) == MOST_WAITING + 1


@pytest.mark.parametrize("what", ["large", "small", "fifo", "link", "nothing"])
async def test_only_a_large_file_is_held(tmp_path: Path, closer: Closer, what: str) -> None:
    if what == "large":
        make_file(tmp_path / what)
    elif what == "small":
        make_file(tmp_path / what, LARGE - 1)
    elif what == "fifo":
        os.mkfifo(tmp_path / what)
    elif what == "link":
        (tmp_path / what).symlink_to(make_file(tmp_path / "elsewhere"))
    large_files = LargeFiles(MOST_WAITING)
    directory = descriptor_of(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(large_files.keep_closing)
        await wait_all_tasks_blocked()
        large_files.hold(what, directory)
        by_loop = [by for _, by in closer.closed]
        closer.go.set()
        if what == "large":
            await until_closed(closer, tmp_path / what, 1)
        nursery.cancel_scope.cancel()
    assert by_loop == ["the loop"] * (what in {"small", "fifo", "link"})
    assert len(closer.closed) == (what != "nothing")
    os.close(directory)


@pytest.mark.parametrize("what", ["an input", "a deep input", "a result", "a stored result"])
async def test_the_volume_frees_large_files_in_a_thread(
    tmp_path: Path, closer: Closer, what: str
) -> None:
    with Volume(str(tmp_path)) as volume:
        workspace = volume.make_workspace()
        name = "deep/down/a" if what == "a deep input" else "a"
        path = tmp_path / "output/result"
        if "input" in what:
            os.close(volume.create_file(workspace, name))
            path = Path(workspace.path, name)
        inode = make_file(path).stat().st_ino
        closer.closed.clear()
        taken: list[TakenFile] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.large_files.keep_closing)
            await wait_all_tasks_blocked()
            closer.go.set()
            if "input" in what:
                volume.remove_workspace(workspace, [name], LARGE)
            else:
                volume.take([str(path)], taken)
                if what == "a stored result":
                    volume.release(taken[0])
                volume.remove_results(list(taken))
                volume.release(taken[0])
            assert not path.exists()
            await until_closed(closer, inode, 1 if "input" in what else 2)
            nursery.cancel_scope.cancel()
    assert set(closer.of(inode)) == {"a thread"}


async def test_all_large_files_of_a_fragment_are_freed_in_a_thread(
    closer: Closer, monkeypatch: pytest.MonkeyPatch
) -> None:
    closer.go.set()
    held: list[str] = []
    hold = LargeFiles.hold

    def note(large_files: LargeFiles, name: str, parent: int) -> None:
        hold(large_files, name, parent)
        held.append(os.readlink(f"/proc/self/fd/{parent}"))

    monkeypatch.setattr(LargeFiles, "hold", note)
    async with temporary_row() as row:
        await row.put_object("iterum_data/large", bytes(LARGE))
        row.describe(0, [("large", "iterum_data/large")])
        await row.run(copy_step)
        assert row.left_on_volume() == []
    fragments = [OWN_DIRECTORY in directory for directory in held]
    assert sorted(fragments) == [False, True], "what came of it, and what was read"
    assert [by for _, by in closer.closed].count("a thread") >= 2


@pytest.mark.parametrize("name", ["deep/a", "a"])
async def test_no_symlink_in_the_place_of_a_directory_is_followed(
    tmp_path: Path, closer: Closer, name: str
) -> None:
    outside = make_file(tmp_path / "outside/a")
    root = tmp_path / "volume"
    root.mkdir()
    with Volume(str(root)) as volume:
        workspace = volume.make_workspace()
        planted = Path(workspace.path, name).parent
        if planted != Path(workspace.path):
            planted.parent.mkdir(exist_ok=True)
        else:
            planted.rmdir()
        planted.symlink_to(outside.parent)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.large_files.keep_closing)
            await wait_all_tasks_blocked()
            volume.remove_workspace(workspace, [name], LARGE)
            closer.go.set()
            nursery.cancel_scope.cancel()
        assert not os.path.lexists(workspace.path)
    assert outside.exists()
    assert closer.of(outside) == []


async def test_a_directory_that_cannot_be_removed_while_its_file_is_held_is_removed_later(
    tmp_path: Path,
    closer: Closer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As on NFS, where a file that is open leaves a name behind."""
    with Volume(str(tmp_path)) as volume:
        workspace = volume.make_workspace()
        os.close(volume.create_file(workspace, "a"))
        make_file(Path(workspace.path, "a"))
        rmdir = os.rmdir

        def refuse(path: str, *, dir_fd: int | None = None) -> None:
            if volume.large_files.are_waiting:
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
            rmdir(path, dir_fd=dir_fd)

        monkeypatch.setattr(os, "rmdir", refuse)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.large_files.keep_closing)
            await wait_all_tasks_blocked()
            volume.remove_workspace(workspace, ["a"], LARGE)
            assert Path(workspace.path).exists()
            closer.go.set()
            nursery.cancel_scope.cancel()
        volume.remove_results([])
        assert not Path(workspace.path).exists()
    assert caplog.records == []


async def test_a_close_that_fails_ends_nothing(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file system of somebody's own may: nothing was written through the descriptor that could be lost."""
    close = os.close

    def fail(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    large_files = LargeFiles(MOST_WAITING)
    descriptors = [descriptor_of(large) for _ in range(3)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(large_files.keep_closing)
        await wait_all_tasks_blocked()
        with monkeypatch.context() as patched:
            patched.setattr(os, "close", fail)
            for descriptor in descriptors:
                large_files.close(descriptor, LARGE)
            nursery.cancel_scope.cancel()
            await wait_all_tasks_blocked()
    assert not large_files.are_waiting
