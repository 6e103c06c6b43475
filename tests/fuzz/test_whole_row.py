"""The whole row beside strangers: whatever they send, every fragment ends as an output or as a dead letter, once, and the row ends."""

from __future__ import annotations

import json
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from iterum_sidecar.framing import encode_frame
from iterum_sidecar.messages import MessageRefused, decode_remote_fragment
from tests.fuzz.examples import examples
from tests.fuzz.mutation import changed_json, damaged
from tests.fuzz.targets import TARGETS
from tests.unit.row import (
    DEAD,
    INPUT,
    LINEAGE,
    FinishedOnRequest,
    Row,
    StepConnection,
    fragment_id,
    temporary_row,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

RANDOM = st.randoms(use_true_random=False)
#: Seconds of the row's own clock within which everything has ended that ever will.
SOON = 24 * 3600.0


def on_its_own_clock(main: Callable[[], Awaitable[None]]) -> None:
    async def in_time() -> None:
        with trio.fail_after(SOON):
            await main()

    trio.run(in_time, clock=MockClock(autojump_threshold=0))


async def run(row: Row, step: Callable[[StepConnection], Any]) -> None:
    upstream = FinishedOnRequest()
    upstream.finished.set()
    sidecar = row.make_sidecar(upstream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(row.run_step, step)
        await sidecar.run()
        nursery.cancel_scope.cancel()


def content_of(own: str) -> bytes:
    return sha256(own.encode()).hexdigest().encode()


async def answer(connection: StepConnection, own: str) -> None:
    """Send the one good result of a fragment, and done."""
    await connection.result([own], f"of-{own}", content_of(own))
    await connection.done(own)


async def answering(connection: StepConnection) -> None:
    async for fragment in connection.fragments():
        for file in fragment["files"]:
            assert Path(file["path"]).is_file()
        await answer(connection, fragment["metadata"]["fragment_id"])
    await connection.kill()


def check(row: Row, inputs: set[str]) -> None:
    """Hold everything that came out against what went in; `inputs` are the IDs that were in order."""
    assert row.broker.messages(INPUT) == []
    # The path of a result that is dropped may be in use again.
    left = row.left_on_volume()
    assert len(left) <= row.tally.stray_results, left
    outputs = row.outputs()
    ids = [output["metadata"]["fragment_id"] for output in outputs]
    assert len(set(ids)) == len(ids), f"an output's ID came twice: {json.dumps(outputs, indent=1)}"
    told = [json.loads(message.body)["description"] for message in row.broker.messages(LINEAGE)]
    assert Counter(each["metadata"]["fragment_id"] for each in told) == Counter(ids)
    good = Counter(
        file["name"].removeprefix("of-")
        for output in outputs
        for file in output["files"]
        if file["name"].startswith("of-")
        and row.object(file["bucket"], file["path"]) == content_of(file["name"][3:])
    )
    assert set(good.values()) <= {1}, "a good result came out twice"
    dead = set()
    for letter in row.broker.messages(DEAD):
        assert letter.headers["x-iterum-reason"]
        try:
            dead.add(decode_remote_fragment(letter.body).metadata.fragment_id)
        except MessageRefused:
            assert letter.headers["x-iterum-kind"] == "unreadable"
    for own in inputs:
        assert own in good or own in dead, f"{own} is lost"


# -- the input queue


def description(number: int, name: str = "a/b.txt") -> bytes:
    file = {"name": name, "path": f"iterum_data/{number}.txt", "bucket": "source"}
    metadata = {"fragment_id": fragment_id(number), "predecessors": None, "custom": {"k": [number]}}
    return json.dumps({"files": [file], "metadata": metadata}).encode()


def strange_message(random: Random) -> bytes:
    good = description(random.randrange(4), random.choice(("a/b.txt", "c")))
    choice = random.random()
    if choice < 0.6:
        return changed_json(good, random)
    if choice < 0.9:
        return damaged(good, random)
    return random.randbytes(random.randrange(40))


@settings(max_examples=examples(60))
@given(random=RANDOM, count=st.integers(1, 12))
def test_every_message_of_the_input_queue_is_processed_or_dead_lettered(
    random: Random, count: int
) -> None:
    bodies = [strange_message(random) for _ in range(count)]
    bodies.insert(random.randrange(len(bodies) + 1), description(9))

    async def main() -> None:
        async with temporary_row() as row:
            for number in (0, 1, 2, 3, 9):
                await row.put_object(f"iterum_data/{number}.txt", b"x")
            for body in bodies:
                row.broker.put(INPUT, body)
            await run(row, answering)
            letters = Counter(letter.body for letter in row.broker.messages(DEAD))
            inputs = set()
            for body in bodies:
                try:
                    inputs.add(decode_remote_fragment(body).metadata.fragment_id)
                except MessageRefused:
                    assert letters[body] == bodies.count(body)
            assert not letters.keys() - set(bodies), "dead letters are byte for byte what came"
            check(row, inputs)

    on_its_own_clock(main)


# -- the two sockets


def strange_frames(random: Random, own: str, path: Path) -> bytes:
    """Return what a stranger sends on a connection, in which this fragment and this file are named as often as not."""
    sent = b""
    for _ in range(random.randrange(1, 4)):
        seed = random.choice(TARGETS["transformation"].seeds[:-1])
        seed = seed.replace(b"a" * 64, own.encode()).replace(b"/v/output/cat.jpg", bytes(path))
        choice = random.random()
        if choice < 0.6 and seed.startswith(b"{"):
            frame = encode_frame(changed_json(seed, random))
        elif choice < 0.8:
            frame = encode_frame(damaged(seed, random))
        else:
            frame = damaged(encode_frame(seed), random)
        sent += frame
    return sent


async def strange_connection(volume: Path, socket: str, sent: bytes, seconds: float) -> None:
    stream = await trio.open_unix_socket(volume / socket)
    async with stream:
        try:
            await stream.send_all(sent)
            await trio.sleep(seconds)
        except trio.BrokenResourceError:
            pass  # closed for a breach


@settings(max_examples=examples(60))
@given(random=RANDOM, count=st.integers(1, 5), depth=st.sampled_from(["1", "3"]))
def test_good_fragments_come_out_beside_whatever_else_is_sent(
    random: Random, count: int, depth: str
) -> None:
    async def main() -> None:
        async with temporary_row(SIDECAR_ATTEMPTS="1000", SIDECAR_HANDOUT_DEPTH=depth) as row:
            seen: set[str] = set()

            async def disturbed(connection: StepConnection) -> None:
                async for fragment in connection.fragments():
                    own = fragment["metadata"]["fragment_id"]
                    if own not in seen:
                        seen.add(own)
                        await disturb(connection, own)
                    await answer(connection, own)
                await connection.kill()

            async def disturb(connection: StepConnection, own: str) -> None:
                for number in range(random.randrange(3)):
                    path = connection.volume / f"strange-{own[-2:]}-{number}"
                    path.write_bytes(b"strange")
                    frames = strange_frames(random, own, path)
                    socket = random.choice(("out.sock", "out.sock", "out.sock", "in.sock"))
                    seconds = random.choice((0.0, 0.001, 2.0))
                    await strange_connection(connection.volume, socket, frames, seconds)
                    path.unlink(missing_ok=True)

            await row.put(count)
            await run(row, disturbed)
            check(row, {fragment_id(number) for number in range(count)})

    on_its_own_clock(main)
