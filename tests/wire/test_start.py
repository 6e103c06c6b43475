"""How a sidecar starts: its environment, its help, config files, and queues that are there or not."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from testbed.contents import content, get_object, make_bucket, put_object

from .checks import check_mirrored
from .journey import ROOT, SIDECAR, journey_of

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.object_stores import ObjectStore
    from testbed.rabbitmq import RabbitMQ
    from testbed.tls import Tls

    from .journey import Journey

BAD_CONFIGURATION_EXIT = 10
END_SECONDS = 30
REQUIRED = (
    "DATA_VOLUME_PATH",
    "TRANSFORMATION_STEP_INPUT",
    "TRANSFORMATION_STEP_OUTPUT",
    "ITERUM_NAME",
    "PIPELINE_HASH",
    "ITERUM_CONFIG_PATH",
    "MQ_BROKER_URL",
    "MQ_INPUT_QUEUE",
    "MQ_OUTPUT_QUEUE",
    "MINIO_URL",
    "MINIO_ACCESS_KEY",
    "MINIO_SECRET_KEY",
    "MINIO_OUTPUT_BUCKET",
)


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a sidecar to its end with no more of an environment than it is given."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "LANG": "C.UTF-8",
    } | variables
    return subprocess.run(
        [*SIDECAR, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_missing_variables_are_all_named_at_once() -> None:
    ended = run()
    assert ended.returncode == BAD_CONFIGURATION_EXIT
    said = ended.stdout + ended.stderr
    assert [name for name in REQUIRED if name not in said] == []
    assert "Traceback" not in said


def test_what_is_wrong_is_told_in_the_form_that_is_asked_for() -> None:
    ended = run(SIDECAR_LOG_FORMAT="text")
    assert ended.returncode == BAD_CONFIGURATION_EXIT
    assert " error   MQ_INPUT_QUEUE is missing" in ended.stderr


def test_invalid_variables_are_named_and_no_secret_is_printed(journey: Journey) -> None:
    environment = journey.step.sidecar_environment(journey.broker, journey.store)
    ended = run(
        **environment
        | {
            "MQ_BROKER_URL": "http://somebody:hunter2@localhost",
            "MQ_PREFETCH_COUNT": "many",
            "MINIO_SECRET_KEY": "swordfish",
            "MINIO_USE_SSL": "perhaps",
            "TRANSFORMATION_STEP_INPUT": "a-socket",
            "ITERUM_CONFIG": "{",
        }
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == BAD_CONFIGURATION_EXIT
    for name in (
        "MQ_BROKER_URL",
        "MQ_PREFETCH_COUNT",
        "MINIO_USE_SSL",
        "TRANSFORMATION_STEP_INPUT",
        "ITERUM_CONFIG",
    ):
        assert name in said
    assert "hunter2" not in said
    assert "swordfish" not in said
    assert [*journey.step.volume.rglob("*")] == [journey.state_file.parent, journey.state_file]
    state = journey.state_file.read_text(encoding="utf-8")
    assert state.startswith("failed\nbad configuration: ")
    assert state.count("\n") == 2
    assert "MINIO_USE_SSL" in state
    assert "hunter2" not in state
    assert "swordfish" not in state


def test_a_misspelt_setting_is_told_with_the_nearest(journey: Journey) -> None:
    environment = journey.step.sidecar_environment(journey.broker, journey.store)
    ended = run(**environment, SIDECAR_DRAIN_SECOND="3")
    assert ended.returncode == BAD_CONFIGURATION_EXIT
    assert "SIDECAR_DRAIN_SECOND" in ended.stdout + ended.stderr
    assert "SIDECAR_DRAIN_SECONDS" in ended.stdout + ended.stderr


def test_a_socket_path_that_is_too_long_is_told(journey: Journey) -> None:
    environment = journey.step.sidecar_environment(journey.broker, journey.store)
    ended = run(**environment | {"TRANSFORMATION_STEP_INPUT": "x" * 100 + ".sock"})
    assert ended.returncode == BAD_CONFIGURATION_EXIT
    assert "107" in ended.stdout + ended.stderr


def test_help_lists_the_exit_codes() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "iterum_sidecar", "run", "--help"],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    for code in (0, 10, 16, 130, 143):
        assert re.search(rf"^ *{code}\b", ended.stdout, re.MULTILINE), code


def test_config_files_appear_whole_where_pyterum_looks(journey: Journey) -> None:
    bucket = f"{journey.step.pipeline_hash}-iterum-config"
    weights = content(1, 20_000_000)
    make_bucket(journey.store, bucket)
    put_object(journey.store, bucket, "iterum_config/weights.bin", weights)
    journey.config["config_files"] = {"weights": "weights.bin"}
    journey.seed({"a": b"1"})
    journey.queue_inputs()
    # The step looks from the beginning on, so that it would see half a file if there ever were one.
    step = journey.start_step_now("configured", "weights")
    journey.end(journey.start_sidecar(), step)
    (output,) = journey.outcome().outputs
    (file,) = output.files
    assert get_object(journey.store, file.bucket, file.path) == weights
    assert [path.name for path in journey.step.config_directory.iterdir()] == ["weights.bin"]


def test_a_config_file_that_comes_late_holds_nobody_up(journey: Journey) -> None:
    bucket = f"{journey.step.pipeline_hash}-iterum-config"
    journey.config["config_files"] = {"late": "late.txt", "never": "never.txt"}
    journey.manager.finished = False
    journey.seed({"a": b"1"})
    journey.queue_inputs()
    sidecar = journey.start_sidecar()
    step = journey.start_step("mirror")
    journey.wait_for_outputs(1, sidecar)
    make_bucket(journey.store, bucket)
    put_object(journey.store, bucket, "iterum_config/late.txt", b"better than never")
    there = journey.step.config_directory / "late.txt"
    sidecar.wait_until(there.exists, seconds=30, what="the late config file")
    assert there.read_bytes() == b"better than never"
    journey.manager.finished = True
    journey.end(sidecar, step)
    check_mirrored(journey.outcome(), journey.contents, journey.store)


@pytest.mark.parametrize("durable", [False, True])
def test_queues_that_exist_are_used_as_they_are(journey: Journey, *, durable: bool) -> None:
    step = journey.step
    journey.queues.declare(step.input_queue, step.output_queue, step.lineage_queue, durable=durable)
    fragment = journey.seed({"a": b"1"})
    journey.publish(fragment.description())
    sidecar = journey.start_sidecar()
    journey.end(sidecar, journey.start_step("mirror"))
    check_mirrored(journey.outcome(), journey.contents, journey.store)
    journey.queues.declare(step.input_queue, step.output_queue, step.lineage_queue, durable=durable)


def test_queues_that_do_not_exist_are_declared_as_peers_do(journey: Journey) -> None:
    journey.manager.finished = False
    sidecar = journey.start_sidecar()
    transformation = journey.start_step("mirror")
    sidecar.wait_until(
        lambda: journey.queues.consumers(journey.step.input_queue) > 0,
        seconds=20,
        what="a consumer",
    )
    # A peer's declaration is refused when the queue is another than it says.
    journey.seed({"a": b"1"})
    journey.queue_inputs()
    journey.manager.finished = True
    journey.end(sidecar, transformation)
    check_mirrored(journey.outcome(), journey.contents, journey.store)


def test_broker_and_store_over_tls(
    rabbitmq: RabbitMQ, rclone_tls: ObjectStore, tls: Tls, volume: Path, tmp_path: Path
) -> None:
    with journey_of(rabbitmq, rclone_tls, volume, tmp_path) as journey:
        journey.variables |= {
            "MQ_BROKER_URL": rabbitmq.tls_url,
            "SIDECAR_CA_FILE": str(tls.authority),
        }
        journey.seed({"a": content(1, 100_000)})
        check_mirrored(journey.run("mirror"), journey.contents, journey.store)


def test_stale_sockets_of_a_life_before_are_replaced(journey: Journey) -> None:
    for path in (journey.step.input_socket, journey.step.output_socket):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
    journey.seed({"a": b"1"})
    check_mirrored(journey.run("mirror"), journey.contents, journey.store)


def test_a_second_sidecar_leaves_the_volume_of_the_first_alone(journey: Journey) -> None:
    inputs = [journey.seed({f"{number}.bin": content(number, 1000)}) for number in range(8)]
    journey.queue_inputs()
    first = journey.start_sidecar()
    fragments = journey.step.volume / ".iterum-sidecar" / "fragments"
    first.wait_until(
        lambda: len(list(fragments.glob("*/*.bin"))) == len(inputs),
        seconds=END_SECONDS,
        what="the files of all",
    )
    second = journey.start_sidecar()
    assert second.wait(END_SECONDS).code == 11
    assert "another process listens at" in second.log_text()
    assert len(list(fragments.glob("*/*.bin"))) == len(inputs)
    journey.start_step("mirror")
    assert first.wait(END_SECONDS).code == 0
    check_mirrored(journey.outcome(), journey.contents, journey.store)


def test_the_step_may_come_first(journey: Journey) -> None:
    journey.seed({"a": b"1"})
    journey.queue_inputs()
    step = journey.start_step_now("mirror")
    # Five seconds of its own patience begin when it has found nobody.
    step.wait_until(
        lambda: "Couldn't reach host" in step.log_text(), seconds=10, what="its first try"
    )
    journey.end(journey.start_sidecar(), step)
    check_mirrored(journey.outcome(), journey.contents, journey.store)
