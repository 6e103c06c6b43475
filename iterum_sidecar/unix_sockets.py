"""The Unix sockets that the sidecar listens on, and one connection of them, without more waiting than needed.

A call that would block waits for the socket; one that does not costs no trip through the event loop.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
import termios
from collections import deque
from typing import TYPE_CHECKING, Literal, TypeAlias

import trio

from iterum_sidecar.exit_codes import VolumeUnusable
from iterum_sidecar.telemetry.logs import get_log

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Listener", "Peer", "check_unused", "state_of_socket"]

_log = get_log(__name__)

#: Connections that may wait to be accepted; a transformation opens a few at its start.
_BACKLOG = 128
#: What accept() may fail with while the listener is sound (accept(2)), and the pause before the next attempt.
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NO_ROOM_PAUSE = 0.1
#: A step's frames are a few hundred bytes, and come two at a time.
_READ_SIZE = 64 * 1024
# One buffer for all connections: whatever is read is looked at before anything else is.
_read_view = memoryview(bytearray(_READ_SIZE))


class Listener:
    """A listening Unix socket in the volume. Use as a context manager; leaving removes its file."""

    def __init__(self, path: str) -> None:
        """Listen at `path`, in the place of a socket that a dead process has left there.

        The socket is open to every user: the transformation may run as another one than the sidecar (contract, section 5).

        Raises:
            VolumeUnusable: something else is in its place, or it cannot be made.
        """
        self.path = path
        _make_way(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.setblocking(False)
            self._socket.bind(path)
            self._status = os.stat(path)
            os.chmod(path, 0o777)
            self._socket.listen(_BACKLOG)
        except OSError as error:
            self._socket.close()
            raise VolumeUnusable(f"cannot listen at {path}: {error.strerror or error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()
        try:
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == (self._status.st_dev, self._status.st_ino):
                os.unlink(self.path)
        except FileNotFoundError:
            pass

    async def accept(self) -> Peer:
        """Return the next connection."""
        await trio.lowlevel.checkpoint()
        while True:
            try:
                connection, _ = self._socket.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                _log.warning("cannot accept a connection", path=self.path, reason=str(error))
                await trio.sleep(_NO_ROOM_PAUSE)
            else:
                return Peer(connection)

    def accept_nowait(self) -> Peer | None:
        """Return a connection that waits to be accepted, or None."""
        try:
            return Peer(self._socket.accept()[0])
        except OSError:
            return None


class Peer:
    """One connection of the transformation."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
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
                except (OSError, trio.ClosedResourceError):
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


def _make_way(path: str) -> None:
    """Remove a socket that no one listens on any more; anything else in its place is an error."""
    check_unused(path)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise VolumeUnusable(f"cannot replace the socket {path}: {error.strerror}") from None
