"""What a transformation may name as a result, and do to its files meanwhile: nothing but regular files of the volume ever leaves it.

Links, FIFOs, directories and paths with `..` are in `tests/wire/test_refusals.py`; here is the rest, and what changes under our hands.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import pytest

from testbed.contents import get_object
from tests.faults.raw_step import (
    MOST_MEMORY,
    SOON,
    RawStep,
    canary,
    check_sound,
    seed_good,
    warnings_of,
)
from tests.wire.checks import check_mirrored, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.wire.journey import Journey

REFUSED = "a result is refused; its fragments become dead letters"
TIB = 1 << 40
NULL, ZERO, CONSOLE = (1, 3), (1, 5), (5, 1)


@pytest.fixture(autouse=True)
def beside(volume: Path) -> Iterator[Path]:
    """A tree beside the volume of which nothing is touched."""
    with canary(volume) as directory:
        yield directory


def device(numbers: tuple[int, int]) -> Callable[[RawStep, Path], str]:
    """Return a function that makes a character device of these numbers."""

    def make(step: RawStep, beside: Path) -> str:
        path = step.volume / "output" / f"device-{numbers[0]}-{numbers[1]}"
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(*numbers))
        return str(path)

    return make


def listening(step: RawStep, beside: Path) -> str:
    path = step.volume / "output" / "listening.sock"
    with closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(str(path))
    return str(path)


def input_of_another(step: RawStep, beside: Path) -> str:
    """The file of a fragment that is on the volume and somewhere else in work."""
    fragments = step.volume / ".iterum-sidecar" / "fragments"
    other = next(each for each in fragments.iterdir() if each.name != step.last_workspace)
    return str(other / "good")


def sparse(step: RawStep, beside: Path) -> str:
    path = step.write("sparse", b"")
    os.truncate(path, TIB)
    return str(path)


def below_a_link(step: RawStep, beside: Path) -> str:
    (step.volume / "output" / "deep").symlink_to(beside / "deep")
    return str(step.volume / "output" / "deep" / "er" / "secret")


#: Each way to name what is no result, and what the refusal says of it.
PATHS: dict[str, tuple[Callable[[RawStep, Path], str], str]] = {
    "null": (device(NULL), "is not a regular file"),
    "zero": (device(ZERO), "is not a regular file"),
    "console": (device(CONSOLE), "is not a regular file"),
    "a socket": (listening, "is not a regular file"),
    "our input socket": (lambda step, _: f"{step.volume}/in.sock", "is not a regular file"),
    "our state": (
        lambda step, _: f"{step.volume}/.iterum-sidecar/state",
        "belongs to the sidecar or to another fragment",
    ),
    "our directory": (
        lambda step, _: f"{step.volume}/.iterum-sidecar",
        "belongs to the sidecar or to another fragment",
    ),
    "another fragment's input": (
        input_of_another,
        "belongs to the sidecar or to another fragment",
    ),
    "its input's directory": (
        lambda step, _: f"{step.volume}/.iterum-sidecar/fragments/{step.last_workspace}",
        "belongs to the sidecar or to another fragment",
    ),
    "a terabyte of holes": (sparse, "most of them holes"),
    "below a link": (below_a_link, "cannot be opened: Not a directory"),
    "NUL": (lambda step, _: f"{step.volume}/output/a\0b", "leads out of the volume"),
    "a megabyte": (lambda step, _: f"{step.volume}/{'x' * (1 << 20)}", "is longer than"),
    "many ways to one file": (
        lambda step, _: f"{step.volume}/{'./' * 100_000}{step.write('plain', b'x').name}",
        "is longer than",
    ),
    "nothing": (lambda step, _: "", "is outside the volume"),
    "the volume": (lambda step, _: str(step.volume), "leads out of the volume"),
    "a longer name": (lambda step, beside: f"{step.volume}-beside/secret", "is outside the volume"),
}  # fmt: skip

#: Each way to name a result by what is no name.
NAMES: dict[str, str] = {
    "a megabyte": "x" * (1 << 20),
    "a NUL": "a\0b",
    "upwards": "../../up",
    "absolute": "/etc/passwd",
    "an object key too long": "x/" * 500 + "x",
}


def run_bad(
    journey: Journey, ways: list[str], misbehave: Callable[[RawStep, str, str], dict[str, object]]
) -> dict[str, str]:
    """Let a step send one bad result for each way, between good ones; returns the reason of each dead letter by the way."""
    seed_good(journey, 2 * len(ways) + 2)
    journey.queue_inputs()
    sidecar = journey.start_sidecar()
    journey.wait_for_sockets()
    way_of: dict[str, str] = {}
    left = list(ways)
    with RawStep(journey) as step:
        for number, (own, files) in enumerate(step.fragments()):
            if number % 2 and left:
                way_of[own] = way = left.pop(0)
                step.send(misbehave(step, own, way), {"fragment_id": own})
            else:
                step.answer(own, files)
        step.send({"status": "complete"})
        ended = journey.end(sidecar)
    check_sound(journey, sidecar, ended, MOST_MEMORY)
    refusals = warnings_of(sidecar, REFUSED)
    assert [each["predecessors"] for each in refusals] == [[own] for own in way_of]
    outcome = journey.outcome(refused=len(ways) + 1)
    check_mirrored(outcome, journey.contents, journey.store)
    assert len(outcome.outputs) == len(journey.inputs) - len(ways)
    assert set(outcome.dead_ids) == set(way_of)
    return {
        way_of[own]: reason_of(letter)
        for own, letter in zip(outcome.dead_ids, outcome.dead_letters, strict=True)
    }


def test_paths_that_are_no_results(journey: Journey, beside: Path) -> None:
    ways = [way for way in PATHS if os.getuid() == 0 or way not in {"null", "zero", "console"}]

    def misbehave(step: RawStep, own: str, way: str) -> dict[str, object]:
        return step.result_of(own, PATHS[way][0](step, beside))

    reasons = run_bad(journey, ways, misbehave)
    for way, reason in reasons.items():
        assert PATHS[way][1] in reason, (way, reason)
        assert len(reason) < 600, way


def test_names_that_are_none(journey: Journey) -> None:
    def misbehave(step: RawStep, own: str, way: str) -> dict[str, object]:
        return step.result_of(own, step.write("result", b"x"), NAMES[way])

    reasons = run_bad(journey, list(NAMES), misbehave)
    for way, reason in reasons.items():
        assert reason.startswith("bad result: "), way
        assert len(reason) < 600, way


def test_half_a_surrogate_is_no_text_and_so_no_message(journey: Journey) -> None:
    """Python writes it as an escape, and no other reader of JSON takes it. Nobody knows what the message was, so it is a breach."""
    seed_good(journey, 8)
    journey.queue_inputs()
    sidecar = journey.start_sidecar()
    journey.wait_for_sockets()
    breaches = 0
    with RawStep(journey) as step:
        for own, files in step.fragments():
            if breaches < 2:
                breaches += 1
                half = ("\ud800", "\udfff")[breaches - 1]
                path = (
                    f"{step.volume}/output/{half}" if breaches == 1 else step.write("result", b"x")
                )
                step.send(step.result_of(own, path, "good" if breaches == 1 else half))
                assert step.outputs.recv(1) == b"", "the connection is closed"
                step.outputs = step.connect_outputs()
            step.answer(own, files)
        step.send({"status": "complete"})
        ended = journey.end(sidecar)
    check_sound(journey, sidecar, ended)
    told = warnings_of(sidecar, "breach on an output connection; it is closed")
    assert len(told) == 2
    assert all("not a message: JSON is malformed" in each["breach"] for each in told), told
    outcome = journey.outcome(refused=1)
    check_mirrored(outcome, journey.contents, journey.store)
    assert outcome.dead_letters == []


# -- what changes while we look at it


def swap(volume: Path, beside: Path, over: threading.Event) -> None:
    """Put one thing after the other in the place of a result, each by one rename, until it is over."""
    output = volume / "output"
    place, other = output / "swapped", output / "other"
    deep = output / "deep"
    makers: tuple[Callable[[], Any], ...] = (
        lambda: other.symlink_to(beside / "secret"),
        lambda: other.write_bytes(b"fine"),
        lambda: os.mkfifo(other),
        lambda: other.symlink_to("/dev/zero"),
        lambda: os.link(output / "steady", other),
        lambda: os.mknod(other, stat.S_IFCHR, os.makedev(*ZERO)),
    )
    while not over.is_set():
        for make in makers:
            with suppress(OSError):
                make()
                other.rename(place)
            # And the directory above another: a link to one outside for a moment.
            with suppress(OSError):
                deep.rename(output / "moved")
                deep.symlink_to(beside / "deep")
                deep.unlink()
                (output / "moved").rename(deep)


def test_files_that_are_swapped_for_others_while_we_look(journey: Journey, beside: Path) -> None:
    count = 300
    seed_good(journey, count)
    journey.queue_inputs()
    sidecar = journey.start_sidecar()
    journey.wait_for_sockets()
    over = threading.Event()
    with RawStep(journey) as step:
        step.write("steady", b"fine")
        (step.volume / "output" / "deep" / "er").mkdir(parents=True)
        inner = os.open(step.volume / "output" / "deep" / "er", os.O_RDONLY)
        swapping = threading.Thread(target=swap, args=(step.volume, beside, over))
        swapping.start()
        try:
            for number, (own, _) in enumerate(step.fragments()):
                # Not by its path: that may lead out for a moment.
                file = os.open("secret", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, dir_fd=inner)
                os.write(file, b"fine")
                os.close(file)
                path = ("swapped", "deep/er/secret")[number % 2]
                step.send(step.result_of(own, step.volume / "output" / path), {"fragment_id": own})
            step.send({"status": "complete"})
        finally:
            over.set()
            swapping.join()
            os.close(inner)
        ended = journey.end(sidecar)
    check_sound(journey, sidecar, ended)
    outcome = journey.outcome(refused=10)
    for output in outcome.outputs:
        (taken,) = output.files
        assert get_object(journey.store, taken.bucket, taken.path) == b"fine"
    assert len(outcome.outputs) + len(outcome.dead_letters) == count
    assert outcome.dead_letters, "some were seen in between"


def test_a_file_that_grows_while_it_is_uploaded_is_no_result(journey: Journey) -> None:
    bad = journey.seed({"bad": b"x"}).fragment_id
    seed_good(journey, 10)
    journey.queue_inputs()
    sidecar = journey.start_sidecar()
    journey.wait_for_sockets()
    with RawStep(journey) as step:
        for own, files in step.fragments():
            if own != bad:
                step.answer(own, files)
                continue
            path = step.write("grows", b"x" * (64 << 20))
            with path.open("ab", buffering=0) as file:
                step.send(step.result_of(own, path, "bad"))
                deadline = time.monotonic() + SOON
                while not is_uploaded(journey, "bad"):
                    file.write(b"more")
                    assert time.monotonic() < deadline, sidecar.last_lines()
            step.send({"fragment_id": own})
        step.send({"status": "complete"})
        ended = journey.end(sidecar)
    check_sound(journey, sidecar, ended)
    outcome = journey.outcome(refused=1)
    check_mirrored(outcome, journey.contents, journey.store)
    assert outcome.dead_ids == [bad]
    assert "was written to after its frame had been sent" in reason_of(outcome.dead_letters[0])


def is_uploaded(journey: Journey, name: str) -> bool:
    """Tell whether the store has begun an object of this name at least."""
    root = journey.store.directory
    assert root is not None
    return any((root / journey.step.output_bucket).rglob(name))


def test_a_second_name_of_an_input_may_be_a_result_and_the_input_stays(journey: Journey) -> None:
    """Nothing outside can be linked to by who shares only the volume with us: links do not cross mounts."""
    seed_good(journey, 6)
    journey.queue_inputs()
    sidecar = journey.start_sidecar(SIDECAR_HANDOUT_DEPTH="2")
    journey.wait_for_sockets()
    with RawStep(journey) as step:
        while "status" not in (message := step.next_message()):
            own = message["metadata"]["fragment_id"]
            (file,) = message["files"]
            path = step.volume / "output" / own
            os.link(file["path"], path)
            step.send(step.result_of(own, path), step.result_of(own, path, "again"))
            journey.wait_for_outputs(1, sidecar)
            assert os.path.exists(file["path"])
            step.send({"fragment_id": own})
        step.send({"status": "complete"})
        ended = journey.end(sidecar)
    check_sound(journey, sidecar, ended)
    outcome = journey.outcome(once=False)
    assert len(outcome.outputs) == 12
    for output in outcome.outputs:
        (file,) = output.files
        given = journey.contents[output.predecessors[0]]["good"]
        assert get_object(journey.store, file.bucket, file.path) == given
