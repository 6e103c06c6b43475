from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from .local_run import APPEND, LocalRun, append, appended, contents_of, local_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Sends each file as a group, behind what the variable MOOD makes it do. (Its sockets' paths are in the variables.)
FRAGMENTER = """
import json, os, socket, struct, sys, time

def connect(variable):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.path.join(os.environ["DATA_VOLUME_PATH"], os.environ[variable]))
    return connection

def send(message):
    payload = json.dumps(message).encode()
    target.sendall(struct.pack("<I", len(payload)) + payload)

mood = os.environ.get("MOOD")
source, target = connect("FRAGMENTER_INPUT"), connect("FRAGMENTER_OUTPUT")
size, = struct.unpack("<I", source.recv(4, socket.MSG_WAITALL))
files = json.loads(source.recv(size, socket.MSG_WAITALL))["data_files"]
for number, file in enumerate(files):
    if number == 2 and mood == "dies":
        print("the catalogue has no\\nentry for", file, flush=True)
        target.sendall(b"\\x10")
        sys.exit(3)
    if number == 2 and mood == "strays":
        send({"files": ["../outside\\n" + file]})
    if number == 2 and mood == "hangs":
        print("it hangs", flush=True)
        time.sleep(1000)
    send({"files": [file]})
    if mood == "repeats":
        send({"files": [file]})
send({"status": "complete"})
"""

INPUT = contents_of(4)
RESULTS = appended(INPUT, ["-1"])


@pytest.fixture
def run(tmp_path: Path) -> Iterator[LocalRun]:
    with local_run(tmp_path / "run") as prepared:
        prepared.write_input(INPUT)
        prepared.write_step("append.py", APPEND)
        (prepared.folder / "fragmenter.py").write_text(FRAGMENTER)
        prepared.write_pipeline(
            append("-1"),
            fragmenter={"command": ["python", "fragmenter.py"], "output_channel": "c0"},
        )
        yield prepared


@pytest.mark.parametrize(
    ("mood", "told"),
    [
        ("dies", "ended with exit code 3 before it had said that it was done"),
        ("strays", r"group 3, files[0] of the fragmenter is ../outside\n002.txt/"),
    ],
)
def test_a_fragmenter_that_fails_is_told_once_and_nothing_is_lost_when_it_has_been_mended(
    run: LocalRun, mood: str, told: str
) -> None:
    ended = run.run(MOOD=mood).expect(14)
    assert ended.err.count("the fragmenter failed: ") == 1
    assert told in ended.err
    assert ("entry for 002.txt/" in ended.err) == (mood == "dies")
    assert not run.begun()

    run.run().expect(0)
    assert run.results() == RESULTS


def test_a_group_that_is_sent_twice_is_worked_on_twice_and_both_results_are_kept(
    run: LocalRun,
) -> None:
    run.run(MOOD="repeats").expect(0)
    assert sorted(run.results().values()) == sorted([*RESULTS.values()] * 2)
    # The same again has the same IDs, and nothing to do.
    before = run.begun()
    run.run(MOOD="repeats").expect(0)
    assert run.begun() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_fragmenter_that_hangs_ends_with_the_run(run: LocalRun, number: signal.Signals) -> None:
    process = run.start(MOOD="hangs")
    log = run.output / "logs" / "fragmenter.log"
    run.wait_until(lambda: log.exists() and "it hangs" in log.read_text(), "the fragmenter")
    if number is signal.SIGKILL:
        # It waits until nothing of the run is left.
        run.kill(process)
    else:
        run.signal(process, number)
        run.end(process).expect(130)

    run.run().expect(0)
    assert run.results() == RESULTS
