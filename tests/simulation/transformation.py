"""The transformation of a simulation: processes that are honest at their work, and die at any moment.

A process has pairs of connections, each with a task of its own. It is started again after each death, connects again when the sidecar has
gone, and ends when all its pairs have read the kill message and have answered it. It writes each result to one path, in place, as many do,
unless it holds several fragments at a time.
"""

from __future__ import annotations

import json
import os
import select
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

import trio

from iterum_sidecar.framing import FrameReader, encode_frame
from iterum_sidecar.messages import KILL_MESSAGE

if TYPE_CHECKING:
    from tests.simulation.plan import Fragment, Result
    from tests.simulation.pod import Life, Pod

__all__ = ["UNREAD_KILL", "Process"]

#: What is said of a process that had been told kill and had not read it.
UNREAD_KILL = "with an unread kill"
#: Seconds until a connection that was refused or broken is tried again.
AGAIN_AFTER = 0.1
_READ_SIZE = 256 * 1024


class _Gone(Exception):
    """The sidecar has closed a connection."""


class _Wire:
    """One of the two connections of a pair."""

    def __init__(self, path: str) -> None:
        """Connect. Raises OSError."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._frames = FrameReader()
        self._arrived: deque[bytes] = deque()
        try:
            self._socket.setblocking(False)
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise

    async def next(self) -> bytes:
        """Return the next frame's payload. Raises _Gone."""
        while not self._arrived:
            try:
                data = self._socket.recv(_READ_SIZE)
            except BlockingIOError:
                try:
                    await trio.lowlevel.wait_readable(self._socket)
                except trio.ClosedResourceError:
                    raise _Gone from None
                continue
            except OSError:
                raise _Gone from None
            if not data:
                raise _Gone
            self._arrived.extend(self._frames.feed(data))
        return self._arrived.popleft()

    async def next_close(self) -> None:
        """Read nothing, and return when the other side has closed."""
        while self._socket.fileno() >= 0:
            watch = select.poll()
            watch.register(self._socket, select.POLLHUP)
            if watch.poll(0):
                return
            await trio.sleep(1)

    def send(self, data: bytes) -> None:
        """Send some bytes, which the socket's buffer has room for. Raises _Gone."""
        try:
            sent = self._socket.send(data)
        except OSError:
            raise _Gone from None
        assert sent == len(data)

    def holds_kill(self) -> bool:
        """Whether the kill message has come and was not read."""
        try:
            waiting = self._socket.recv(_READ_SIZE, socket.MSG_PEEK)
        except OSError:
            waiting = b""
        return KILL_MESSAGE in waiting or KILL_MESSAGE in self._arrived

    def close(self) -> None:
        """Close it; whoever waits for it is woken."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


class _Pair:
    """One pair of connections, and the task that works over it."""

    def __init__(self, process: Process, number: int) -> None:
        self.process = process
        self.name = f"{process.name}.{number}"
        self.held: list[Fragment] = []
        """What it has been handed and has not said done for."""
        self._wires: list[_Wire] = []
        self._pod = process.pod
        self._plan = process.pod.plan
        self._places = f"{process.pod.volume}/output/{self.name}"

    @property
    def is_connected(self) -> bool:
        return len(self._wires) == 2

    @property
    def is_told_kill(self) -> bool:
        """Whether the kill message waits to be read."""
        return bool(self._wires) and self._wires[0].holds_kill()

    async def run(self) -> None:
        """Work until the kill message, over as many connections as it takes."""
        while True:
            await self._pod.listening.wait()
            try:
                self._connect()
                await self._work()
                return
            except OSError:
                pass  # nobody listens yet
            except _Gone:
                self._record("left", UNREAD_KILL if self.is_told_kill else "")
            finally:
                self.close()
            await trio.sleep(AGAIN_AFTER)

    def close(self) -> None:
        """Close both connections, as the kernel does for one that has died."""
        wires, self._wires = self._wires, []
        for wire in wires:
            wire.close()
        self.held.clear()

    def send(self, data: bytes) -> None:
        """Send some bytes to the sidecar. Raises _Gone."""
        if not self.is_connected:
            raise _Gone
        self._wires[1].send(data)

    def _say(self, message: object) -> None:
        self.send(encode_frame(json.dumps(message).encode()))

    def _record(self, what: str, detail: str = "") -> None:
        names = " ".join(fragment.name for fragment in self.held)
        self._pod.history.record(what, self.name, names, detail)

    def _connect(self) -> None:
        for name in ("in.sock", "out.sock"):
            self._wires.append(_Wire(f"{self._pod.volume}/{name}"))

    async def _work(self) -> None:
        inputs = self._wires[0]
        life = self._pod.life
        assert life is not None
        if self._plan.shape == "gather" and self._plan.says_gathers:
            self._say({"gathers": {"fragments": self._plan.batch}})
        while True:
            message = json.loads(await inputs.next())
            if "status" in message:
                self.process.told_by = life
                self._record("reads kill")
                break
            fragment = self._read(message)
            self.held.append(fragment)
            self._pod.history.record("took", self.name, fragment.name)
            if fragment.nature == "poison" and (
                self._plan.shape == "gather" or not fragment.is_late
            ):
                await trio.sleep(fragment.work)
                self.process.die("poison")
                await trio.sleep_forever()
            if fragment.nature == "hanging":
                self._record("hangs")
                await inputs.next_close()
                raise _Gone
            if self._plan.shape != "gather" or fragment.nature == "failing":
                await self._do(fragment)
            elif len(self.held) >= self._plan.batch:
                await self._do_batch()
        if self.held:
            await self._do_batch()
        self._pod.history.record("answers kill", self.name)
        self._say({"status": "complete"})

    def _read(self, message: Any) -> Fragment:  # noqa: ANN401 - JSON
        """Return the fragment that a message is about, having seen that its files are what they should be."""
        found = []
        for file in message["files"]:
            try:
                with open(file["path"], "rb") as opened:
                    found.append((file["name"], opened.read()))
            except FileNotFoundError:
                # Of a sidecar that has gone the next one clears the volume.
                self._pod.history.record(
                    "input gone", self.name, message["metadata"]["fragment_id"].rstrip("-")
                )
                raise _Gone from None
        return self._pod.recognise(message["metadata"]["fragment_id"], tuple(found))

    async def _do(self, fragment: Fragment) -> None:
        await trio.sleep(fragment.work)
        if fragment.nature == "failing":
            self._end(
                "failed",
                fragment,
                {"failed": {"fragment_id": fragment.own_id, "reason": "it cannot be done"}},
            )
            return
        for index, result in enumerate(self._plan.results_of(fragment)):
            self._send_result([fragment], result, index)
            if fragment.results > 1:
                await trio.sleep(fragment.work / 4)
        if fragment.nature == "poison":
            self.process.die("poison")
            await trio.sleep_forever()
        self._end("done", fragment, {"fragment_id": fragment.own_id})

    async def _do_batch(self) -> None:
        batch = list(self.held)
        await trio.sleep(sum(fragment.work for fragment in batch))
        self._send_result(batch, self._plan.gathered(batch), 0)
        for fragment in batch:
            self._end("done", fragment, {"fragment_id": fragment.own_id})

    def _send_result(self, fragments: list[Fragment], result: Result, index: int) -> None:
        one_path = self._plan.depth == 1 and self._plan.shape != "gather"
        place = self._places if one_path else f"{self._places}-{self._pod.next_number()}"
        os.makedirs(place, exist_ok=True)
        escaping = any(fragment.nature == "escaping" for fragment in fragments)
        files = []
        for name, content in result.files:
            path = "/etc/hostname" if escaping else f"{place}/{index}-{name}"
            if not escaping:
                with open(path, "wb") as file:
                    file.write(content)
            files.append({"name": name, "path": path})
        predecessors = [fragment.own_id for fragment in fragments]
        metadata = {"predecessors": predecessors, "output_channel": result.channel}
        self._record("result", "outside the volume" if escaping else "")
        self._say({"files": files, "metadata": metadata})

    def _end(self, how: str, fragment: Fragment, message: object) -> None:
        self._pod.history.record(how, self.name, fragment.name)
        if fragment in self.held:
            self.held.remove(fragment)
        self._say(message)


class Process:
    """One process of the step."""

    def __init__(self, pod: Pod, number: int) -> None:
        self.pod = pod
        self.name: str = f"{pod.name}p{number}"
        self.told_by: Life
        """The sidecar that has said kill last."""
        self.pairs = [_Pair(self, number) for number in range(pod.plan.pairs)]
        self._life = trio.CancelScope()
        self._whole = trio.CancelScope()

    async def keep_running(self) -> None:
        """Run it, and start it again whenever it has ended, until the pod has done its work."""
        with self._whole:
            while True:
                self.pairs = [_Pair(self, number) for number in range(self.pod.plan.pairs)]
                with trio.CancelScope() as self._life:
                    async with trio.open_nursery() as nursery:
                        for pair in self.pairs:
                            nursery.start_soon(pair.run)
                if not self._life.cancelled_caught:
                    # It has ended well. Nothing more comes until there is another sidecar.
                    await self.told_by.over.wait()
                await trio.sleep(self.pod.plan.restart)

    def end(self) -> None:
        """End it for good, with its pod."""
        for pair in self.pairs:
            pair.close()
        self._whole.cancel("its pod is over")

    @property
    def is_connected(self) -> bool:
        return any(pair.is_connected for pair in self.pairs)

    def die(self, why: str) -> None:
        """Die at once: its kernel closes all connections."""
        names = " ".join(fragment.name for pair in self.pairs for fragment in pair.held)
        told = any(pair.is_told_kill for pair in self.pairs)
        self.pod.history.record("died", self.name, names, UNREAD_KILL if told else why)
        self.pod.history.trouble()
        for pair in self.pairs:
            pair.close()
        self._life.cancel("it has died")

    def lose_pair(self, number: int) -> bool:
        """Let one of its tasks die; it begins again."""
        pair = self.pairs[number % len(self.pairs)]
        if not pair.is_connected:
            return False
        names = " ".join(fragment.name for fragment in pair.held)
        detail = UNREAD_KILL if pair.is_told_kill else "one pair"
        self.pod.history.record("died", pair.name, names, detail)
        pair.close()
        return True

    def breach(self, number: int, data: bytes) -> bool:
        """Send something that cannot be read."""
        pair = self.pairs[number % len(self.pairs)]
        if not pair.is_connected:
            return False
        names = " ".join(
            fragment.name
            for process in self.pod.processes
            for each in process.pairs
            for fragment in each.held
        )
        self.pod.history.record(
            "breach", pair.name, names, UNREAD_KILL if pair.is_told_kill else ""
        )
        try:
            pair.send(data)
        except _Gone:
            return False
        return True
