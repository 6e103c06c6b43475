"""`iterum-sidecar check` against real peers: it names what is wrong and its remedy, and nothing else, and shows no secret."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import httpx2
import pytest

from testbed.contents import list_keys, make_bucket, put_object
from testbed.ports import LOCAL, accepts_connections, free_ports
from testbed.rabbitmq import RabbitMQ, running_rabbitmq
from testbed.step import make_step

from .journey import ROOT, Journey, journey_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from testbed.object_stores import ObjectStore
    from testbed.tls import Tls

CHECK = [sys.executable, "-m", "iterum_sidecar", "check"]
CONFIGURATION, VOLUME, SERVICE, MANAGER = 10, 11, 12, 15
#: What no report may hold: the testbed's passwords and keys, and those that the tests below give wrongly.
SECRETS = re.compile(r"guest:guest|an-access-key|a-secret-key|hunter2|swordfish")


class Report(NamedTuple):
    """What a check told; `failed` has the findings that failed, by area and subject."""

    code: int
    text: str
    findings: list[dict[str, str]]

    @property
    def failed(self) -> dict[tuple[str, str], dict[str, str]]:
        return self.of("FAILED")

    def of(self, outcome: str) -> dict[tuple[str, str], dict[str, str]]:
        return {
            (each["area"], each["subject"]): each
            for each in self.findings
            if each["outcome"] == outcome
        }


def check(
    environment: dict[str, str], *arguments: str, before: Sequence[str] = (), **variables: str
) -> Report:
    """Check an environment twice, as text and as JSON, and see that neither shows a secret; `before` goes before the command."""
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}
    text, found = (
        subprocess.run(
            [*before, *CHECK, *arguments, *form],
            env=base | environment | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        for form in ([], ["--json"])
    )
    said = text.stdout + text.stderr + found.stdout + found.stderr
    assert not SECRETS.search(said), said
    assert "Traceback" not in said, said
    assert text.returncode == found.returncode, said
    whole = json.loads(found.stdout)
    assert whole["summary"]["exit_code"] == found.returncode
    assert (
        text.stdout.count("\nFAILED ") + text.stdout.startswith("FAILED ")
        == whole["summary"]["FAILED"]
    )
    return Report(found.returncode, text.stdout, whole["findings"])


def environment_of(journey: Journey) -> dict[str, str]:
    return journey.step.sidecar_environment(
        journey.broker, journey.store, manager_url=journey.manager.url, config=journey.config
    )


def everything_below(directory: Path) -> list[str]:
    return sorted(str(path) for path in directory.rglob("*"))


def test_a_healthy_environment_has_nothing_to_mend_and_stays_as_it_is(journey: Journey) -> None:
    report = check(environment_of(journey))
    assert (report.code, report.failed, report.of("warning")) == (0, {}, {})
    assert {area for area, _ in report.of("ok")} == {
        "variables",
        "volume",
        "broker",
        "store",
        "manager",
    }
    assert {area for area, _ in report.of("unknown")} == {"broker"}, "only --management-url tells"
    assert everything_below(journey.step.volume) == []
    assert list_keys(journey.store, journey.step.output_bucket) == []
    listed = journey.broker.ctl("list_queues", "name")
    assert journey.step.pipeline_hash not in listed, "a queue was declared"


def test_queues_are_told_as_they_are(journey: Journey) -> None:
    journey.seed({"a.txt": b"a"})
    journey.queue_inputs()
    found = check(environment_of(journey)).of("ok")
    assert found["broker", "input queue"]["detail"].endswith(": 1 messages ready, 0 consumers")
    assert found["broker", "output queue"]["detail"].endswith(": 0 messages ready, 0 consumers")
    assert "is not there" in found["broker", "dead-letter queue"]["detail"]
    assert "RabbitMQ" in found["broker", "version"]["detail"]


def test_a_wrong_password_of_the_broker(journey: Journey) -> None:
    url = journey.broker.url.replace("guest:guest", "guest:hunter2")
    report = check(environment_of(journey), MQ_BROKER_URL=url)
    assert report.code == SERVICE
    assert report.failed.keys() == {("broker", "login")}
    finding = report.failed["broker", "login"]
    assert "403" in finding["detail"]
    assert "mend user and password in MQ_BROKER_URL" in finding["remedy"]


def test_a_virtual_host_that_is_not_there(journey: Journey) -> None:
    report = check(environment_of(journey), MQ_BROKER_URL=f"{journey.broker.url}nowhere")
    assert report.code == SERVICE
    assert report.failed.keys() == {("broker", "virtual host")}
    assert "rabbitmqctl add_vhost 'nowhere'" in report.failed["broker", "virtual host"]["remedy"]


@pytest.mark.parametrize("server", ["rclone", "minio"])
@pytest.mark.parametrize("variable", ["MINIO_SECRET_KEY", "MINIO_ACCESS_KEY"])
def test_a_wrong_key_of_the_store(
    request: pytest.FixtureRequest,
    rabbitmq: RabbitMQ,
    volume: Path,
    tmp_path: Path,
    server: str,
    variable: str,
) -> None:
    with journey_of(rabbitmq, request.getfixturevalue(server), volume, tmp_path) as journey:
        report = check(environment_of(journey), **{variable: "swordfish"})
    assert report.code == SERVICE
    assert report.failed.keys() == {("store", "login")}
    assert variable in report.failed["store", "login"]["remedy"]


def test_a_volume_that_is_not_writable(journey: Journey) -> None:
    journey.step.volume.chmod(0o555)
    # Root may write anywhere, unless that is taken from it.
    taken = ("setpriv", "--inh-caps=-dac_override", "--bounding-set=-dac_override")
    report = check(environment_of(journey), before=taken if os.getuid() == 0 else ())
    assert report.code == VOLUME
    assert report.failed.keys() == {("volume", "writing")}
    finding = report.failed["volume", "writing"]
    assert "Permission denied" in finding["detail"]
    assert f"let user {os.getuid()} write to" in finding["remedy"]


@pytest.fixture(scope="module")
def managed(session_directory: Path) -> Iterator[tuple[RabbitMQ, str]]:
    """A broker with its management interface, and that one's URL."""
    (port,) = free_ports(1)
    configuration = f"management.tcp.ip = {LOCAL}\nmanagement.tcp.port = {port}\n"
    with running_rabbitmq(
        session_directory / "managed", configuration=configuration, plugins=["rabbitmq_management"]
    ) as broker:
        deadline = time.monotonic() + 20
        while not accepts_connections(port):
            assert time.monotonic() < deadline, "the management interface does not listen"
            time.sleep(0.1)
        yield broker, f"http://guest:guest@{LOCAL}:{port}"


def declare_quorum(queue: str, url: str, limit: int | None = None) -> None:
    """Declare a quorum queue over the management interface at `url`, with a limit or none."""
    arguments: dict[str, object] = {"x-queue-type": "quorum"}
    if limit is not None:
        arguments["x-delivery-limit"] = limit
    made = httpx2.put(
        f"{url}/api/queues/%2F/{queue}",
        json={"durable": True, "arguments": arguments},
        trust_env=False,
    )
    assert made.status_code == 201


def test_the_management_interface_tells_of_queues(
    managed: tuple[RabbitMQ, str], rclone: ObjectStore, volume: Path, tmp_path: Path
) -> None:
    broker, url = managed
    with journey_of(broker, rclone, volume, tmp_path) as journey:
        step = journey.step
        declare_quorum(step.input_queue, url, 5)
        journey.queues.declare(step.output_queue)
        report = check(environment_of(journey), "--management-url", url)
    assert (report.code, report.failed) == (0, {})
    assert report.of("unknown") == {}
    assert report.of("warning").keys() == {("broker", "input queue's type")}
    finding = report.of("warning")["broker", "input queue's type"]
    assert "quorum, durable, x-delivery-limit=5" in finding["detail"]
    assert "more than 5 times is dropped" in finding["detail"]
    assert "delete_queue" in finding["remedy"]
    assert "classic, transient" in report.of("ok")["broker", "output queue's type"]["detail"]
    assert report.of("ok")["broker", "transient queues"]["detail"] == "are permitted"


def test_a_quorum_queue_that_drops_what_comes_back_is_wrong_before_rabbitmq_4(
    managed: tuple[RabbitMQ, str], rclone: ObjectStore, volume: Path, tmp_path: Path
) -> None:
    """The broker is the one that is installed; `tests/faults/test_brokers_new.py` shows what it drops."""
    broker, url = managed
    assert broker.ctl("version").startswith("3.")
    with journey_of(broker, rclone, volume, tmp_path) as journey:
        step = journey.step
        declare_quorum(step.input_queue, url, -1)
        declare_quorum(step.output_queue, url)
        journey.queues.declare(step.lineage_queue)
        report = check(environment_of(journey), "--management-url", url)
        assert report.failed.keys() == {("broker", "input queue"), ("broker", "input queue's type")}
        assert all("delete_queue" in each["remedy"] for each in report.failed.values())
        # The remedy is one.
        broker.delete_queue(step.input_queue)
        sidecar = journey.start_sidecar(SIDECAR_QUEUE_TYPE="quorum")
        sidecar.wait_until(
            lambda: journey.queues.exists(step.input_queue), seconds=20, what="it declared it"
        )
        sidecar.close()
        mended = check(environment_of(journey), "--management-url", url)
    assert report.code == SERVICE
    assert mended.of("ok")["broker", "input queue's type"]["detail"].endswith(": quorum, durable")
    assert "is not there" in report.of("ok")["broker", "dead-letter queue"]["detail"]
    assert "is not there" in mended.of("ok")["broker", "dead-letter queue"]["detail"]


def test_a_wrong_password_of_the_management_interface(
    managed: tuple[RabbitMQ, str], rclone: ObjectStore, volume: Path, tmp_path: Path
) -> None:
    broker, url = managed
    wrong = url.replace("guest:guest", "guest:hunter2")
    with journey_of(broker, rclone, volume, tmp_path) as journey:
        report = check(environment_of(journey), "--management-url", wrong)
    assert report.failed.keys() == {("broker", "management")}
    assert "401" in report.failed["broker", "management"]["detail"]


def test_a_stopped_broker(managed: tuple[RabbitMQ, str], rclone: ObjectStore, volume: Path) -> None:
    broker, _ = managed
    environment = make_step(volume).sidecar_environment(broker, rclone)
    broker.kill()
    try:
        report = check(environment)
    finally:
        broker.start()
    assert report.code == SERVICE
    assert report.failed.keys() == {("broker", "connection")}
    finding = report.failed["broker", "connection"]
    assert "Connection refused" in finding["detail"]
    assert "mend host and port in MQ_BROKER_URL" in finding["remedy"]
    assert {area for area, _ in report.of("ok")} >= {"volume", "store", "manager"}


def test_certificates_of_an_authority_that_is_not_known(
    rabbitmq: RabbitMQ, rclone_tls: ObjectStore, volume: Path, tmp_path: Path, tls: Tls
) -> None:
    with journey_of(rabbitmq, rclone_tls, volume, tmp_path) as journey:
        environment = environment_of(journey) | {"MQ_BROKER_URL": rabbitmq.tls_url}
        without = check(environment)
        known = check(environment, SIDECAR_CA_FILE=str(tls.authority))
        other = check(
            environment,
            SIDECAR_CA_FILE=str(tls.authority),
            SIDECAR_BROKER_SERVER_NAME="broker.example",
        )
    assert without.failed.keys() == {("broker", "TLS"), ("store", "TLS")}
    assert all("SIDECAR_CA_FILE" in finding["remedy"] for finding in without.failed.values())
    assert (known.code, known.failed) == (0, {})
    assert "TLSv1.3" in known.of("ok")["broker", "TLS"]["detail"]
    assert other.failed.keys() == {("broker", "TLS")}
    assert "SIDECAR_BROKER_SERVER_NAME" in other.failed["broker", "TLS"]["remedy"]


def test_a_store_that_speaks_tls_is_asked_without_it(
    rabbitmq: RabbitMQ, rclone_tls: ObjectStore, volume: Path, tmp_path: Path
) -> None:
    with journey_of(rabbitmq, rclone_tls, volume, tmp_path) as journey:
        report = check(environment_of(journey), MINIO_USE_SSL="false")
    assert report.code == SERVICE
    ((area, _),) = report.failed
    assert area == "store"


def test_peers_that_never_answer_hold_nobody_up(journey: Journey) -> None:
    with socket.create_server((LOCAL, 0)) as silent:
        address = f"{LOCAL}:{silent.getsockname()[1]}"
        began = time.monotonic()
        report = check(
            environment_of(journey),
            "--timeout",
            "1",
            "--management-url",
            f"http://{address}",
            MQ_BROKER_URL=f"amqp://guest:hunter2@{address}",
            MINIO_URL=address,
            MANAGER_URL=f"http://somebody:hunter2@{address}",
        )
        took = (time.monotonic() - began) / 2
    assert report.code == SERVICE
    assert report.failed.keys() == {
        ("broker", "login"),
        ("broker", "management"),
        ("store", "HTTP"),
        ("manager", "manager"),
    }
    assert all("within 1 s" in finding["detail"] for finding in report.failed.values())
    assert took < 10


def test_a_sidecar_that_is_at_work_is_found_and_not_disturbed(journey: Journey) -> None:
    journey.seed({"a.txt": b"a"})
    journey.queue_inputs()
    sidecar = journey.start_sidecar()
    journey.wait_for_sockets()
    report = check(environment_of(journey))
    assert report.code == VOLUME
    assert report.failed.keys() == {("volume", "input socket"), ("volume", "output socket")}
    journey.end(sidecar, journey.start_step("mirror"))
    journey.outcome()


def test_a_pipeline_that_the_manager_does_not_know(journey: Journey) -> None:
    journey.manager.status = 404
    report = check(environment_of(journey))
    assert report.code == MANAGER
    assert report.failed.keys() == {("manager", "manager")}


def test_what_is_right_is_looked_at_although_variables_are_wrong(journey: Journey) -> None:
    report = check(
        environment_of(journey),
        MQ_BROKER_URL="http://somebody:hunter2@localhost",
        MQ_PREFETCH_COUNT="many",
    )
    assert report.code == CONFIGURATION
    assert report.failed.keys() == {
        ("variables", "MQ_BROKER_URL"),
        ("variables", "MQ_PREFETCH_COUNT"),
    }
    assert "MQ_BROKER_URL" in report.of("unknown")["broker", "broker"]["detail"]
    assert {area for area, _ in report.of("ok")} == {"volume", "store", "manager"}


def test_config_files_are_looked_for(journey: Journey) -> None:
    journey.config = {"config_files": {"there": "there.json", "away": "away.json"}}
    bucket = f"{journey.step.pipeline_hash}-iterum-config"
    make_bucket(journey.store, bucket)
    put_object(journey.store, bucket, "iterum_config/there.json", b"{}")
    report = check(environment_of(journey))
    assert report.code == 0
    warned = report.of("warning")["store", "config file"]
    assert warned["detail"].startswith("away.json is not in ")
    assert report.of("ok")["store", "config file"]["detail"].startswith("there.json: 2 bytes")
