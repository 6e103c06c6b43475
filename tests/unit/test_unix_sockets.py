from __future__ import annotations

import os
import socket
import stat
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.unix_sockets import Listener, Peer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio.testing import MockClock

BIG = os.urandom(1 << 20)


@pytest.fixture
def path() -> Iterator[str]:
    """A socket's path, short enough for one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield f"{directory}/in.sock"


@pytest.fixture
def pair() -> Iterator[tuple[Peer, socket.socket]]:
    """The sidecar's side of a connection, and the transformation's, which does not block."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    theirs.setblocking(False)
    peer = Peer(ours)
    yield peer, theirs
    theirs.close()
    ours.close()


@contextmanager
def listening(path: str, kind: int = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    with closing(socket.socket(socket.AF_UNIX, kind)) as other:
        other.bind(path)
        if kind == socket.SOCK_STREAM:
            other.listen(0)
        yield other


def read_now(theirs: socket.socket) -> bytes:
    read = b""
    while True:
        try:
            data = theirs.recv(1 << 20)
        except BlockingIOError:
            return read
        if not data:
            return read
        read += data


async def read_all(theirs: socket.socket, size: int) -> bytes:
    read = b""
    while len(read) < size:
        await trio.lowlevel.wait_readable(theirs)
        read += theirs.recv(size - len(read))
    return read


# -- the listener


async def test_a_connection_is_accepted_from_any_user_and_the_file_is_removed_at_the_end(
    path: str,
) -> None:
    with Listener(path) as listener, closing(socket.socket(socket.AF_UNIX)) as client:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o777
        client.connect(path)
        peer = await listener.accept()
        peer.send(b"hello")
        assert client.recv(10) == b"hello"
        peer.close()
    assert not os.path.lexists(path)


async def test_accept_waits_for_a_connection(path: str) -> None:
    accepted: list[Peer] = []

    async def accept() -> None:
        accepted.append(await listener.accept())

    with Listener(path) as listener, closing(socket.socket(socket.AF_UNIX)) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            await wait_all_tasks_blocked()
            assert accepted == []
            client.connect(path)
        accepted[0].close()


async def test_accept_goes_on_when_there_was_no_room_for_a_connection(
    path: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = socket.socketpair()

    class Full:
        refusals = 1000

        def accept(self) -> tuple[socket.socket, object]:
            if self.refusals:
                self.refusals -= 1
                raise OSError(24, "Too many open files")
            return ours, None

    with closing(theirs), Listener(path) as listener:
        real = listener._socket
        listener._socket = Full()  # type: ignore[assignment]
        try:
            peer = await listener.accept()
        finally:
            listener._socket = real
        peer.close()
    assert trio.current_time() == pytest.approx(100)
    # At once, and after a minute.
    assert len(caplog.records) == 2
    assert "Too many open files" in caplog.records[0].fields["reason"]  # type: ignore[attr-defined]


def test_a_stale_socket_is_replaced(path: str) -> None:
    with listening(path):
        pass
    assert os.path.exists(path)
    with Listener(path), closing(socket.socket(socket.AF_UNIX)) as client:
        client.connect(path)


@pytest.mark.parametrize("kind", ["live", "full", "datagram", "directory", "file", "link", "fifo"])
def test_anything_else_in_its_place_is_refused_with_one_clear_line_and_left(
    path: str, kind: str
) -> None:
    used = f"another process listens at {path}: end the other sidecar, or give each a volume of its own"
    expected = {
        "live": used,
        "full": used,
        "datagram": used,
        "directory": f"{path} is a directory; the sidecar's socket belongs there, remove it",
    }.get(
        kind, f"{path} is a file that is no socket; the sidecar's socket belongs there, remove it"
    )
    if kind == "directory":
        os.mkdir(path)
    elif kind == "file":
        Path(path).write_text("x")
    elif kind == "link":
        os.symlink("elsewhere.sock", path)
    elif kind == "fifo":
        os.mkfifo(path)
    with listening(
        f"{path}.other" if kind not in {"live", "full", "datagram"} else path,
        socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM,
    ):
        clients = [socket.socket(socket.AF_UNIX) for _ in range(3 if kind == "full" else 0)]
        for client in clients:
            client.setblocking(False)
            if client.connect_ex(path):
                break
        with pytest.raises(VolumeUnusable) as refusal:
            Listener(path)
        for client in clients:
            client.close()
    assert str(refusal.value) == expected
    assert os.path.lexists(path)


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        ("absent/in.sock", "No such file or directory"),
        ("file/in.sock", "Not a directory"),
        ("a" * 120 + ".sock", "too long"),
    ],
)
def test_a_place_that_cannot_be_used_is_told_with_the_reason(
    path: str, inside: str, reason: str
) -> None:
    directory = Path(path).parent
    (directory / "file").write_text("x")
    with pytest.raises(VolumeUnusable, match=reason):
        Listener(str(directory / inside))


def test_a_socket_that_took_the_place_of_ours_is_left(path: str) -> None:
    with Listener(path):
        os.unlink(path)
        with listening(path):
            status = os.stat(path)
    assert os.stat(path).st_ino == status.st_ino


def test_a_file_that_is_gone_already_is_no_fault(path: str) -> None:
    with Listener(path):
        os.unlink(path)
    assert not os.path.exists(path)


# -- sending


async def test_each_frame_is_sent_by_a_call_of_its_own() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with closing(theirs):
        peer = Peer(ours)
        for frame in (b"one", b"two", b"three"):
            peer.send(frame)
        assert [theirs.recv(100) for _ in range(3)] == [b"one", b"two", b"three"]
        peer.close()


async def test_what_the_socket_does_not_take_arrives_whole_and_in_order(
    pair: tuple[Peer, socket.socket],
) -> None:
    peer, theirs = pair
    frames = [BIG, b"small", BIG[::-1], b"", b"last"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run_sender)
        for frame in frames:
            peer.send(frame)
        expected = b"".join(frames)
        assert await read_all(theirs, len(expected)) == expected
        peer.send(BIG)
        assert await read_all(theirs, len(BIG)) == BIG
        nursery.cancel_scope.cancel()


async def test_flush_returns_when_everything_has_been_sent(
    pair: tuple[Peer, socket.socket],
) -> None:
    peer, theirs = pair
    await peer.flush()
    peer.send(BIG)
    peer.send(b"last")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.flush)
        assert await read_all(theirs, len(BIG) + 4) == BIG + b"last"


async def test_flush_may_be_waited_for_beside_the_sender(pair: tuple[Peer, socket.socket]) -> None:
    peer, theirs = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run_sender)
        peer.send(BIG)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as flushing:
            flushing.start_soon(peer.flush)
            assert await read_all(theirs, len(BIG)) == BIG
        nursery.cancel_scope.cancel()


async def test_a_cancelled_flush_loses_nothing(pair: tuple[Peer, socket.socket]) -> None:
    peer, theirs = pair
    peer.send(BIG)
    with trio.move_on_after(0):
        await peer.flush()
    first = read_now(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.flush)
        assert first + await read_all(theirs, len(BIG) - len(first)) == BIG


@pytest.mark.parametrize("size", [10, len(BIG)])
async def test_what_can_no_longer_be_sent_is_dropped(
    pair: tuple[Peer, socket.socket], size: int
) -> None:
    peer, theirs = pair
    peer.send(BIG[:size])
    theirs.close()
    await peer.flush()
    peer.send(b"more")
    await peer.flush()
    assert read_until_close(peer) == b""


def read_until_close(peer: Peer) -> bytes | None:
    data = peer.receive_nowait()
    return None if data is None else bytes(data)


async def test_what_is_sent_after_the_peer_has_closed_was_not_read(
    pair: tuple[Peer, socket.socket],
) -> None:
    """So that nobody takes the fragment that it was for what the peer died of."""
    peer, theirs = pair
    peer.send(b"read")
    assert read_now(theirs) == b"read"
    theirs.close()
    assert not peer.was_reset
    peer.send(b"not read")
    assert read_until_close(peer) == b""
    assert peer.was_reset


@pytest.mark.parametrize("size", [10, len(BIG)])
async def test_unread_is_0_exactly_when_the_peer_has_read_everything(
    pair: tuple[Peer, socket.socket], size: int
) -> None:
    peer, theirs = pair
    assert peer.unread() == 0
    peer.send(BIG[:size])
    assert peer.unread() >= size
    left = size
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run_sender)
        while left:
            left -= len(await read_all(theirs, min(left, 4096)))
            await wait_all_tasks_blocked()
            assert (peer.unread() > 0) == (left > 0)
        nursery.cancel_scope.cancel()


# -- receiving and closing


async def test_receiving_tells_nothing_yet_from_data_and_from_the_close(
    pair: tuple[Peer, socket.socket],
) -> None:
    peer, theirs = pair
    assert peer.receive_nowait() is None
    theirs.send(b"data")
    await peer.wait_readable()
    assert read_until_close(peer) == b"data"
    assert peer.receive_nowait() is None
    theirs.close()
    await peer.wait_readable()
    assert read_until_close(peer) == b""


async def test_what_came_before_the_close_is_read_first(pair: tuple[Peer, socket.socket]) -> None:
    peer, theirs = pair
    theirs.send(b"data")
    theirs.close()
    assert [read_until_close(peer) for _ in range(3)] == [b"data", b"", b""]


async def test_close_wakes_whoever_waits(pair: tuple[Peer, socket.socket]) -> None:
    peer, _ = pair
    woken: list[str] = []

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await peer.wait_readable()
        woken.append("reader")

    async def write() -> None:
        await peer.flush()
        woken.append("writer")

    peer.send(BIG)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(write)
        await wait_all_tasks_blocked()
        peer.close()
    assert sorted(woken) == ["reader", "writer"]


async def test_a_closed_connection_takes_and_gives_nothing(
    pair: tuple[Peer, socket.socket],
) -> None:
    peer, theirs = pair
    theirs.send(b"data")
    for _ in range(2):
        peer.close()
    peer.send(b"more")
    await peer.flush()
    assert (read_until_close(peer), peer.unread(), peer.closed) == (b"", 0, True)
    with pytest.raises(trio.ClosedResourceError):
        await peer.wait_readable()
    with pytest.raises(ConnectionResetError):
        theirs.recv(10)
