"""TLS to broker, store and manager: what is verified and shown, and what is said when a handshake fails."""

from __future__ import annotations

import contextlib
import datetime as dt
import signal
from typing import TYPE_CHECKING, NamedTuple

import pytest

from iterum_sidecar.tls import CLIENT_CERTIFICATE_ADVICE
from testbed.contents import content
from testbed.manager import running_manager
from testbed.object_stores import running_rclone
from testbed.rabbitmq import running_rabbitmq
from testbed.tls import Tls, make_tls

from .checks import check_mirrored
from .journey import Journey, journey_of
from .test_secrets import messages, reasons

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed.rabbitmq import RabbitMQ

BROKER = "waiting for the broker"
STORE = "waiting for the store"
MANAGER = "the manager does not tell whether upstream is finished; asking on"


class Strict(NamedTuple):
    """A broker that asks for the client's certificate, and has one for names that are not its address."""

    tls: Tls
    rabbitmq: RabbitMQ


@pytest.fixture(scope="module")
def strict(session_directory: Path) -> Iterator[Strict]:
    tls = make_tls(
        session_directory / "strict-tls", names=("rabbit.example", "minio.example", "127.0.0.1")
    )
    with running_rabbitmq(
        session_directory / "strict-rabbitmq",
        tls=tls,
        configuration="ssl_options.fail_if_no_peer_cert = true\n",
    ) as rabbitmq:
        yield Strict(tls, rabbitmq)


@pytest.fixture
def strictly(
    strict: Strict, session_directory: Path, unique: str, volume: Path, tmp_path: Path
) -> Iterator[Journey]:
    """A journey with such a broker, such a store, and every setting that they need.

    Who looks on sees the store's directory without TLS.
    """
    objects = session_directory / f"strict-{unique}"
    with (
        running_rclone(objects, tls=strict.tls, clients=strict.tls) as store,
        running_rclone(objects) as plain,
        journey_of(strict.rabbitmq, plain, volume, tmp_path) as journey,
    ):
        journey.variables |= {
            "MQ_BROKER_URL": strict.rabbitmq.tls_url,
            "MINIO_URL": store.url,
            "SIDECAR_CA_FILE": str(strict.tls.authority),
            "SIDECAR_CLIENT_CERTIFICATE": str(strict.tls.client_certificate),
            "SIDECAR_CLIENT_KEY": str(strict.tls.client_key),
            "SIDECAR_BROKER_SERVER_NAME": "rabbit.example",
            "SIDECAR_STORE_SERVER_NAME": "minio.example",
        }
        yield journey


def run_mirrored(journey: Journey, **variables: str) -> list[str]:
    """Run a step to its end, and return the messages of the sidecar."""
    journey.seed({"a": content(1, 100_000)})
    journey.queue_inputs()
    journey.variables |= variables
    sidecar = journey.start_sidecar()
    journey.end(sidecar, journey.start_step("mirror"))
    outcome = journey.outcome()
    assert len(outcome.outputs) == 1
    check_mirrored(outcome, journey.contents, journey.store)
    return messages(sidecar)


def told(journey: Journey, *waits: str, **variables: str) -> list[str]:
    """Start a sidecar, wait until it has told of each wait, stop it, and return the reasons."""
    journey.variables |= variables
    sidecar = journey.start_sidecar()
    sidecar.wait_until(
        lambda: all(reasons(sidecar, wait) for wait in waits), seconds=20, what="the reasons"
    )
    sidecar.signal(signal.SIGTERM)
    journey.end(sidecar, code=143)
    assert "Traceback" not in sidecar.log_text()
    assert "guest" not in sidecar.log_text()
    assert journey.store.secret_key not in sidecar.log_text()
    return [reason for wait in waits for reason in reasons(sidecar, wait)]


def test_all_three_over_tls_by_one_authority_names_of_their_own_and_a_clients_certificate(
    strictly: Journey, strict: Strict
) -> None:
    with running_manager(finished=True, tls=strict.tls) as manager:
        said = run_mirrored(strictly, MANAGER_URL=manager.url)
        assert manager.asked
    assert not any("SIDECAR_" in message for message in said)


def test_without_verification_any_certificate_will_do_and_it_is_said(
    strictly: Journey, strict: Strict
) -> None:
    for name in ("SIDECAR_CA_FILE", "SIDECAR_BROKER_SERVER_NAME", "SIDECAR_STORE_SERVER_NAME"):
        del strictly.variables[name]
    with running_manager(finished=True, tls=strict.tls) as manager:
        first, *_ = run_mirrored(strictly, MANAGER_URL=manager.url, SIDECAR_TLS_VERIFY="false")
    assert first.startswith("SIDECAR_TLS_VERIFY is false: no certificate is verified.")


def test_an_unknown_authority(strictly: Journey) -> None:
    broker, store = told(strictly, BROKER, STORE, SIDECAR_CA_FILE="")
    # One sends its authority's certificate along, the other does not.
    assert "self-signed certificate in certificate chain" in broker
    assert "unable to get local issuer certificate" in store
    for reason in (broker, store):
        assert reason.endswith(
            "; set SIDECAR_CA_FILE to a file with the certificate of the authority that issued it"
        )
    assert f"localhost:{strictly.broker.tls_port}" in broker
    assert strictly.variables["MINIO_URL"].removeprefix("https://") in store


def test_another_name(strictly: Journey) -> None:
    broker, store = told(
        strictly,
        BROKER,
        STORE,
        SIDECAR_BROKER_SERVER_NAME="",
        SIDECAR_STORE_SERVER_NAME="elsewhere.example",
    )
    assert "not valid for 'localhost'" in broker
    assert broker.endswith("; set SIDECAR_BROKER_SERVER_NAME to a name that the certificate is for")
    assert "not valid for 'elsewhere.example'" in store
    assert store.endswith("; set SIDECAR_STORE_SERVER_NAME to a name that the certificate is for")


def test_a_clients_certificate_is_asked_for_and_not_given(strictly: Journey) -> None:
    broker, store = told(
        strictly, BROKER, STORE, SIDECAR_CLIENT_CERTIFICATE="", SIDECAR_CLIENT_KEY=""
    )
    asks = "; it asks for a client's certificate: set SIDECAR_CLIENT_CERTIFICATE and SIDECAR_CLIENT_KEY"
    assert store.endswith(asks)
    # Its alert comes before the reset of the connection, or does not.
    assert broker.endswith((asks, CLIENT_CERTIFICATE_ADVICE))
    assert f"localhost:{strictly.broker.tls_port}" in broker
    assert strictly.variables["MINIO_URL"].removeprefix("https://") in store


def test_a_clients_certificate_by_another_authority_is_refused(strictly: Journey, tls: Tls) -> None:
    broker, store = told(
        strictly,
        BROKER,
        STORE,
        SIDECAR_CLIENT_CERTIFICATE=str(tls.client_certificate),
        SIDECAR_CLIENT_KEY=str(tls.client_key),
    )
    refuses = "; it refuses our certificate: see to SIDECAR_CLIENT_CERTIFICATE"
    assert store.endswith(refuses)
    assert broker.endswith((refuses, CLIENT_CERTIFICATE_ADVICE))


def test_tls_to_a_port_that_speaks_none(strictly: Journey, strict: Strict) -> None:
    broker, store = told(
        strictly,
        BROKER,
        STORE,
        MQ_BROKER_URL=strict.rabbitmq.url.replace("amqp:", "amqps:"),
        MINIO_URL=f"https://{strictly.store.endpoint}",
    )
    for reason in (broker, store):
        assert reason.endswith("; no TLS is spoken there: see to the port, or leave TLS away")


@pytest.mark.parametrize("fault", ["authority", "name"])
def test_a_manager_whose_certificate_is_refused(
    fault: str, strictly: Journey, strict: Strict, tls: Tls
) -> None:
    theirs = tls if fault == "authority" else strict.tls
    with running_manager(finished=True, tls=theirs) as manager:
        url = manager.url if fault == "authority" else manager.url.replace("127.0.0.1", "localhost")
        (reason,) = told(strictly, MANAGER, MANAGER_URL=url)
        assert manager.asked == []
    peer = url.removeprefix("https://")
    if fault == "authority":
        assert reason == (
            f"{peer}: ConnectError; unable to get local issuer certificate;"
            " set SIDECAR_CA_FILE to a file with the certificate of the authority that issued it"
        )
    else:
        assert reason == (
            f"{peer}: ConnectError; Hostname mismatch, certificate is not valid for 'localhost';"
            " set the host in MANAGER_URL to a name that the certificate is for"
        )


def test_an_expired_certificate_is_waited_for_until_it_is_renewed(
    rabbitmq: RabbitMQ, session_directory: Path, unique: str, volume: Path, tmp_path: Path
) -> None:
    now = dt.datetime.now(dt.UTC)
    expired = make_tls(tmp_path / "expired", not_after=now - dt.timedelta(hours=1))
    renewed = make_tls(tmp_path / "renewed")
    authorities = tmp_path / "authorities.pem"
    authorities.write_bytes(expired.authority.read_bytes() + renewed.authority.read_bytes())
    objects = session_directory / f"renewed-{unique}"
    with contextlib.ExitStack() as before, contextlib.ExitStack() as after:
        store = before.enter_context(running_rclone(objects, tls=expired))
        plain = after.enter_context(running_rclone(objects))
        journey = after.enter_context(journey_of(rabbitmq, plain, volume, tmp_path))
        journey.seed({"a": content(1, 1000)})
        journey.queue_inputs()
        sidecar = journey.start_sidecar(MINIO_URL=store.url, SIDECAR_CA_FILE=str(authorities))
        sidecar.wait_until(lambda: reasons(sidecar, STORE), seconds=20, what="the reason")
        before.close()
        port = int(store.endpoint.rpartition(":")[2])
        after.enter_context(running_rclone(objects, tls=renewed, port=port))
        journey.end(sidecar, journey.start_step("mirror"))
        outcome = journey.outcome()
        assert len(outcome.outputs) == 1
        check_mirrored(outcome, journey.contents, plain)
    assert "certificate has expired; renew the certificate" in reasons(sidecar, STORE)[0]
    assert "the store is back" in messages(sidecar)
    assert "Traceback" not in sidecar.log_text()
