"""The client of a plain function: blocking sockets, and a thread for each pair of connections when there are several."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from iterum_sidecar.step.attempts import Attempts, GivenUp
from iterum_sidecar.step.calling import call, report_failure
from iterum_sidecar.step.fragments import making_of
from iterum_sidecar.step.session import Session
from iterum_sidecar.step.volume import Volume
from iterum_sidecar.step.wire import SidecarRefused

if TYPE_CHECKING:
    from iterum_sidecar.step.session import Work
    from iterum_sidecar.step.surroundings import Surroundings
    from iterum_sidecar.step.transformation import Transform

__all__ = ["run_blocking"]

_READ_SIZE = 64 * 1024


def run_blocking(transform: Transform[..., object], surroundings: Surroundings) -> None:
    """Work until the sidecar says on every pair of connections that nothing more comes.

    Raises:
        GivenUp: there is no sidecar (any more).
        SystemExit: the function has failed beside a sidecar that cannot be told otherwise, or wants the process to end.
    """
    client = _Client(transform, surroundings)
    if transform.concurrency == 1:
        client.serve()
    else:
        _run_threads(client, transform.concurrency)


def _run_threads(client: _Client, count: int) -> None:
    import threading
    from queue import SimpleQueue

    ends: SimpleQueue[BaseException | None] = SimpleQueue()

    def run() -> None:
        end: BaseException | None = SystemExit(1)
        try:
            client.serve()
            end = None
        except (Exception, SystemExit) as error:
            end = error
        finally:
            ends.put(end)

    for number in range(count):
        # A daemon: when one thread ends the process, the others may be in the middle of anything.
        threading.Thread(target=run, name=f"pair {number + 1}", daemon=True).start()
    for _ in range(count):
        if (error := ends.get()) is not None:
            raise error


class _Client:
    """What the pairs of connections of one process share."""

    def __init__(self, transform: Transform[..., object], surroundings: Surroundings) -> None:
        self._transform = transform
        self._surroundings = surroundings
        self._volume = Volume(surroundings.volume)
        self._is_ending = False

    def serve(self) -> None:
        """Work over one pair of connections after another until the end has been said."""
        attempts = Attempts(time.monotonic())
        while True:
            pair = self._connect(attempts)
            if pair is None:
                return
            attempts.connected(time.monotonic())
            session = Session(self._volume, self._transform.gather)
            with pair[0], pair[1]:
                if self._work(session, *pair):
                    return
            time.sleep(attempts.lost(time.monotonic(), heard=session.heard))

    def _connect(self, attempts: Attempts) -> tuple[socket.socket, socket.socket] | None:
        """Return a pair of connections, or None: another pair has been told that this is the end, and the sidecar has gone."""
        inputs = self._connect_one(self._surroundings.input_socket, attempts)
        if inputs is None:
            return None
        try:
            outputs = self._connect_one(self._surroundings.output_socket, attempts)
        except BaseException:
            inputs.close()
            raise
        if outputs is None:
            inputs.close()
            return None
        return inputs, outputs

    def _connect_one(self, path: str, attempts: Attempts) -> socket.socket | None:
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(path)
            except OSError as error:
                connection.close()
                if self._is_ending:
                    return None
                time.sleep(attempts.refused(path, error, time.monotonic()))
            except BaseException:
                connection.close()
                raise
            else:
                return connection

    def _work(self, session: Session, inputs: socket.socket, outputs: socket.socket) -> bool:
        """Work until the end is said, or the connections break: False."""
        view = memoryview(bytearray(_READ_SIZE))
        while True:
            while (work := session.next_work()) is None:
                if session.is_over:
                    # The sidecar may have gone without waiting for it; nothing depends on it any more.
                    _send(outputs, session.goodbye())
                    return True
                try:
                    size = inputs.recv_into(view)
                except OSError:
                    return False
                if not size:
                    return False
                try:
                    to_send = session.receive(view[:size])
                except SidecarRefused as error:
                    raise GivenUp(str(error)) from None
                if session.killed:
                    self._is_ending = True
                if to_send and _send(outputs, to_send) < len(to_send):
                    return False
            if not self._perform(session, work, outputs):
                return False

    def _perform(self, session: Session, work: Work, outputs: socket.socket) -> bool:
        """Call the function and send what came of it; False when the connection is broken."""
        function = self._transform.function
        try:
            results = call(function, work)
        except Exception as error:
            to_send = report_failure(session, work, error, function)
        else:
            to_send = session.done(work, results)
        sent = _send(outputs, to_send)
        if not sent:
            making_of(work).discard()
        return sent == len(to_send)


def _send(outputs: socket.socket, pieces: list[bytes]) -> int:
    """Send pieces each by a call of its own, and return how many were."""
    for number, piece in enumerate(pieces):
        try:
            outputs.sendall(piece)
        except OSError:
            return number
    return len(pieces)
