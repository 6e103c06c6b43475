"""Races, peers and users end in errors that have a name."""

from __future__ import annotations

import struct
from typing import Any, cast

import pytest
import trio
import trio.testing

from iterum_sidecar import amqp
from iterum_sidecar.amqp.properties import decode_properties, encode_properties
from iterum_sidecar.brokers.amqp import AmqpBroker, QueuePolicy, carriable
from iterum_sidecar.brokers.port import BrokerLost
from iterum_sidecar.cargo import FragmentCargo, FragmentLedger, FragmentRoster, News
from iterum_sidecar.exit_codes import (
    BadConfiguration,
)
from iterum_sidecar.hangs import Hangs
from iterum_sidecar.identity import OutputIdentity
from iterum_sidecar.ledger import Ledger
from iterum_sidecar.roster import Roster
from iterum_sidecar.settings import read_settings
from iterum_sidecar.stages.handout import VOID_PATIENCE, Handout
from iterum_sidecar.telemetry.tally import Tally
from iterum_sidecar.unix_sockets import Listener
from tests.unit.row import (
    fragment_id,
    temporary_row,
)

Clock = trio.testing.MockClock


ENVIRONMENT = {
    "DATA_VOLUME_PATH": "/v",
    "TRANSFORMATION_STEP_INPUT": "in.sock",
    "TRANSFORMATION_STEP_OUTPUT": "out.sock",
    "ITERUM_NAME": "hash-step",
    "PIPELINE_HASH": "hash",
    "ITERUM_CONFIG_PATH": "config",
    "MQ_BROKER_URL": "amqp://guest:guest@nowhere",
    "MQ_INPUT_QUEUE": "in",
    "MQ_OUTPUT_QUEUE": "out",
    "MINIO_URL": "nowhere:9000",
    "MINIO_ACCESS_KEY": "key",
    "MINIO_SECRET_KEY": "secret",
    "MINIO_OUTPUT_BUCKET": "results",
}


async def test_a_void_hand_out_whose_done_is_on_its_way_is_not_given_up(
    autojump_clock: Clock,
) -> None:
    """The done has been read by collect, and handout has not been told of it yet."""
    ledger: FragmentLedger = Ledger(OutputIdentity("hash", "step"), attempts_allowed=3)
    roster: FragmentRoster = Roster(1)
    async with temporary_row() as row:
        with Listener(str(row.volume / "in.sock")) as listener:
            handout = Handout(
                listener=listener,
                ledger=ledger,
                roster=roster,
                tally=Tally(),
                start_timeout=1,
                return_timeout=1,
                kill_timeout=1,
                hangs=Hangs(0, roster, tell=lambda _parting: None),
            )
            to_settle, _fallen = trio.open_memory_channel[Any](10)
            news, _news = trio.open_memory_channel[News](10)
            handout._to_settle = to_settle
            _, entry = ledger.admit(fragment_id(1), None, None, FragmentCargo(None))
            assert entry is not None
            ledger.is_ready(entry)
            roster.sit()
            roster.add(entry)
            now = trio.current_time()
            for _, each in roster.assign(now):
                ledger.hand_out(each)
            ledger.breach("a test's")
            ledger.done(entry.fragment_id)
            await trio.sleep(VOID_PATIENCE + 1)
            await handout._feed(trio.current_time(), news)


class _LostConnection:
    """As much of an AMQP connection as tells that it is lost."""

    def open_channel(self, confirms: bool = False) -> _LostConnection:
        return self

    async def __aenter__(self) -> amqp.Channel:
        await trio.lowlevel.checkpoint()
        raise amqp.ConnectionLost("cut")

    async def __aexit__(self, *exc: object) -> None:
        pass


async def test_a_connection_lost_while_a_queue_is_declared_is_a_lost_broker() -> None:
    """A dead letter was to be published just then."""
    broker = AmqpBroker(
        cast("amqp.Connection", _LostConnection()), cast("amqp.Channel", None), QueuePolicy()
    )
    with pytest.raises(BrokerLost):
        await broker.ensure_queue("in-dead-letter", durable=True)


def _with_header(name: bytes, field: bytes) -> bytes:
    table = bytes([len(name)]) + name + field
    return struct.pack(">HI", 0x2000, len(table)) + table


@pytest.mark.parametrize(
    "properties",
    [
        _with_header(b"k" * 200, b"V"),
        _with_header(b"k", b"S" + struct.pack(">I", 1) + b"\xff"),
        struct.pack(">HQ", 0x0040, 1_800_000_000_000_000),
        _with_header(b"k", b"T" + struct.pack(">Q", 1_800_000_000_000_000)),
    ],
    ids=["a long name", "bytes that are no UTF-8", "microseconds", "microseconds in a header"],
)
def test_a_message_can_be_taken_and_published_again_whatever_its_headers(properties: bytes) -> None:
    """One that cannot ends every life of the program that meets it."""
    headers = decode_properties(properties).headers
    encode_properties("application/json", carriable(headers), True, None, "1", None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"MQ_BROKER_URL": "amqp://guest:guest@host:0"},
        {"MQ_BROKER_URL": "amqp://guest:gu#est@host"},
        {"MANAGER_URL": "http://a..b"},
        {"MANAGER_URL": "http://a\x7fb"},
        {"MANAGER_URL": f"http://{'a' * 64}"},
        {"MQ_OUTPUT_QUEUE": "q" * 256},
        {"MQ_INPUT_QUEUE": "q" * 250},
        {"ITERUM_CONFIG": '{"queue_mapping":{"a":""}}'},
        {"ITERUM_CONFIG": '{"queue_mapping":{"a":"' + "q" * 256 + '"}}'},
        {"ITERUM_CONFIG": '{"config_files":{"a":"' + "q" * 256 + '"}}'},
        {"ITERUM_CONFIG": '{"config_files":{"a":"x/y","b":"x"}}'},
        {"DATA_VOLUME_PATH": "/v\udcff"},
        {"ITERUM_NAME": "\udcff"},
        {"MQ_BROKER_URL": "amqp://guest:\udcff@host"},
        {"MINIO_OUTPUT_BUCKET": "a/b"},
        {"MINIO_OUTPUT_BUCKET": ".."},
        {"SIDECAR_S3_REGION": "us-east-1\r\nx-amz-acl: public-read"},
    ],
    ids=lambda wrong: str(wrong)[:60],
)
def test_a_variable_that_no_library_can_use_is_bad_configuration(wrong: dict[str, str]) -> None:
    with pytest.raises(BadConfiguration):
        read_settings(ENVIRONMENT | wrong)


@pytest.mark.parametrize(
    ("version", "limit"), [("3.10.8", None), ("4.0.5", -1), ("4.3.6", -1), ("10.1", -1), ("", None)]
)
def test_a_quorum_queue_is_never_declared_so_that_it_drops_what_comes_back(
    version: str, limit: int | None
) -> None:
    """Before RabbitMQ 4 a limit of -1 drops each message at its first return."""
    arguments = QueuePolicy(quorum=True).arguments(version)
    assert arguments is not None
    assert arguments.get("x-delivery-limit") == limit
    assert QueuePolicy().arguments(version) is None
