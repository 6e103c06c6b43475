"""The Unix sockets that the sidecar listens on, and one connection of them, without more waiting than needed.

A call that would block waits for the socket; one that does not costs no trip through the event loop.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import stat
import struct
import termios
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, TypeAlias

import trio

from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.telemetry.logs import get_log

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

__all__ = [
    "LOOK_EVERY",
    "READ_SIZE",
    "Listener",
    "Peer",
    "check_unused",
    "most_connections",
    "state_of_socket",
]

_log = get_log(__name__)

#: Connections that may wait to be accepted; a transformation opens a few at its start.
_BACKLOG = 128
#: What accept() may fail with while the listener is sound (accept(2)), and the pause before the next attempt.
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NO_ROOM_PAUSE = 0.1
#: Seconds between two lines about it, and about all else that keeps the transformation from connecting.
_SAY_EVERY = 60.0
#: Seconds between two looks at whether the socket is still where the transformation looks for it.
LOOK_EVERY = 5.0
#: The share of the allowed descriptors that the connections of one socket may hold, and the most and the fewest that these are:
#: a step that connects without end must not take those that downloads and uploads need.
_CONNECTIONS_SHARE = 8
_CONNECTIONS_BETWEEN = 16, 4096
#: Bytes that are received at a time, if so many are there. A step's frames are a few hundred bytes, and come two at a time.
READ_SIZE = 64 * 1024
# One buffer for all connections: whatever is read is looked at before anything else is.
_read_view = memoryview(bytearray(READ_SIZE))


def most_connections() -> int:
    """Return how many connections one socket may have open at a time, by what this process is allowed."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    fewest, most = _CONNECTIONS_BETWEEN
    if allowed == resource.RLIM_INFINITY:
        return most
    return min(max(allowed // _CONNECTIONS_SHARE, fewest), most)


class Listener:
    """A listening Unix socket in the volume. Use as a context manager; leaving removes its file."""

    def __init__(self, path: str, *, most: int | None = None) -> None:
        """Listen at `path`, in the place of a socket that a dead process has left there.

        The socket is open to every user: the transformation may run as another one than the sidecar (contract, section 5).
        `most` is how many connections are open at a time, by default `most_connections`; further ones wait to be accepted.

        Raises:
            VolumeUnusable: something else is in its place, or it cannot be made.
        """
        self.path = path
        self._said_at = -_SAY_EVERY
        self._most = most_connections() if most is None else most
        self._open = 0
        self._one_closed = trio.Event()
        self._waiting: deque[socket.socket] = deque()
        """Connections to a socket that was taken away since."""
        _make_way(path)
        try:
            self._socket, self._status = _listen(path)
        except OSError as error:
            raise VolumeUnusable(f"cannot listen at {path}: {error.strerror or error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()
        while self._waiting:
            self._waiting.popleft().close()
        # Where it is gone, or cannot be looked at, there is nothing of ours to remove.
        with suppress(OSError):
            if self._is_ours(os.lstat(self.path)):
                os.unlink(self.path)

    async def accept(self) -> Peer:
        """Return the next connection."""
        await trio.lowlevel.checkpoint()
        while True:
            if self._open >= self._most:
                await self._wait_for_a_close()
                continue
            try:
                return self._accept()
            except BlockingIOError:
                with trio.move_on_after(LOOK_EVERY):
                    await trio.lowlevel.wait_readable(self._socket)
                    continue
                self.look_after_path()
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                if self._may_tell():
                    _log.warning(
                        "cannot accept a connection; trying again",
                        path=self.path,
                        reason=error.strerror,
                    )
                await trio.sleep(_NO_ROOM_PAUSE)

    def accept_nowait(self) -> Peer | None:
        """Return a connection that waits to be accepted, or None; None too where as many are open as may be."""
        if self._open >= self._most:
            return None
        try:
            return self._accept()
        except OSError:
            return None

    def look_after_path(self) -> None:
        """See to it that whoever looks for the socket at its path finds it: if it was taken away, it is made again."""
        try:
            if self._is_ours(os.lstat(self.path)):
                return
            reason = "something else is in its place"
        except FileNotFoundError:
            try:
                again, status = _listen(self.path)
            except OSError as error:
                reason = error.strerror or str(error)
            else:
                with suppress(OSError):
                    while True:
                        self._waiting.append(self._socket.accept()[0])
                self._socket.close()
                self._socket, self._status = again, status
                _log.warning(
                    "the socket was taken away; listening at its path again", path=self.path
                )
                return
        except OSError as error:
            reason = error.strerror or str(error)
        if self._may_tell():
            _log.warning(
                "the socket was taken away, and cannot be made again",
                path=self.path,
                reason=reason,
            )

    def _accept(self) -> Peer:
        connection = self._waiting.popleft() if self._waiting else self._socket.accept()[0]
        self._open += 1
        return Peer(connection, self._note_close)

    def _note_close(self) -> None:
        self._open -= 1
        self._one_closed.set()

    async def _wait_for_a_close(self) -> None:
        if self._may_tell():
            _log.warning(
                "too many connections; further ones wait until one closes",
                path=self.path,
                open=self._open,
            )
        self._one_closed = trio.Event()
        with trio.move_on_after(_SAY_EVERY):
            await self._one_closed.wait()

    def _is_ours(self, found: os.stat_result) -> bool:
        return (found.st_dev, found.st_ino) == (self._status.st_dev, self._status.st_ino)

    def _may_tell(self) -> bool:
        """Tell whether it is time for a line about what keeps the transformation from connecting."""
        now = trio.current_time()
        if now - self._said_at < _SAY_EVERY:
            return False
        self._said_at = now
        return True


class Peer:
    """One connection of the transformation; `on_close` is called once, when it is closed on this side."""

    def __init__(
        self, connection: socket.socket, on_close: Callable[[], object] = lambda: None
    ) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._on_close = on_close
        self._unsent: deque[memoryview] = deque()
        self._to_send = trio.Event()
        self._sending = trio.Lock()
        self.closed = False
        self.was_reset = False
        """Whether the peer closed without having read all that it was sent."""

    # -- reading

    async def wait_readable(self) -> None:
        """Return when there is something to receive, the peer's close included.

        Raises:
            trio.ClosedResourceError: it was closed on this side.
        """
        if self.closed:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_readable(self._socket)

    def receive_nowait(self) -> memoryview | None:
        """Return what has arrived: empty when the peer has closed, None when there is nothing yet.

        The view is valid until anything else is received, on whatever connection.
        """
        if self.closed:
            return _read_view[:0]
        try:
            return _read_view[: self._socket.recv_into(_read_view)]
        except BlockingIOError:
            return None
        except ConnectionResetError:
            # How Linux tells that it closed with something unread (unix_release_sock in net/unix/af_unix.c).
            self.was_reset = True
            return _read_view[:0]
        except OSError:
            return _read_view[:0]

    # -- writing

    def send(self, frame: bytes) -> None:
        """Send a frame by a call of its own, or as much of it as the socket takes; `run_sender` sends the rest.

        What can no longer be sent because the peer has closed is dropped: reading tells of the close.
        """
        if self.closed:
            return
        if not self._unsent:
            try:
                sent = self._socket.send(frame)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.was_reset = True
                return
            if sent == len(frame):
                return
            self._unsent.append(memoryview(frame)[sent:])
        else:
            self._unsent.append(memoryview(frame))
        self._to_send.set()

    async def run_sender(self) -> None:
        """Send what `send` could not, for as long as the connection lives."""
        while True:
            await self._to_send.wait()
            self._to_send = trio.Event()
            await self.flush()

    async def flush(self) -> None:
        """Return when everything has been sent, or the peer has closed."""
        async with self._sending:
            while self._unsent and not self.closed:
                try:
                    await trio.lowlevel.wait_writable(self._socket)
                    sent = self._socket.send(self._unsent[0])
                except BlockingIOError:
                    continue
                except OSError:
                    self.was_reset = True
                    self._unsent.clear()
                    return
                except trio.ClosedResourceError:
                    self._unsent.clear()
                    return
                if sent == len(self._unsent[0]):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = self._unsent[0][sent:]

    def unread(self) -> int:
        """How much of what was sent the peer has not read, in the kernel's own measure (more than the bytes); 0 if all."""
        if self.closed:
            return 0
        waiting = sum(map(len, self._unsent))
        return waiting + int(
            struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
        )

    def close(self) -> None:
        """Close the connection; whoever waits for it is woken. Calling it again changes nothing."""
        if not self.closed:
            self.closed = True
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            self._on_close()


SocketState: TypeAlias = Literal["absent", "left", "used", "foreign"]


def state_of_socket(path: str) -> SocketState:
    """Return whether a path is absent, a socket left by a dead process, one used by a living one, or foreign: no socket.

    Whoever listens there does not notice.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "absent"
    if not stat.S_ISSOCK(mode):
        return "foreign"
    # A stream socket refuses a datagram socket by its type (unix_find_bsd in net/unix/af_unix.c), and its owner never knows.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return "left"
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
    return "used"


def check_unused(path: str) -> None:
    """Raise VolumeUnusable if another process listens at the path, or something else than a socket is there."""
    try:
        state = state_of_socket(path)
    except OSError as error:
        raise VolumeUnusable(f"cannot look at {path}: {error.strerror}") from None
    if state == "used":
        raise VolumeUnusable(
            f"another process listens at {path}: end the other sidecar, or give each a volume of its own"
        )
    if state == "foreign":
        kind = "directory" if os.path.isdir(path) else "file that is no socket"
        raise VolumeUnusable(f"{path} is a {kind}; the sidecar's socket belongs there, remove it")


def _listen(path: str) -> tuple[socket.socket, os.stat_result]:
    """Make a listening socket at a path that is free, and return it with the status of its file."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        listening.bind(path)
        status = os.stat(path)
        os.chmod(path, 0o777)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening, status


def _make_way(path: str) -> None:
    """Remove a socket that no one listens on any more; anything else in its place is an error."""
    check_unused(path)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise VolumeUnusable(f"cannot replace the socket {path}: {error.strerror}") from None
