"""A listener beside a transformation that connects without end, or takes the socket away."""

from __future__ import annotations

import os
import resource
import socket
import tempfile
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from iterum_sidecar.unix_sockets import LOOK_EVERY, Listener, Peer, most_connections
from tests.unit.test_unix_sockets import listening

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio.testing import MockClock


@pytest.fixture
def path() -> Iterator[str]:
    """A socket's path, short enough for one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield f"{directory}/in.sock"


def connect(path: str, stack: ExitStack) -> socket.socket:
    client = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
    client.connect(path)
    return client


# -- thousands of connections


async def test_no_more_connections_are_open_than_may_be_and_the_next_comes_when_one_closes(
    path: str, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    accepted: list[Peer] = []

    async def accept() -> None:
        while True:
            accepted.append(await listener.accept())

    with Listener(path, most=3) as listener, ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            for _ in range(5):
                connect(path, stack)
                await wait_all_tasks_blocked()
            assert len(accepted) == 3
            assert listener.accept_nowait() is None
            await trio.sleep(200)
            assert [record.message for record in caplog.records] == [
                "too many connections; further ones wait until one closes"
            ] * 4
            assert caplog.records[0].fields == {"path": path, "open": 3}  # type: ignore[attr-defined]
            for each in range(2):
                for _ in range(2):
                    accepted[each].close()
                await wait_all_tasks_blocked()
                assert len(accepted) == 4 + each
            nursery.cancel_scope.cancel()
        for peer in accepted:
            peer.close()


async def test_a_connection_that_was_accepted_without_waiting_counts_too(path: str) -> None:
    with Listener(path, most=1) as listener, ExitStack() as stack:
        for _ in range(2):
            connect(path, stack)
        first = listener.accept_nowait()
        assert first is not None
        assert listener.accept_nowait() is None
        first.close()
        second = listener.accept_nowait()
        assert second is not None
        second.close()


def test_the_two_sockets_together_have_a_quarter_of_the_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for allowed, most in ((1024, 128), (20_000, 2500), (10, 16), (-1, 4096), (1 << 20, 4096)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=allowed: (soft, -1))
        assert most_connections() == most


# -- a socket that was taken away


@pytest.mark.parametrize("how", ["unlinked", "renamed"])
async def test_a_socket_that_was_taken_away_is_made_again(
    path: str, how: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    accepted: list[Peer] = []

    async def accept() -> None:
        while True:
            accepted.append(await listener.accept())

    with Listener(path) as listener, ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            early = connect(path, stack)
            if how == "unlinked":
                os.unlink(path)
            else:
                os.rename(path, f"{path}.old")
            nursery.start_soon(accept)
            await trio.sleep(LOOK_EVERY + 1)
            late = connect(path, stack)
            await wait_all_tasks_blocked()
            assert len(accepted) == 2
            for peer, client in zip(accepted, (early, late), strict=True):
                peer.send(b"hello")
                assert client.recv(10) == b"hello"
                peer.close()
            nursery.cancel_scope.cancel()
        (record,) = caplog.records
        assert record.message == "the socket was taken away; listening at its path again"
    assert not os.path.lexists(path)


async def test_a_connection_that_waits_when_its_socket_is_made_again_is_accepted_first(
    path: str, autojump_clock: MockClock
) -> None:
    with Listener(path) as listener, ExitStack() as stack:
        early = [connect(path, stack) for _ in range(3)]
        os.unlink(path)
        listener.look_after_path()
        late = connect(path, stack)
        for client in (*early, late):
            peer = await listener.accept()
            peer.send(b"hello")
            assert client.recv(10) == b"hello"
            peer.close()


@pytest.mark.parametrize("what", ["file", "socket", "directory"])
async def test_what_somebody_put_in_its_place_is_left_and_told_of(
    path: str, what: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    with Listener(path) as listener, ExitStack() as stack:
        os.unlink(path)
        if what == "file":
            os.mknod(path)
        elif what == "socket":
            stack.enter_context(listening(path))
        else:
            os.mkdir(path)
        status = os.stat(path)
        with trio.move_on_after(170):
            await listener.accept()
        assert os.stat(path).st_ino == status.st_ino
        assert {record.message for record in caplog.records} == {
            "the socket was taken away, and cannot be made again"
        }
        assert len(caplog.records) == 3, "once a minute"


async def test_a_socket_whose_directory_is_gone_is_made_again_when_that_is_back(
    path: str, autojump_clock: MockClock
) -> None:
    deep = f"{os.path.dirname(path)}/sockets/in.sock"
    os.mkdir(os.path.dirname(deep))
    with Listener(deep) as listener:
        os.unlink(deep)
        os.rmdir(os.path.dirname(deep))
        with trio.move_on_after(60):
            await listener.accept()
        os.mkdir(os.path.dirname(deep))
        with trio.move_on_after(60):
            await listener.accept()
        assert os.path.exists(deep)
