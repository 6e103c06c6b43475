"""A transformation that lies, floods, hoards and crowds: its breaches cost it its connections, and nobody else anything.

What a single bad message does is in `tests/wire/test_refusals.py`; what paths and files may do is in `test_hostile_files.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import shutil
import socket
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.framing import encode_frame
from testbed.contents import content
from tests.faults.raw_step import (
    MOST_MEMORY,
    SOON,
    RawStep,
    announced,
    canary,
    check_sound,
    seed_good,
    warnings_of,
)
from tests.wire.checks import check_mirrored
from tests.wire.journey import SIDECAR

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed.process import Process
    from tests.wire.journey import Journey

#: Results of one fragment in the flood; set it to 100,000 to see that no more memory is held for each of more.
FLOOD = int(os.environ.get("HOSTILE_FLOOD", "3000"))
#: Bytes that each result of a fragment may take until its fragment is done: its path has to be removed, its ID known.
EACH_RESULT = 2500
TOO_MANY = "too many connections; further ones wait until one closes"
NEVER_HERE = "never-here-" + "0" * 53


@pytest.fixture(autouse=True)
def beside(volume: Path) -> Iterator[Path]:
    """A tree beside the volume of which nothing is touched."""
    with canary(volume) as directory:
        yield directory


def begin(journey: Journey, count: int, **variables: str) -> Process:
    """Queue so many good fragments, and start a sidecar, up to its sockets."""
    seed_good(journey, count)
    journey.queue_inputs()
    journey.variables |= variables
    sidecar = journey.start_sidecar()
    journey.wait_for_sockets()
    return sidecar


def end_well(journey: Journey, sidecar: Process, most: int = MOST_MEMORY) -> None:
    """Wait for the end, and hold it against what is true of every life."""
    ended = journey.end(sidecar)
    check_sound(journey, sidecar, ended, most)


# -- lies


def test_done_too_early_done_twice_and_results_after_their_done(journey: Journey) -> None:
    sidecar = begin(journey, 6)
    with RawStep(journey) as step:
        for number, (own, files) in enumerate(step.fragments()):
            result = step.result_of(own, step.write(own, files["good"][::-1]))
            done = {"fragment_id": own}
            sent = (
                [result, done],
                [done, result],
                [result, done, done, done],
                [
                    {"fragment_id": NEVER_HERE},
                    result,
                    {"fragment_id": "not an ID"[:9] * 7 + "!"},
                    done,
                ],
                [result, done, {"fragment_id": "ü" * 64}],
                [done, done, result, done],
            )[number]
            step.send(*sent)
        step.send({"status": "complete"})
        end_well(journey, sidecar)
    outcome = journey.outcome()
    check_mirrored(outcome, journey.contents, journey.store)
    assert len(outcome.outputs) == 6
    late = (
        "a result came after its fragments were settled; it is published without their protection"
    )
    assert len(warnings_of(sidecar)) == len(warnings_of(sidecar, late)) == 2


def test_results_of_fragments_that_were_never_here_harm_none_that_are(journey: Journey) -> None:
    sidecar = begin(journey, 4)
    journey.inputs[NEVER_HERE] = next(iter(journey.inputs.values()))
    with RawStep(journey) as step:
        for own, files in step.fragments():
            step.send(step.result_of(NEVER_HERE, step.write(f"made-up-{own}", b"made up"), "x"))
            step.answer(own, files)
        step.send({"status": "complete"})
        end_well(journey, sidecar)
    outcome = journey.outcome(once=False)
    made_up = [each for each in outcome.outputs if each.predecessors == (NEVER_HERE,)]
    assert len(made_up) == 4
    assert Counter(
        each.predecessors[0] for each in outcome.outputs if each not in made_up
    ) == dict.fromkeys(journey.inputs.keys() - {NEVER_HERE}, 1)


# -- floods


def test_a_flood_of_results_of_one_fragment(journey: Journey) -> None:
    sidecar = begin(journey, 2, SIDECAR_LINEAGE="off")
    with RawStep(journey) as step:
        fragments = step.fragments()
        own, files = next(fragments)
        before = sidecar.peak_memory()
        path = step.write("result", b"x")
        for start in range(0, FLOOD, 100):
            step.send(
                *(step.result_of(own, path, f"{number}") for number in range(start, start + 100))
            )
        journey.wait_for_outputs(1, sidecar)
        sidecar.wait_until(
            lambda: journey.queues.count(journey.step.output_queue) >= FLOOD,
            seconds=60 + FLOOD / 20,
            what="the flood to be published",
        )
        grown = sidecar.peak_memory() - before
        step.send({"fragment_id": own})
        for other, files in fragments:
            step.answer(other, files)
        step.send({"status": "complete"})
        journey.end(sidecar)
    assert grown < MOST_MEMORY // 2 + FLOOD * EACH_RESULT, f"{grown / FLOOD:.0f} bytes for each"
    assert journey.queues.count(journey.step.output_queue) == FLOOD + 1
    assert "raceback" not in sidecar.log_text()
    assert journey.leftovers() == []


@contextlib.contextmanager
def flooding(step: RawStep, message: object) -> Iterator[None]:
    """Send one message again and again from a connection of its own, as fast as it is taken."""
    frames = encode_frame(json.dumps(message).encode()) * 1000
    connection = step.connect_outputs()
    over = threading.Event()

    def send() -> None:
        while not over.is_set():
            connection.sendall(frames)
        connection.close()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_floods_of_frames_that_mean_nothing_starve_nobody(journey: Journey) -> None:
    sidecar = begin(journey, 30)
    with RawStep(journey) as step:
        with (
            flooding(step, {"fragment_id": NEVER_HERE}),
            flooding(step, {"gathers": {"fragments": 1}}),
        ):
            for own, files in itertools.islice(step.fragments(), 30):
                step.answer(own, files)
            journey.wait_for_outputs(30, sidecar)
        assert step.answer_rest() == 0
        end_well(journey, sidecar)
    assert warnings_of(sidecar) == []
    check_mirrored(journey.outcome(), journey.contents, journey.store)


def test_a_flood_of_breaches_costs_attempts_and_no_fragment(journey: Journey) -> None:
    sidecar = begin(journey, 3, SIDECAR_ATTEMPTS="1000")
    with RawStep(journey) as step:
        own, files = next(step.fragments())
        for _ in range(300):
            with step.connect_outputs() as connection:
                connection.sendall(announced(9, b"not JSON!"))
        wait_for_warnings(sidecar, "breach on an output connection; it is closed", 300)
        # Its hand-out is void, and it comes again.
        step.answer(own, files)
        assert step.answer_rest() == 3
        end_well(journey, sidecar)
    breaches = warnings_of(sidecar, "breach on an output connection; it is closed")
    assert [each["voided"] for each in breaches] == [1] + [0] * 299
    check_mirrored(journey.outcome(), journey.contents, journey.store)


def wait_for_warnings(sidecar: Process, message: str, count: int) -> None:
    """Wait until the sidecar has said this so often."""
    sidecar.wait_until(
        lambda: len(warnings_of(sidecar, message)) >= count,
        seconds=SOON,
        what=f"{count} x {message}",
    )


# -- hoards


def test_a_frame_that_would_be_many_times_its_size_as_a_tree_is_not_made_one(
    journey: Journey,
) -> None:
    """16 MiB of empty lists are 350 MiB of Python's."""
    lists = b"[" + b",".join([b"[]"] * 5_000_000) + b"]"
    sidecar = begin(journey, 3, SIDECAR_ATTEMPTS="1000")
    with RawStep(journey) as step:
        own, files = next(step.fragments())
        for key in (b"fragment_id", b"status", b"gathers", b"metadata"):
            with step.connect_outputs() as connection:
                frame = b'{"' + key + b'":' + lists + b"}"
                connection.sendall(announced(len(frame), frame))
        with step.connect_outputs() as connection:
            frame = b'{"files":[1],"metadata":{"predecessors":' + lists + b"}}"
            connection.sendall(announced(len(frame), frame))
        wait_for_warnings(sidecar, "breach on an output connection; it is closed", 5)
        step.answer(own, files)
        assert step.answer_rest() == 3
        end_well(journey, sidecar, MOST_MEMORY + 3 * len(lists))
    check_mirrored(journey.outcome(), journey.contents, journey.store)


def test_frames_that_never_end_are_held_up_to_a_bound(journey: Journey) -> None:
    """Thirty connections announce 16 MiB each, and send all but the last byte; the others' frames are read as ever."""
    limit = 16 * 1024 * 1024
    sidecar = begin(journey, 20, SIDECAR_ATTEMPTS="1000")
    with RawStep(journey) as step:
        fragments = step.fragments()
        for number, (own, files) in enumerate(fragments):
            if number == 5:
                break
            step.answer(own, files)
        hoards = [step.connect_outputs() for _ in range(30)]
        for hoard in hoards:
            hoard.sendall(announced(limit, b" " * (limit - 1)))
        wait_for_warnings(sidecar, "breach on an output connection; it is closed", 25)
        step.answer(own, files)
        step.answer_rest()
        for hoard in hoards:
            hoard.close()
        end_well(journey, sidecar, MOST_MEMORY + 6 * limit)
    # 25 or 26 at once for what is too much, and each of the rest for its close in the middle of a frame.
    breaches = warnings_of(sidecar, "breach on an output connection; it is closed")
    reasons = Counter(each["breach"] for each in breaches)
    too_much = (
        f"unfinished frames of more than {4 * limit:,} bytes were held, and its own was the longest"
    )
    assert set(reasons) <= {too_much, "it was closed in the middle of a frame"}
    assert reasons[too_much] >= 25
    check_mirrored(journey.outcome(), journey.contents, journey.store)


def test_long_descriptions_are_on_their_way_up_to_a_bound(journey: Journey) -> None:
    """Forty results of one small file and 15 MiB of metadata each."""
    sidecar = begin(journey, 1)
    with RawStep(journey) as step:
        fragments = step.fragments()
        own, files = next(fragments)
        for number in range(40):
            path = step.write(f"{number}", b"x")
            step.send(step.result_of(own, path, f"{number}", custom="x" * (15 << 20)))
        step.answer(own, files)
        assert step.answer_rest() == 0
        end_well(journey, sidecar, MOST_MEMORY + (180 << 20))
    assert len(journey.outcome(once=False).outputs) == 41


# -- crowds


@pytest.mark.parametrize(("allowed", "most"), [(1024, 128), (20_000, 2500)])
def test_five_thousand_connections(journey: Journey, allowed: int, most: int) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 12_000:
        pytest.skip("this process may not open so many connections itself")
    limited = ["sh", "-c", f'ulimit -n {allowed} && exec "$@"', "sh", *SIDECAR]
    seed_good(journey, 50)
    journey.queue_inputs()
    sidecar = journey.start_sidecar(command=limited)
    journey.wait_for_sockets()
    with RawStep(journey) as step, contextlib.ExitStack() as stack:
        crowd = []
        for path in (journey.step.input_socket, journey.step.output_socket) * 2500:
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.setblocking(False)
            if connect_patiently(connection, path, sidecar):
                crowd.append(connection)
        # Those of the crowd that were accepted may be handed fragments too, and are gone by then.
        wait_for_warnings(sidecar, TOO_MANY, 2)
        for connection in crowd:
            connection.close()
        assert len(crowd) >= 2 * most
        step.answer_rest()
        end_well(journey, sidecar, 2 * MOST_MEMORY)
    told = warnings_of(sidecar, TOO_MANY)
    assert {each["open"] for each in told} == {most}
    assert len(told) < 10
    check_mirrored(journey.outcome(), journey.contents, journey.store)


def connect_patiently(connection: socket.socket, path: Path, sidecar: Process) -> bool:
    """Connect, as soon as the kernel's queue of those to be accepted has room; it has none any more once the sidecar has said so."""
    while True:
        try:
            connection.connect(str(path))
        except BlockingIOError:
            if any(each["path"] == str(path) for each in warnings_of(sidecar, TOO_MANY)):
                return False
            time.sleep(0.01)
        else:
            return True


def test_a_connection_that_does_not_read_holds_up_nobody(journey: Journey) -> None:
    """Its fragment is longer than the socket's buffer; when it leaves, another gets that one, and no death is counted."""
    long = journey.seed({"long": b"gnol"}, custom={"filler": "x" * (4 << 20)})
    sidecar = begin(journey, 0)
    with RawStep(journey) as deaf:
        sidecar.wait_until(
            lambda: deaf.inputs.recv(1 << 10, socket.MSG_PEEK), seconds=SOON, what="the first frame"
        )
        for number in range(40):
            journey.publish(journey.seed({"good": content(number, 100)}).description())
        with RawStep(journey) as step:
            fragments = step.fragments()
            for own, files in itertools.islice(fragments, 40):
                assert own != long.fragment_id
                step.answer(own, files)
            journey.wait_for_outputs(40, sidecar)
            deaf.inputs.close()
            own, files = next(fragments)
            assert own == long.fragment_id
            step.answer(own, files)
            deaf.send({"status": "complete"})
            assert step.answer_rest() == 0
            end_well(journey, sidecar, MOST_MEMORY + (64 << 20))
    outcome = journey.outcome()
    check_mirrored(outcome, journey.contents, journey.store)
    assert warnings_of(sidecar) == []


def test_whoever_speaks_on_an_input_connection_loses_that_and_no_fragment(journey: Journey) -> None:
    sidecar = begin(journey, 20)
    with RawStep(journey) as step:
        fragments = step.fragments()
        own, files = next(fragments)
        for sent in (b"\0", b"garbage" * 1000, announced(2, b"{}"), announced(0xFFFFFFFF)):
            with step.connect(journey.step.input_socket) as talker:
                talker.sendall(sent)
                assert reads_to_the_end(talker), "it is closed"
        step.answer(own, files)
        step.answer_rest()
        end_well(journey, sidecar)
    breach = "breach: something was sent on an input connection; closing it"
    assert len(warnings_of(sidecar, breach)) == 4
    check_mirrored(journey.outcome(), journey.contents, journey.store)


def reads_to_the_end(connection: socket.socket) -> bool:
    """Read until the other end closes."""
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(1 << 16):
            pass
    return True


# -- what is the sidecar's


def test_sockets_that_were_taken_away_are_made_again(journey: Journey) -> None:
    sidecar = begin(journey, 20)
    with RawStep(journey) as step:
        own, files = next(step.fragments())
        for path in (journey.step.input_socket, journey.step.output_socket):
            path.unlink()
        step.answer(own, files)
        journey.wait_for_outputs(1, sidecar)
        for path in (journey.step.input_socket, journey.step.output_socket):
            sidecar.wait_until(path.exists, seconds=SOON, what=f"{path} is there again")
        with RawStep(journey) as newcomer:
            # Who came by the old socket is served as before.
            own, files = next(newcomer.fragments())
            newcomer.answer(own, files)
            newcomer.inputs.close()
            newcomer.send({"status": "complete"})
            step.answer_rest()
            end_well(journey, sidecar)
    told = "the socket was taken away; listening at its path again"
    assert {each["path"] for each in warnings_of(sidecar, told)} == {
        str(journey.step.input_socket),
        str(journey.step.output_socket),
    }
    check_mirrored(journey.outcome(), journey.contents, journey.store)


def test_a_directory_of_ours_that_was_removed_ends_the_sidecar_and_the_next_does_the_rest(
    journey: Journey,
) -> None:
    sidecar = begin(journey, 60, MQ_PREFETCH_COUNT="4")
    with RawStep(journey) as step:
        fragments = step.fragments()
        own, files = next(fragments)
        shutil.rmtree(journey.step.volume / ".iterum-sidecar")
        with contextlib.suppress(OSError, AssertionError):
            step.answer(own, files)
            for own, files in fragments:
                step.answer(own, files)
        ended = sidecar.wait(SOON)
    assert ended.code == 11, sidecar.last_lines()
    assert "raceback" not in sidecar.log_text()
    assert ".iterum-sidecar was removed" in sidecar.log_text().splitlines()[-2]
    second = journey.start_sidecar()
    journey.wait_for_sockets()
    with RawStep(journey) as step:
        step.answer_rest()
        end_well(journey, second)
    outcome = journey.outcome(once=False)
    check_mirrored(outcome, journey.contents, journey.store)
    assert {each.predecessors[0] for each in outcome.outputs} == set(journey.inputs)
    assert outcome.dead_letters == []
