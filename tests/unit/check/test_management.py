"""Answers as RabbitMQ 3.10.8 and 4.3.6 give them, cut to what is read; the wire tests have the real interface."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from iterum_sidecar.check.findings import Findings, Outcome
from iterum_sidecar.check.management import SUBJECTS, look_at_management
from testbed.ports import LOCAL

from .environment import by_subject, failed, readable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

QUORUM: dict[str, Any] = {
    "type": "quorum",
    "durable": True,
    "arguments": {"x-queue-type": "quorum"},
}
CLASSIC: dict[str, Any] = {"type": "classic", "durable": False, "arguments": {}}
DENIED = [{"name": "transient_nonexcl_queues", "state": "denied"}]
NODE = {"name": "rabbit@a", "mem_alarm": False, "disk_free_alarm": False}

REFUSED = b"HTTP/1.1 401 X\r\nContent-Length: 0\r\n\r\n"


@asynccontextmanager
async def interface(answers: Mapping[str, Any]) -> AsyncIterator[str]:
    """Serve JSON by path below /api/, 404 for the rest; bytes go out as they are, None is silence. Gives the URL."""

    async def serve(stream: trio.SocketStream) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            data = await stream.receive_some()
            if not data:
                return
            received += data
        path = received.split(b" ")[1].decode().removeprefix("/api/")
        answer = answers.get(path, b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n")
        if answer is None:
            await trio.sleep_forever()
        if not isinstance(answer, bytes):
            body = json.dumps(answer).encode()
            answer = b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        await stream.send_all(answer)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host=LOCAL))
        yield f"http://user:hunter2@{LOCAL}:{listener.socket.getsockname()[1]}/"
        nursery.cancel_scope.cancel("the look is over")


async def look(
    version: str = "4.3.6",
    *,
    queue: Mapping[str, Any] | None = None,
    answers: Mapping[str, Any] | None = None,
    seconds: float = 5,
    **variables: str,
) -> Findings:
    table: dict[str, Any] = {"overview": {"rabbitmq_version": version}, "nodes": [NODE]}
    if queue is not None:
        table["queues/%2F/to-edges"] = queue
    findings = Findings("broker")
    async with interface(table | dict(answers or {})) as url:
        await look_at_management(readable(**variables), url, seconds=seconds, findings=findings)
    return findings


async def test_without_an_interface_each_line_is_unknown_and_none_fails() -> None:
    findings = Findings("broker")
    await look_at_management(readable(), "", seconds=5, findings=findings)
    assert tuple(by_subject(findings, Outcome.UNKNOWN)) == SUBJECTS
    assert "--management-url" in findings.all[-1].remedy


async def test_a_broker_that_is_well() -> None:
    findings = await look("3.10.8", queue=CLASSIC)
    assert by_subject(findings).keys() == by_subject(findings, Outcome.OK).keys()
    assert "128 MiB" in by_subject(findings)["message size"].detail
    assert "1800 s" in by_subject(findings)["consumer timeout"].detail
    assert by_subject(findings)["input queue's type"].detail == "to-edges: classic, transient"


async def test_transient_queues_that_are_denied_are_a_warning_unless_ours_are_durable() -> None:
    answers = {"deprecated-features": DENIED}
    found = by_subject(await look(answers=answers), Outcome.WARNING)
    assert found.keys() == {"transient queues"}
    assert "deprecated_features.permit.transient_nonexcl_queues = true" in (
        found["transient queues"].remedy
    )
    durable = await look(answers=answers, SIDECAR_QUEUE_DURABLE="true")
    assert by_subject(durable)["transient queues"].outcome is Outcome.OK


def limited(
    argument: int | None = None, policy: int | None = None, **told: object
) -> dict[str, Any]:
    """A quorum queue with a limit of its own, one by a policy, and what the broker tells of what came of both."""
    arguments = {} if argument is None else {"x-delivery-limit": argument}
    definition = {} if policy is None else {"delivery-limit": policy}
    return (
        QUORUM
        | {"arguments": QUORUM["arguments"] | arguments, "effective_policy_definition": definition}
        | told
    )


@pytest.mark.parametrize(
    ("version", "queue"),
    [
        ("3.10.8", QUORUM),
        ("3.10.8", QUORUM | {"effective_policy_definition": []}),
        ("4.3.6", limited(-1)),
        ("4.3.6", limited(-1, delivery_limit="unlimited")),
        ("4.3.6", limited(policy=-1)),
        ("4.3.6", limited(delivery_limit="unlimited")),
    ],
)
async def test_a_quorum_queue_that_drops_nothing_is_well(
    version: str, queue: Mapping[str, Any]
) -> None:
    found = by_subject(await look(version, queue=queue))["input queue's type"]
    assert found.outcome is Outcome.OK


@pytest.mark.parametrize(
    ("version", "queue", "limit", "remedy"),
    [
        ("4.0.5", QUORUM, 20, "set_policy"),
        ("4.3.6", limited(delivery_limit=20), 20, "set_policy"),
        ("4.3.6", limited(policy=7), 7, "set_policy"),
        ("4.3.6", limited(5), 5, "delete_queue"),
        ("4.3.6", limited(5, policy=-1), 5, "delete_queue"),
        ("4.3.6", limited(5, policy=1_000_000), 5, "delete_queue"),
        ("4.3.6", limited(5, policy=-1, delivery_limit=5), 5, "delete_queue"),
        ("3.10.8", limited(5), 5, "delete_queue"),
        ("3.10.8", limited(5, policy=7), 5, "delete_queue"),
        ("3.10.8", limited(policy=7), 7, "out of its policy"),
    ],
)
async def test_a_delivery_limit_is_a_warning_with_what_mends_it(
    version: str, queue: Mapping[str, Any], limit: int, remedy: str
) -> None:
    findings = await look(version, queue=queue)
    assert failed(findings) == {}
    found = by_subject(findings, Outcome.WARNING)["input queue's type"]
    assert f"a message that comes back more than {limit} times is dropped" in found.detail
    assert remedy in found.remedy


@pytest.mark.parametrize(
    ("version", "queue", "remedy"),
    [
        ("3.10.8", limited(-1), "delete_queue"),
        ("3.10.8", limited(-5), "delete_queue"),
        ("3.13.7", limited(-1, policy=1_000_000), "delete_queue"),
        ("3.10.8", limited(0), "delete_queue"),
        ("3.10.8", limited(policy=0), "out of its policy"),
        ("4.3.6", limited(0), "delete_queue"),
        ("4.3.6", limited(policy=0), "set_policy"),
    ],
)
async def test_a_limit_by_which_each_message_that_comes_back_is_dropped_fails(
    version: str, queue: Mapping[str, Any], remedy: str
) -> None:
    found = failed(await look(version, queue=queue))["input queue's type"]
    assert "each message that comes back is dropped" in found.detail
    assert remedy in found.remedy


async def test_a_dead_letter_exchange_behind_a_limit_is_told() -> None:
    exchange = {"x-queue-type": "quorum", "x-dead-letter-exchange": "dead"}
    queue = QUORUM | {"arguments": exchange | {"x-delivery-limit": 5}}
    warned = by_subject(await look(queue=queue), Outcome.WARNING)["input queue's type"]
    assert "goes to its dead-letter exchange, and not to ours" in warned.detail
    queue = QUORUM | {"arguments": exchange | {"x-delivery-limit": -1}}
    assert "comes back goes to its dead-letter exchange" in (
        failed(await look("3.10.8", queue=queue))["input queue's type"].detail
    )


@pytest.mark.parametrize(
    ("version", "queue", "outcome", "text"),
    [
        ("4.3.6", CLASSIC, Outcome.OK, "none since"),
        ("4.3.6", QUORUM, Outcome.OK, "1800 s"),
        ("4.0.5", CLASSIC, Outcome.OK, "1800 s"),
        ("4.0.5", CLASSIC | {"arguments": {"x-consumer-timeout": 60_000}}, Outcome.WARNING, "60 s"),
    ],
)
async def test_the_consumer_timeout_is_held_against_the_kill_timeout(
    version: str, queue: Mapping[str, Any], outcome: Outcome, text: str
) -> None:
    found = by_subject(await look(version, queue=queue))["consumer timeout"]
    assert found.outcome is outcome
    assert text in found.detail


async def test_a_kill_timeout_that_is_longer_than_the_consumer_timeout_is_a_warning() -> None:
    found = by_subject(await look("4.0.5", SIDECAR_KILL_TIMEOUT="3600"))["consumer timeout"]
    assert found.outcome is Outcome.WARNING


async def test_frames_that_make_larger_messages_than_the_broker_takes_are_a_warning() -> None:
    found = by_subject(await look(SIDECAR_FRAME_LIMIT=str(32 * 1024 * 1024)))["message size"]
    assert found.outcome is Outcome.WARNING
    assert "up to 16 MiB" in found.detail


async def test_a_node_that_is_short_of_memory_fails() -> None:
    findings = await look(answers={"nodes": [NODE | {"mem_alarm": True}]})
    assert failed(findings).keys() == {"alarms"}
    assert "rabbit@a is short of memory" in failed(findings)["alarms"].detail


@pytest.mark.parametrize(
    ("overview", "reason"),
    [
        (REFUSED, "401"),
        (b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n", "tells no version"),
        (b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n", "answers 500"),
        (b"HTTP/1.1 200 X\r\nContent-Length: 6\r\n\r\n<html>", "JSON is malformed"),
        ([1], "Expected `object`"),
        (b"AMQP\0\0\x09\1", ""),
        (None, "no answer within 0.3 s"),
    ],
)
async def test_what_is_no_such_interface_fails_with_a_remedy(overview: object, reason: str) -> None:
    findings = await look(answers={"overview": overview}, seconds=0.3 if overview is None else 5)
    assert failed(findings).keys() == {"management"}
    assert reason in failed(findings)["management"].detail
    assert failed(findings)["management"].remedy
    assert tuple(by_subject(findings, Outcome.UNKNOWN)) == SUBJECTS


async def test_answers_of_another_shape_raise_nothing() -> None:
    findings = await look(
        "four.three",
        queue={"type": None, "arguments": [], "delivery_limit": {}},
        answers={"nodes": [{}], "deprecated-features": [{}]},
    )
    assert failed(findings) == {}


async def test_what_its_user_may_not_ask_is_unknown_and_the_rest_is_told() -> None:
    findings = await look(
        "4.3.6",
        answers={
            "deprecated-features": REFUSED,
            "nodes": REFUSED,
            "queues/%2F/from-edges": REFUSED,
        },
    )
    assert failed(findings) == {}
    unknown = by_subject(findings, Outcome.UNKNOWN)
    assert unknown.keys() == {"alarms", "transient queues", "consumer timeout", "queue types"}
    assert "the tag administrator" in unknown["transient queues"].remedy
    assert "16 MiB" in by_subject(findings)["message size"].detail


async def test_an_interface_that_goes_silent_half_way_keeps_what_it_has_told() -> None:
    findings = await look(answers={"deprecated-features": None}, seconds=0.3)
    assert failed(findings).keys() == {"management"}
    assert [finding.outcome for finding in findings.all if finding.subject == "alarms"] == [
        Outcome.OK
    ]
    assert by_subject(findings, Outcome.UNKNOWN).keys() == {
        "transient queues",
        "consumer timeout",
        "message size",
        "queue types",
    }
