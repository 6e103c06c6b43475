"""A fragmenter of the user's own: a program that is sent the list of files and answers with groups of them.

It speaks over the fragmenter's two sockets (contract, section 8), with this side in the place of its sidecar.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from iterum_sidecar.framing import DEFAULT_FRAME_LIMIT, FrameReader, FrameTooLong, encode_frame
from iterum_sidecar.local.fragmenter_messages import decode_fragmenter_message, encode_file_list
from iterum_sidecar.local.inputs import shown
from iterum_sidecar.local.processes import how_it_ended
from iterum_sidecar.messages import KILL_MESSAGE, Kill, MessageRefused
from iterum_sidecar.unix_sockets import Listener, Peer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from iterum_sidecar.local.fragmenter_messages import Group

__all__ = ["Child", "FragmenterFailed", "Grouped", "run_own_fragmenter"]

#: The names that Iterum's manager gives a fragmenter's sockets and its folder of config files.
_INPUT_SOCKET = "tts.sock"
_OUTPUT_SOCKET = "fts.sock"
_CONFIG_FOLDER = "config"
#: How long a fragmenter that is to be ended may take to be gone.
_LAST_SECONDS = 5
_KILL_FRAME = encode_frame(KILL_MESSAGE)
_DONE_HINT = (
    'it must send {"status":"complete"} behind its last group'
    " (with pyterum: FragmenterOutput.produce_done())"
)


class Child(Protocol):
    """A process that was started for us."""

    @property
    def pid(self) -> int:
        """Its process ID."""

    async def wait(self) -> int:
        """Return its exit code once it has ended; minus the signal's number if one ended it."""

    def kill(self) -> None:
        """End it at once. Calling it again changes nothing."""


class FragmenterFailed(Exception):
    """The fragmenter has not done its work; the text says what happened, where, and what to do."""


@dataclass(frozen=True, slots=True)
class Grouped:
    """A fragment as the fragmenter has put it together: logical names in its order, and JSON of its own."""

    names: tuple[str, ...]
    custom: bytes | None


async def run_own_fragmenter(
    *,
    volume: str,
    names: Sequence[str],
    hashes: Sequence[str],
    start: Callable[[dict[str, str]], Awaitable[Child]],
    pipeline_hash: str,
    config: str = "{}",
    connect_seconds: float = 30,
    end_seconds: float = 30,
) -> list[Grouped]:
    """Run a fragmenter over the files of these logical names and content hashes, and return its groups.

    `volume` is an empty folder for its sockets, `start` starts it; it is given the variables that its container would
    have in a pod, to be laid over whatever else a process needs. `config` is its ITERUM_CONFIG, a JSON object. Once it
    has connected it may take any time for its groups, as long as it keeps a connection for them. It has ended when this
    returns or raises.

    Raises:
        FragmenterFailed: it did not connect in `connect_seconds`, sent what cannot be read or is no group of these files,
            ended before its kill message or with another exit code than 0, or neither ended nor came back in
            `end_seconds` after that message or after closing its last connection for groups.
        VolumeUnusable: its sockets cannot be made in `volume`.
        Exception: whatever `start` or `Child.wait` raise.
    """
    try:
        frame = encode_frame(encode_file_list(names, hashes))
    except struct.error:
        raise FragmenterFailed(
            "the list of the files is longer than the 4 GiB that a message may have; split the input"
        ) from None
    os.makedirs(os.path.join(volume, _CONFIG_FOLDER), exist_ok=True)
    environment = {
        "DATA_VOLUME_PATH": volume,
        "FRAGMENTER_INPUT": _INPUT_SOCKET,
        "FRAGMENTER_OUTPUT": _OUTPUT_SOCKET,
        "ITERUM_CONFIG": config or "{}",
        "ITERUM_CONFIG_PATH": _CONFIG_FOLDER,
        "ITERUM_NAME": f"{pipeline_hash}-fragmenter",
        "PIPELINE_HASH": pipeline_hash,
    }
    with (
        Listener(os.path.join(volume, _INPUT_SOCKET)) as inputs,
        Listener(os.path.join(volume, _OUTPUT_SOCKET)) as outputs,
    ):
        conversation = _Conversation(frame, _Sorter(names, hashes))
        child = await start(environment)
        try:
            await conversation.hold(child, inputs, outputs, connect_seconds, end_seconds)
        finally:
            if conversation.exit_code is None:
                child.kill()
                with trio.move_on_after(_LAST_SECONDS, shield=True):
                    await conversation.await_end(child)
            conversation.close()
    return conversation.sorter.groups


class _Sorter:
    """Holds groups against the list of files, and keeps those that agree with it."""

    def __init__(self, names: Sequence[str], hashes: Sequence[str]) -> None:
        self.groups: list[Grouped] = []
        self._names = names
        self._hashes = hashes
        self._positions = {name: position for position, name in enumerate(names)}

    def take(self, group: Group) -> None:
        """Keep a group. Raises FragmenterFailed for one that cannot be a fragment of these files."""
        number = len(self.groups) + 1
        if not group.files:
            raise FragmenterFailed(
                f"group {number:,} of the fragmenter has no file; it must send groups of at least one"
            )
        positions: dict[int, int] = {}
        for place, file in enumerate(group.files):
            position = self._find(file, f"group {number:,}, files[{place}]")
            if position in positions:
                raise FragmenterFailed(
                    f"group {number:,} of the fragmenter has the file {shown(file)} twice, as"
                    f" files[{positions[position]}] and files[{place}]; in one group it may be once"
                )
            positions[position] = place
        self.groups.append(Grouped(tuple(self._names[each] for each in positions), group.custom))

    def _find(self, file: str, where: str) -> int:
        name, _, content_hash = file.rpartition("/")
        position = self._positions.get(name)
        if position is not None and self._hashes[position] == content_hash:
            return position
        remedy = "it must send files from the list that it was sent, as they stand there"
        if file in self._positions:
            remedy = "that is the name alone: it must send the whole text from the list, what is behind the last / too"
        raise FragmenterFailed(
            f"{where} of the fragmenter is {shown(file[:200])}, which is no file of the list; {remedy}"
        )


class _Output:
    """A connection on which groups come."""

    def __init__(self, peer: Peer, limit: int) -> None:
        self.peer = peer
        self.frames = FrameReader(limit)
        self.killed = False
        """Whether it has said that it will send nothing more."""


class _Conversation:
    """What is said between us and one fragmenter, from its start to its end."""

    def __init__(self, frame: bytes, sorter: _Sorter) -> None:
        self.sorter = sorter
        self.exit_code: int | None = None
        self._frame = frame
        # A group names no more than the list does; other writers of JSON may need four times the room for it.
        self._limit = max(DEFAULT_FRAME_LIMIT, 4 * len(frame))
        self._scope = trio.CancelScope()
        self._failure: Exception | None = None
        self._came = trio.Event()
        self._over = trio.Event()
        self._inputs: set[Peer] = set()
        self._outputs: list[_Output] = []
        self._holder: Peer | None = None
        self._is_list_sent = False
        self._killed = False
        self._cut = False
        self._messages = 0

    async def hold(
        self, child: Child, inputs: Listener, outputs: Listener, connect: float, end: float
    ) -> None:
        """Speak with the fragmenter until it has ended; raises FragmenterFailed when it has not done its work."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve_inputs, inputs, nursery)
                nursery.start_soon(self._serve_outputs, outputs, nursery)
                nursery.start_soon(self._keep_time, connect, end)
                await self.await_end(child)
                self._scope.cancel("the fragmenter has ended")
        if self._failure is not None:
            raise self._failure
        self._read_the_rest(outputs)
        code = self.exit_code or 0
        if code == 0 and self._failure is not None:
            raise self._failure
        if code != 0 or not self._killed:
            when = "after" if self._killed else "before"
            remedy = "its log says why" if code else _DONE_HINT
            raise FragmenterFailed(
                f"the fragmenter {how_it_ended(code)} {when} it had said that it was done; {remedy}"
            )
        if self._cut:
            raise FragmenterFailed(
                "the fragmenter closed a connection in the middle of a message; it must send whole ones"
            )

    async def await_end(self, child: Child) -> None:
        """Return when the process has ended, or nobody can tell."""
        try:
            self.exit_code = await child.wait()
        except Exception as error:
            self._fail(error)

    def close(self) -> None:
        """Close what is open."""
        for peer in [*self._inputs, *(output.peer for output in self._outputs)]:
            peer.close()

    # -- towards the fragmenter

    async def _serve_inputs(self, listener: Listener, nursery: trio.Nursery) -> None:
        while True:
            peer = await listener.accept()
            self._inputs.add(peer)
            self._came.set()
            nursery.start_soon(self._serve_input, peer)

    async def _serve_input(self, peer: Peer) -> None:
        """Send the list and the kill message; a connection that is opened later is sent the latter alone.

        A connection that closes without having read everything leaves the list to the next one.
        """
        if not self._is_list_taken():
            self._holder, self._is_list_sent = peer, False
            peer.send(self._frame)
        peer.send(_KILL_FRAME)
        await peer.flush()
        # A peer that has closed takes nothing, and only reading tells.
        closed = _has_closed(peer)
        if peer is self._holder:
            self._is_list_sent = not closed
        while not closed:
            await peer.wait_readable()
            closed = _has_closed(peer)
        self._inputs.discard(peer)
        peer.close()

    def _is_list_taken(self) -> bool:
        """Whether some connection has read the list, or still may."""
        holder = self._holder
        if holder is None:
            return False
        return not _has_closed(holder) or (self._is_list_sent and not holder.was_reset)

    # -- from the fragmenter

    async def _serve_outputs(self, listener: Listener, nursery: trio.Nursery) -> None:
        while True:
            output = self._open(await listener.accept())
            nursery.start_soon(self._serve_output, output)

    async def _serve_output(self, output: _Output) -> None:
        while output in self._outputs:
            await output.peer.wait_readable()
            self._read(output)

    def _open(self, peer: Peer) -> _Output:
        output = _Output(peer, self._limit)
        self._outputs.append(output)
        self._came.set()
        if self._over.is_set():
            self._over = trio.Event()
        return output

    def _read_the_rest(self, listener: Listener) -> None:
        """Read what the fragmenter had sent before it ended; nothing is written any more."""
        while (peer := listener.accept_nowait()) is not None:
            self._open(peer)
        for output in list(self._outputs):
            while output in self._outputs and self._failure is None and self._read(output):
                pass
            # What it has started may hold the connection, and end nothing by that.
            self._cut |= output.frames.buffered > 0

    def _read(self, output: _Output) -> bool:
        """Take a piece of what has arrived, if there is any; one that has closed is dropped."""
        data = output.peer.receive_nowait()
        if data is None:
            return False
        if not data:
            self._cut |= output.frames.buffered > 0
            self._outputs.remove(output)
            output.peer.close()
            self._look_whether_over()
            return True
        try:
            for payload in output.frames.feed(data):
                self._messages += 1
                self._take(output, payload)
        except FragmenterFailed as error:
            self._fail(error)
        except (FrameTooLong, MessageRefused) as error:
            place = self._messages + isinstance(error, FrameTooLong)
            self._fail(
                FragmenterFailed(
                    f"message {place:,} of the fragmenter cannot be read: {error}; it must send"
                    ' {"files":[…],"metadata":{…}} for each group, each behind its length in 4 bytes'
                )
            )
        return True

    def _take(self, output: _Output, payload: bytes) -> None:
        message = decode_fragmenter_message(payload)
        if isinstance(message, Kill):
            output.killed = self._killed = True
            self._look_whether_over()
        elif output.killed:
            raise FragmenterFailed(
                "the fragmenter sent a group after it had said that it was done; the kill message must be its last"
            )
        else:
            self.sorter.take(message)

    # -- its end

    def _look_whether_over(self) -> None:
        if all(output.killed for output in self._outputs):
            self._over.set()

    async def _keep_time(self, connect: float, end: float) -> None:
        with trio.move_on_after(connect):
            await self._came.wait()
        if not self._came.is_set():
            self._fail(
                FragmenterFailed(
                    f"the fragmenter did not connect in {connect:g} s; it must open the sockets that"
                    " FRAGMENTER_INPUT and FRAGMENTER_OUTPUT name in DATA_VOLUME_PATH"
                )
            )
        over = None
        while over is not self._over:
            over = self._over
            await over.wait()
            await trio.sleep(end)
        if self._killed:
            what, remedy = "it had said that it was done", "it must exit then, with 0"
        else:
            what, remedy = "closing its connection to FRAGMENTER_OUTPUT", _DONE_HINT
        self._fail(
            FragmenterFailed(f"the fragmenter did not end in {end:g} s after {what}; {remedy}")
        )

    def _fail(self, failure: Exception) -> None:
        if self._failure is None:
            self._failure = failure
        self._scope.cancel("the fragmenter has failed")


def _has_closed(peer: Peer) -> bool:
    """Tell whether a connection that has nothing to say has closed."""
    arrived = peer.receive_nowait()
    return arrived is not None and not arrived
