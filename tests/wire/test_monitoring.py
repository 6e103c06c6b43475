"""What a real sidecar tells about itself: its marker on the volume, its probes, and its numbers over HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from testbed.contents import content
from testbed.ports import accepts_connections, free_ports
from testbed.process import wait_until

if TYPE_CHECKING:
    from testbed.process import Process

    from .journey import Journey

SECONDS = 20
SIGTERM_EXIT = 143
CONFIGURATION_EXIT = 10
SERVICE_EXIT = 12


def state(journey: Journey) -> list[str]:
    """The lines of the marker, none before there is one."""
    try:
        return journey.state_file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


def wait_for(journey: Journey, sidecar: Process, *lines: str) -> None:
    sidecar.wait_until(
        lambda: state(journey) == list(lines), seconds=SECONDS, what=f"the state {lines}"
    )


def probes(journey: Journey) -> dict[str, int]:
    """The exit codes of the three probes, as a kubelet would run them in the sidecar's container."""
    environment = {**os.environ, "DATA_VOLUME_PATH": str(journey.step.volume)}
    return {
        question: subprocess.run(
            [sys.executable, "-m", "iterum_sidecar", "probe", question],
            env=environment,
            stdout=subprocess.DEVNULL,
            check=False,
            timeout=SECONDS,
        ).returncode
        for question in ("live", "startup", "ready")
    }


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metric(port: int, name: str) -> float:
    code, said = get(port, "/metrics")
    assert code == 200
    (value,) = re.findall(rf"^iterum_sidecar_{re.escape(name)} (\S+)$", said, re.MULTILINE)
    return float(value)


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


def test_after_a_hundred_fragments_the_metrics_say_a_hundred(journey: Journey, port: int) -> None:
    for number in range(100):
        journey.seed({"a": content(number, 1000)})
    journey.queue_inputs()
    journey.publish({"no": "fragment"})
    sidecar = journey.start_sidecar(managed=False, SIDECAR_HTTP_ADDRESS=f"127.0.0.1:{port}")
    step = journey.start_step("mirror")
    sidecar.wait_until(
        lambda: metric(port, "fragments_total") == 100, seconds=SECONDS, what="100 fragments"
    )
    for name, expected in {
        "outputs_total": 100,
        "downloaded_bytes_total": 100_000,
        "uploaded_bytes_total": 100_000,
        'dead_letters_total{kind="unreadable"}': 1,
        "fragment_duration_seconds_count": 100,
        'stage_duration_seconds_count{stage="transformation"}': 100,
        'stage_duration_seconds_count{stage="upload"}': 100,
        'in_flight_fragments{stage="transformation"}': 0,
        "transformation_connections": 1,
        "ready": 1,
    }.items():
        assert metric(port, name) == expected, name
    told = json.loads(get(port, "/status")[1])
    assert (told["state"], told["fragments_in_flight"]) == ("ready", 0)
    assert told["step"] == journey.step.name
    sidecar.signal(signal.SIGTERM)
    journey.end(sidecar, step, code=SIGTERM_EXIT)
    assert not accepts_connections(port)


def test_the_state_and_the_probes_through_start_work_drain_and_end(
    journey: Journey, port: int
) -> None:
    journey.seed({"a": b"1"})
    journey.queue_inputs()
    gate = journey.directory / "gate"
    assert set(probes(journey).values()) == {1}
    sidecar = journey.start_sidecar(managed=False, SIDECAR_HTTP_ADDRESS=f"127.0.0.1:{port}")
    wait_for(journey, sidecar, "waiting", "the transformation")
    assert probes(journey) == {"live": 0, "startup": 0, "ready": 1}
    assert get(port, "/live")[0] == get(port, "/startup")[0] == 200
    assert get(port, "/ready") == (503, "waiting: the transformation\n")
    step = journey.start_step("gated", gate)
    wait_for(journey, sidecar, "ready")
    assert probes(journey) == {"live": 0, "startup": 0, "ready": 0}
    assert get(port, "/ready") == (200, "ready\n")
    sidecar.wait_until(
        gate.with_name("gate.reached").exists, seconds=SECONDS, what="a fragment in work"
    )
    (fragment,) = json.loads(get(port, "/status")[1])["fragments"]
    assert (fragment["stage"], fragment["files"]) == ("transformation", 1)
    sidecar.signal(signal.SIGTERM)
    wait_for(journey, sidecar, "draining")
    assert probes(journey) == {"live": 0, "startup": 0, "ready": 1}
    assert get(port, "/ready") == (503, "draining\n")
    gate.touch()
    journey.end(sidecar, step, code=SIGTERM_EXIT)
    assert state(journey) == ["stopped", "told to stop: SIGTERM"]
    assert probes(journey) == {"live": 0, "startup": 1, "ready": 1}
    assert stat.S_IMODE(journey.state_file.stat().st_mode) == 0o644


def test_a_step_that_is_done_says_so_and_the_next_life_begins_anew(journey: Journey) -> None:
    journey.queue_inputs()
    journey.publish({"no": "fragment"})
    sidecar = journey.start_sidecar()
    journey.end(sidecar, journey.start_step("mirror"))
    assert state(journey) == [
        "done",
        f"fragments were dead-lettered: 1, in {journey.step.dead_letter_queue}",
    ]
    second = journey.start_sidecar(managed=False)
    wait_for(journey, second, "waiting", "the transformation")
    second.signal(signal.SIGTERM)
    assert second.wait(SECONDS).code == SIGTERM_EXIT


def test_what_is_away_is_named_and_an_end_has_the_reason_that_the_log_has(
    journey: Journey, port: int
) -> None:
    sidecar = journey.start_sidecar(
        MQ_BROKER_URL=f"amqp://guest:guest@127.0.0.1:{port}", SIDECAR_SERVICE_TIMEOUT="3"
    )
    wait_for(journey, sidecar, "waiting", "the broker, the transformation")
    assert sidecar.wait(SECONDS).code == SERVICE_EXIT
    word, reason = state(journey)
    assert word == "failed"
    assert reason.startswith("gave up on the broker after 3 s (SIDECAR_SERVICE_TIMEOUT)")
    assert reason in sidecar.log_text()


def test_a_port_in_use_ends_it_at_once_with_one_line(journey: Journey) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
        sidecar = journey.start_sidecar(SIDECAR_HTTP_ADDRESS=address)
        assert sidecar.wait(SECONDS).code == CONFIGURATION_EXIT
    lines = [json.loads(line) for line in sidecar.log_text().splitlines()]
    (error,) = [line["message"] for line in lines if line["severity"] == "ERROR"]
    assert error.startswith(f"SIDECAR_HTTP_ADDRESS {address} cannot be listened on: Address")
    assert state(journey) == ["failed", error]


def test_a_sidecar_that_is_killed_leaves_a_state_that_grows_old(journey: Journey) -> None:
    sidecar = journey.start_sidecar(managed=False)
    wait_for(journey, sidecar, "waiting", "the transformation")
    beat = journey.state_file.stat().st_mtime
    wait_until(
        lambda: journey.state_file.stat().st_mtime > beat, seconds=SECONDS, what="a heart-beat"
    )
    sidecar.signal(signal.SIGKILL)
    sidecar.wait(SECONDS)
    assert state(journey) == ["waiting", "the transformation"]
    old = journey.state_file.stat().st_mtime - 40
    os.utime(journey.state_file, (old, old))
    assert set(probes(journey).values()) == {1}
