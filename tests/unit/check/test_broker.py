"""What no real broker shows on demand; `tests/wire/test_check.py` has the real one."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from pamqp import commands

from iterum_sidecar.amqp import codec
from iterum_sidecar.check.broker import look_at_broker, queues_by_role
from iterum_sidecar.check.findings import Findings, Outcome
from testbed.ports import LOCAL

from .environment import by_subject, failed, readable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from pamqp.base import Frame as Method

    from iterum_sidecar.check.variables import Readable


class Broker:
    """A broker that answers each method by a table, over real sockets, and says nothing to what is not in it."""

    def __init__(self, product: str = "Rabbit", version: str = "9.9") -> None:
        self.port = 0
        properties: dict[str, Any] = {"product": product, "version": version}
        self.start: bytes = codec.encode_method(
            commands.Connection.Start(0, 9, properties, "PLAIN", "en_US"), 0
        )
        self.answers: dict[type[Method], Callable[[Method], Method | None]] = {
            commands.Connection.StartOk: lambda _: commands.Connection.Tune(10, 131072, 60),
            commands.Connection.Open: lambda _: commands.Connection.OpenOk(),
            commands.Connection.Close: lambda _: commands.Connection.CloseOk(),
            commands.Channel.Open: lambda _: commands.Channel.OpenOk(),
            commands.Channel.Close: lambda _: commands.Channel.CloseOk(),
            commands.Queue.Declare: self._declared,
        }
        self.declared: list[commands.Queue.Declare] = []

    def _declared(self, asked: Method) -> Method:
        assert isinstance(asked, commands.Queue.Declare)
        self.declared.append(asked)
        return commands.Queue.DeclareOk(asked.queue, 3, 1)

    async def serve(self, stream: trio.SocketStream) -> None:
        reader = codec.FrameReader(131072)
        try:
            await stream.receive_some(8)
            await stream.send_all(self.start)
            while data := await stream.receive_some():
                for kind, channel, payload in reader.feed(bytes(data)):
                    if kind == codec.METHOD:
                        await self._answer(stream, channel, codec.decode_method(payload))
        except trio.BrokenResourceError:
            pass

    async def _answer(self, stream: trio.SocketStream, channel: int, asked: Method) -> None:
        answer = self.answers.get(type(asked))
        said = answer(asked) if answer is not None else None
        if said is not None:
            await stream.send_all(codec.encode_method(said, channel))

    def readable(self, variables: Mapping[str, str]) -> Readable:
        url = f"amqp://user:hunter2@{LOCAL}:{self.port}"
        return readable(**({"MQ_BROKER_URL": url} | dict(variables)))


@asynccontextmanager
async def broker(product: str = "Rabbit", version: str = "9.9") -> AsyncIterator[Broker]:
    serving = Broker(product, version)
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serving.serve, 0, host=LOCAL))
        serving.port = listener.socket.getsockname()[1]
        yield serving
        nursery.cancel_scope.cancel("the look is over")


async def look(
    serving: Broker, variables: Mapping[str, str] | None = None, *, seconds: float = 5
) -> Findings:
    findings = Findings("broker")
    await look_at_broker(serving.readable(variables or {}), seconds=seconds, findings=findings)
    return findings


async def test_each_queue_is_looked_at_and_none_declared() -> None:
    config = '{"queue_mapping": {"side": "to-side"}}'
    async with broker() as serving:
        findings = await look(serving, {"ITERUM_CONFIG": config})
    assert failed(findings) == {}
    assert by_subject(findings)["version"].detail == "Rabbit 9.9"
    assert by_subject(findings)["queue of channel side"].detail == (
        "to-side: 3 messages ready, 1 consumer"
    )
    assert [each.queue for each in serving.declared] == [
        "to-edges",
        "to-edges-dead-letter",
        "from-edges",
        "to-side",
        "hash-lineage",
    ]
    assert all(each.passive for each in serving.declared)


@pytest.mark.parametrize(
    ("product", "version", "fails"),
    [
        ("RabbitMQ", "3.10.8", True),
        ("RabbitMQ", "3.13.7+1", True),
        ("RabbitMQ", "4.0.5", False),
        ("RabbitMQ", "10.1", False),
        ("RabbitMQ", "unknown", False),
        ("LavinMQ", "2.1", False),
    ],
)
async def test_a_limit_that_drops_what_comes_back_is_found_where_it_means_that(
    product: str, version: str, *, fails: bool
) -> None:
    """The real broker's answers to the same question are in `tests/wire/test_check.py`."""
    async with broker(product, version) as serving:
        findings = await look(serving)
    compared = [each for each in serving.declared if not each.passive]
    assert bool(compared) == fails
    assert all("x-max-priority" in (each.arguments or {}) for each in compared)
    if fails:
        assert "drops each message that comes back" in failed(findings)["input queue"].detail
        assert "delete_queue" in failed(findings)["input queue"].remedy
    else:
        assert failed(findings) == {}


async def test_dead_letters_that_wait_are_a_warning() -> None:
    async with broker() as serving:
        findings = await look(serving)
    assert by_subject(findings, Outcome.WARNING).keys() == {"dead-letter queue"}


@pytest.mark.parametrize(
    ("variables", "how"),
    [
        ({}, "transient"),
        ({"SIDECAR_QUEUE_DURABLE": "true"}, "durable"),
        ({"SIDECAR_QUEUE_TYPE": "quorum"}, "quorum"),
    ],
)
async def test_a_queue_that_is_missing_is_no_failure_and_how_it_is_declared_is_told(
    variables: dict[str, str], how: str
) -> None:
    async with broker() as serving:
        serving.answers[commands.Queue.Declare] = lambda _: commands.Channel.Close(
            404, "NOT_FOUND", 50, 10
        )
        found = by_subject(await look(serving, variables), Outcome.OK)
    assert how in found["input queue"].detail
    assert "with the first dead letter" in found["dead-letter queue"].detail


async def test_a_queue_that_is_anothers_alone_fails() -> None:
    async with broker() as serving:
        serving.answers[commands.Queue.Declare] = lambda _: commands.Channel.Close(
            405, "RESOURCE_LOCKED", 50, 10
        )
        findings = await look(serving)
    assert "another connection's alone" in failed(findings)["input queue"].detail
    assert len(failed(findings)) == 4


async def test_a_broker_that_breaks_the_protocol_while_queues_are_looked_at() -> None:
    async with broker() as serving:
        serving.answers[commands.Channel.Open] = lambda _: commands.Connection.Close(
            541, "INTERNAL_ERROR", 0, 0
        )
        findings = await look(serving)
    assert failed(findings).keys() == {"input queue"}


async def test_a_broker_that_goes_silent_is_not_waited_for() -> None:
    async with broker() as serving:
        del serving.answers[commands.Queue.Declare]
        findings = await look(serving, seconds=0.2)
    assert "login" in by_subject(findings, Outcome.OK)
    assert failed(findings)["input queue"].detail == "no answer within 0.2 s"


@pytest.mark.parametrize(
    ("said", "subject"), [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "login"), (b"", "login")]
)
async def test_what_is_no_broker_fails_with_a_remedy(said: bytes, subject: str) -> None:
    async with broker() as serving:
        serving.start = said
        findings = await look(serving, seconds=0.2)
    assert failed(findings).keys() == {subject}


async def test_a_password_that_is_refused_is_not_shown() -> None:
    async with broker() as serving:
        serving.answers[commands.Connection.StartOk] = lambda _: commands.Connection.Close(
            403, "ACCESS_REFUSED - Login was refused", 0, 0
        )
        findings = await look(serving)
    assert failed(findings).keys() == {"login"}


def test_queues_whose_names_are_wrong_are_left_out() -> None:
    assert queues_by_role(readable(MQ_INPUT_QUEUE="", PIPELINE_HASH="")) == {
        "output queue": "from-edges"
    }
    assert "lineage queue" not in queues_by_role(readable(SIDECAR_LINEAGE="off"))
