"""Secrets from files that change while the sidecar is at work, and that are nowhere to be read in its log."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
import trio

from iterum_sidecar import amqp
from iterum_sidecar.brokers.amqp import QueuePolicy, open_amqp_broker
from iterum_sidecar.patience import Patience
from testbed.contents import content
from testbed.object_stores import running_rclone

from .checks import check_mirrored
from .journey import Journey, journey_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed.process import Process
    from testbed.rabbitmq import RabbitMQ

FRAGMENTS = 50
OLD = ("the-old-access-key", "the-old-secret-key")
NEW = ("the-new-access-key", "the-new-secret-key")


def swap(directory: Path, generation: int, **secrets: str) -> None:
    """Change all secrets of a directory as Kubernetes does: by one symlink that each of them leads through."""
    fresh = directory / f"..{generation}"
    fresh.mkdir()
    for name, secret in secrets.items():
        (fresh / name).write_text(f"{secret}\n", encoding="utf-8")
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")
    (directory / "..tmp").symlink_to(fresh.name)
    (directory / "..tmp").rename(directory / "..data")


def swap_keys(directory: Path, generation: int, keys: tuple[str, str]) -> None:
    swap(directory, generation, access=keys[0], secret=keys[1])


def events(sidecar: Process) -> list[dict[str, Any]]:
    """The lines of a sidecar's log so far."""
    return [json.loads(line) for line in sidecar.log_text().splitlines() if line.endswith("}")]


def messages(sidecar: Process) -> list[str]:
    return [event["message"] for event in events(sidecar)]


def reasons(sidecar: Process, message: str) -> list[str]:
    return [event["reason"] for event in events(sidecar) if event["message"] == message]


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """An empty directory for secrets."""
    directory = tmp_path / "secrets"
    directory.mkdir()
    return directory


@pytest.fixture
def user(rabbitmq: RabbitMQ, unique: str) -> Iterator[str]:
    """A user of the broker whose password is `first-password`."""
    name = f"user-{unique}"
    rabbitmq.ctl("add_user", name, "first-password")
    rabbitmq.ctl("set_permissions", name, ".*", ".*", ".*")
    yield name
    rabbitmq.ctl("delete_user", name)


def broker_url(rabbitmq: RabbitMQ, user: str, password: str) -> str:
    return f"amqp://{user}:{password}@{rabbitmq.host}:{rabbitmq.port}/"


@pytest.mark.parametrize("first", ["the files", "the store"])
def test_the_stores_keys_change_while_fragments_are_on_their_way(
    first: str,
    rabbitmq: RabbitMQ,
    session_directory: Path,
    unique: str,
    volume: Path,
    tmp_path: Path,
    secrets: Path,
) -> None:
    directory = session_directory / f"rotated-{unique}"
    swap_keys(secrets, 1, OLD)
    with contextlib.ExitStack() as before, contextlib.ExitStack() as after:
        store = before.enter_context(running_rclone(directory, keys=OLD))
        port = int(store.endpoint.rpartition(":")[2])
        journey = after.enter_context(journey_of(rabbitmq, store, volume, tmp_path))
        for number in range(FRAGMENTS):
            journey.seed({f"{number}.bin": content(number, 20_000)})
        journey.queue_inputs()
        sidecar = journey.start_sidecar(
            MINIO_ACCESS_KEY="",
            MINIO_SECRET_KEY="",
            MINIO_ACCESS_KEY_FILE=str(secrets / "access"),
            MINIO_SECRET_KEY_FILE=str(secrets / "secret"),
            SIDECAR_LOG_LEVEL="debug",
        )
        step = journey.start_step("mirror", 0.05)
        journey.wait_for_outputs(10, sidecar)
        if first == "the files":
            swap_keys(secrets, 2, NEW)
        before.close()
        journey.store = after.enter_context(running_rclone(directory, keys=NEW, port=port))
        if first == "the store":
            sidecar.wait_until(
                lambda: "HTTP 403" in sidecar.log_text(), seconds=20, what="a refusal"
            )
            swap_keys(secrets, 2, NEW)
        journey.end(sidecar, step)
        outcome = journey.outcome()
        assert len(outcome.outputs) == FRAGMENTS
        assert outcome.dead_letters == []
        check_mirrored(outcome, journey.contents, journey.store)
    assert messages(sidecar).count("other keys for the store have been read") == 1
    for secret in (*OLD, *NEW):
        assert secret not in sidecar.log_text()


def test_the_brokers_password_changes_before_the_sidecar_knows(
    journey: Journey, rabbitmq: RabbitMQ, user: str, secrets: Path
) -> None:
    swap(secrets, 1, broker=broker_url(rabbitmq, user, "first-password"))
    journey.seed({"a": b"1"})
    journey.queue_inputs()
    rabbitmq.ctl("change_password", user, "second-password")
    sidecar = journey.start_sidecar(
        MQ_BROKER_URL="", MQ_BROKER_URL_FILE=str(secrets / "broker"), SIDECAR_LOG_LEVEL="debug"
    )
    sidecar.wait_until(
        lambda: reasons(sidecar, "waiting for the broker"), seconds=20, what="a refusal"
    )
    swap(secrets, 2, broker=broker_url(rabbitmq, user, "second-password"))
    journey.end(sidecar, journey.start_step("mirror"))
    outcome = journey.outcome()
    assert len(outcome.outputs) == 1
    check_mirrored(outcome, journey.contents, journey.store)
    (reason,) = reasons(sidecar, "waiting for the broker")
    assert "403 ACCESS_REFUSED" in reason
    told = messages(sidecar)
    assert told.count("another URL of the broker has been read") == 1
    assert "the broker is back" in told
    assert "password" not in sidecar.log_text()


async def test_a_login_that_is_another_by_now_is_tried_at_once(
    rabbitmq: RabbitMQ, user: str, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    urls = [broker_url(rabbitmq, user, "of-before"), broker_url(rabbitmq, user, "first-password")]

    def where() -> amqp.ConnectionParameters:
        return amqp.ConnectionParameters.from_url(urls.pop(0) if len(urls) > 1 else urls[0])

    with trio.fail_after(20):
        async with open_amqp_broker(
            where,
            ssl_context=None,
            queues=[],
            policy=QueuePolicy(),
            patience=Patience("the broker", 0),
            name="test",
        ) as broker:
            await broker.ensure_queue(queue)
    assert caplog.records == []
