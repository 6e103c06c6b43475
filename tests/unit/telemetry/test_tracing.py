"""Traces: which spans a row makes, whose children they are, what they say, and what goes out with the messages."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from iterum_sidecar.amqp import ConnectionParameters
from iterum_sidecar.exit_codes import BadConfiguration
from iterum_sidecar.settings import read_settings
from iterum_sidecar.telemetry.logs import configure
from iterum_sidecar.telemetry.tally import Tally
from iterum_sidecar.telemetry.tracing import (
    TracedStageTimes,
    Tracing,
    _Complaints,
    open_tracing,
)
from tests.unit.row import (
    DEAD,
    INPUT,
    LINEAGE,
    OUTPUT,
    FinishedOnRequest,
    StepConnection,
    copy_step,
    fragment_id,
    temporary_row,
)
from tests.unit.row_with_faults import finished, id_of, run_while

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

    from iterum_sidecar.brokers.memory import Message
    from iterum_sidecar.settings import Settings
    from tests.unit.row import Row

Clock = trio.testing.MockClock

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
STAGES = ["download", "ready", "transformation", "results"]
#: The time of day at which the clock of a row stands at 0, in nanoseconds.
MIDNIGHT = 1_000_000_000_000


class Spans:
    """The spans that a row has ended."""

    def __init__(self, row: Row) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        offset = MIDNIGHT - round(trio.current_time() * 1e9)
        self.times = TracedStageTimes(
            provider.get_tracer("test"),
            queue=INPUT,
            broker=ConnectionParameters(host="rabbit", port=5673),
            pipeline_hash="hash",
            clock=trio.current_time,
            wall_clock=lambda: offset + round(trio.current_time() * 1e9),
        )
        row.tally = Tally(times=self.times)

    def all(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def below(self, parent: ReadableSpan) -> list[ReadableSpan]:
        """The children of a span, in the order of their ends."""
        return [
            span for span in self.all() if span.parent and span.parent.span_id == own_id(parent)
        ]


def own_id(span: ReadableSpan) -> int:
    assert span.context is not None
    own: int = span.context.span_id
    return own


def says(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def as_header(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"


def waiting(row: Row, number: int = 0) -> Message:
    """A message in the input queue, whose headers may be added to."""
    return row.broker.messages(INPUT)[number]


@pytest.fixture
def complaints() -> Iterator[io.StringIO]:
    """The warnings of a sidecar; all loggers are as before in the end."""
    loggers = [logging.getLogger(name) for name in ("iterum_sidecar", "opentelemetry", "urllib3")]
    before = [(each.handlers[:], each.propagate, each.level) for each in loggers]
    said = io.StringIO()
    configure("warning", "json", said)
    yield said
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


# -- the spans of a row


async def test_a_fragment_is_a_span_below_the_one_in_its_message_and_its_stages_are_below_it(
    autojump_clock: Clock,
) -> None:
    async with temporary_row() as row:
        await row.put(1)
        waiting(row).headers.update(traceparent=PARENT, tracestate="vendor=1")
        spans = Spans(row)
        await row.run(copy_step)
        fragment = spans.one("process in")
        assert fragment.parent is not None
        assert fragment.parent.is_remote
        assert (fragment.parent.trace_id, fragment.parent.span_id) == (
            int(TRACE, 16),
            int(SPAN, 16),
        )
        assert fragment.kind is SpanKind.CONSUMER
        assert fragment.status.status_code is StatusCode.UNSET
        assert says(fragment) == {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": "in",
            "messaging.rabbitmq.destination.routing_key": "in",
            "server.address": "rabbit",
            "server.port": 5673,
            "iterum.fragment.id": fragment_id(0),
            "iterum.files": 1,
            "iterum.outcome": "processed",
            "iterum.attempts": 0,
            "iterum.outputs": 1,
        }
        names = [span.name for span in spans.below(fragment)]
        assert Counter(names) == Counter([*STAGES, "upload", "publish out"])
        assert [name for name in names if name in STAGES] == STAGES
        assert len(spans.all()) == 7


async def test_each_stage_begins_when_the_one_before_it_ends_and_the_time_is_that_of_the_day(
    autojump_clock: Clock,
) -> None:
    async def slow(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            await trio.sleep(3)
            await connection.result([id_of(fragment)], "x", b"x")
            await connection.done(id_of(fragment))
        await connection.kill()

    async with temporary_row() as row:
        await row.put(1)
        spans = Spans(row)
        began = trio.current_time()
        await row.run(slow)
        fragment = spans.one("process in")
        stages = [spans.one(name) for name in STAGES]
        moments = [stages[0].start_time, *(stage.end_time for stage in stages)]
        assert moments[0] == fragment.start_time
        assert moments[1:-1] == [stage.start_time for stage in stages[1:]]
        assert moments[-1] == fragment.end_time
        work = spans.one("transformation")
        assert work.end_time is not None
        assert work.start_time is not None
        assert work.end_time - work.start_time == pytest.approx(3e9, rel=0.01)
        assert spans.one("publish out").start_time == spans.one("upload").end_time
        assert moments[0] == pytest.approx(MIDNIGHT + began * 1e9, abs=1e9)


async def test_an_output_goes_out_with_the_context_of_its_publishing_and_its_lineage_with_none(
    autojump_clock: Clock,
) -> None:
    async with temporary_row() as row:
        await row.put(1)
        waiting(row).headers.update(traceparent=PARENT, tracestate="vendor=1")
        spans = Spans(row)
        await row.run(copy_step)
        (output,) = row.broker.messages(OUTPUT)
        publishing = spans.one("publish out")
        assert output.headers == {"traceparent": as_header(publishing), "tracestate": "vendor=1"}
        assert publishing.kind is SpanKind.PRODUCER
        told = says(publishing)
        assert told["messaging.operation.name"] == "publish"
        assert told["messaging.operation.type"] == "send"
        assert told["messaging.destination.name"] == "out"
        assert told["messaging.message.body.size"] == len(output.body)
        output_id = json.loads(output.body)["metadata"]["fragment_id"]
        assert told["iterum.fragment.id"] == output_id
        assert says(spans.one("upload")) == {"iterum.fragment.id": output_id}
        assert [message.headers for message in row.broker.messages(LINEAGE)] == [{}]


async def test_an_output_of_several_is_below_the_first_and_is_linked_to_the_others(
    autojump_clock: Clock,
) -> None:
    async def gather(connection: StepConnection) -> None:
        batch = [id_of(fragment) async for fragment in connection.fragments()]
        await connection.result(batch, "batch", b"x")
        for own in batch:
            await connection.done(own)
        await connection.kill()

    async with temporary_row() as row:
        await row.put(3)
        spans = Spans(row)
        await row.run(gather)
        of_each = {
            says(span)["iterum.fragment.id"]: own_id(span) for span in spans.named("process in")
        }
        first, *others = [of_each[fragment_id(number)] for number in range(3)]
        for name in ("upload", "publish out"):
            span = spans.one(name)
            assert span.parent is not None
            assert span.parent.span_id == first
            assert [link.context.span_id for link in span.links] == others


async def test_a_dead_letter_is_an_error_with_its_reason_and_keeps_its_own_headers(
    autojump_clock: Clock,
) -> None:
    async with temporary_row() as row:
        row.describe(0, [("a", "nowhere")])
        row.broker.put(INPUT, b"no fragment")
        waiting(row, 0).headers["traceparent"] = PARENT
        spans = Spans(row)
        await row.run(copy_step)
        errors = {says(span)["error.type"]: span for span in spans.named("process in")}
        assert errors.keys() == {"input_missing", "unreadable"}
        for span in errors.values():
            assert span.status.status_code is StatusCode.ERROR
            assert says(span)["iterum.outcome"] == "dead_letter"
        dead = {message.headers["x-iterum-kind"]: message for message in row.broker.messages(DEAD)}
        for kind, message in dead.items():
            assert errors[kind].status.description == message.headers["x-iterum-reason"]
        assert dead["input_missing"].headers["traceparent"] == PARENT
        assert "traceparent" not in dead["unreadable"].headers
        assert [span.name for span in spans.below(errors["input_missing"])] == ["download"]
        assert [span.name for span in spans.below(errors["unreadable"])] == ["results"]


async def test_a_struck_fragment_ends_its_span_and_its_next_life_has_the_same_parent(
    autojump_clock: Clock,
) -> None:
    lives = 0

    async def dies_once(connection: StepConnection) -> None:
        nonlocal lives
        lives += 1
        if lives == 1:
            async for _ in connection.fragments():
                return
        await copy_step(connection)

    async def twice(row: Row) -> None:
        await row.run_step(dies_once)
        await row.run_step(dies_once)

    async with temporary_row() as row:
        await row.put(1)
        waiting(row).headers["traceparent"] = PARENT
        spans = Spans(row)
        sidecar = row.make_sidecar(finished())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(twice, row)
            await sidecar.run()
            nursery.cancel_scope.cancel()
        struck, processed = spans.named("process in")
        assert says(struck)["iterum.outcome"] == "struck"
        assert says(struck)["iterum.attempts"] == 1
        assert struck.status.status_code is StatusCode.ERROR
        assert says(processed)["iterum.outcome"] == "processed"
        for span in (struck, processed):
            assert span.parent is not None
            assert span.parent.span_id == int(SPAN, 16)


async def test_what_is_given_back_or_left_says_so_and_keeps_its_headers(
    autojump_clock: Clock,
) -> None:
    async def hold(connection: StepConnection) -> None:
        async for _ in connection.fragments():
            await trio.sleep_forever()

    async with temporary_row(SIDECAR_DRAIN_SECONDS="5") as row:
        await row.put(2)
        for number in range(2):
            waiting(row, number).headers["traceparent"] = PARENT
        spans = Spans(row)
        sidecar = row.make_sidecar(FinishedOnRequest())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, hold)

            async def stop() -> None:
                await trio.sleep(5)
                assert (sidecar.fragments_out, len(sidecar.in_flight())) == (1, 2)
                sidecar.drain()
                await trio.sleep(1)
                sidecar.abort()

            nursery.start_soon(stop)
            await sidecar.run()
            nursery.cancel_scope.cancel()
        spans.times.finish()
        given_back, left = spans.named("process in")
        assert says(given_back)["iterum.outcome"] == "given_back"
        assert given_back.status.status_code is StatusCode.UNSET
        assert says(left)["iterum.outcome"] == "unfinished"
        assert [span.name for span in spans.below(left)] == ["download", "ready", "transformation"]
        assert [each.headers["traceparent"] for each in row.broker.messages(INPUT)] == [PARENT] * 2


async def test_a_result_that_comes_late_has_no_trace(autojump_clock: Clock) -> None:
    async def late(connection: StepConnection) -> None:
        async for fragment in connection.fragments():
            await connection.done(id_of(fragment))
            await trio.sleep(1)
            await connection.result([id_of(fragment)], "late", b"x")
        await connection.kill()

    async with temporary_row() as row:
        await row.put(1)
        spans = Spans(row)
        await run_while(row.make_sidecar(finished()), row, late)
        (output,) = row.broker.messages(OUTPUT)
        assert output.headers == {}
        assert {span.name for span in spans.all()} == {"process in", *STAGES}


# -- what a message carries


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": "garbage"},
        {"traceparent": b"\xff\xfe"},
        {"traceparent": 7},
        {"traceparent": None},
        {"traceparent": [PARENT]},
        {"traceparent": f"00-{'0' * 32}-{SPAN}-01"},
        {"traceparent": f"ff-{TRACE}-{SPAN}-01"},
        {"traceparent": PARENT + "-" + "x" * 100_000},
        {"tracestate": "vendor=1"},
    ],
    ids=str,
)
async def test_a_message_without_a_context_that_can_be_read_begins_a_trace(
    headers: dict[str, object], autojump_clock: Clock
) -> None:
    async with temporary_row() as row:
        await row.put(1)
        waiting(row).headers.update(headers)
        spans = Spans(row)
        await row.run(copy_step)
        fragment = spans.one("process in")
        assert fragment.parent is None
        (output,) = row.broker.messages(OUTPUT)
        assert output.headers == {"traceparent": as_header(spans.one("publish out"))}


@pytest.mark.parametrize(
    ("tracestate", "passed_on"),
    [
        (b"vendor=1", "vendor=1"),
        (bytearray(b"a=1,b=2"), "a=1,b=2"),
        (",".join(f"vendor{number}={'x' * 100}" for number in range(5)), None),
        ("no state", None),
        ("a=ä", None),
    ],
    ids=["bytes", "bytearray", "too long", "garbage", "no ASCII"],
)
async def test_a_context_in_bytes_is_read_and_a_state_that_cannot_be_passed_on_is_left_out(
    tracestate: object, passed_on: str | None, autojump_clock: Clock
) -> None:
    async with temporary_row() as row:
        await row.put(1)
        waiting(row).headers.update(traceparent=PARENT.encode(), tracestate=tracestate)
        spans = Spans(row)
        await row.run(copy_step)
        fragment = spans.one("process in")
        assert fragment.parent is not None
        assert fragment.parent.trace_id == int(TRACE, 16)
        (output,) = row.broker.messages(OUTPUT)
        assert output.headers["traceparent"].startswith(f"00-{TRACE}-")
        assert output.headers.get("tracestate") == passed_on


async def test_a_trace_that_is_not_sampled_is_passed_on_and_makes_no_span(
    autojump_clock: Clock,
) -> None:
    async with temporary_row() as row:
        await row.put(1)
        waiting(row).headers["traceparent"] = f"00-{TRACE}-{SPAN}-00"
        spans = Spans(row)
        await row.run(copy_step)
        assert spans.all() == ()
        (output,) = row.broker.messages(OUTPUT)
        version, trace, span, flags = output.headers["traceparent"].split("-")
        assert (version, trace, flags) == ("00", TRACE, "00")
        assert span != SPAN


async def test_the_name_of_a_span_does_not_change_with_the_run(autojump_clock: Clock) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    times = TracedStageTimes(
        provider.get_tracer("test"),
        queue="0f3a-to-edges",
        broker=ConnectionParameters(),
        pipeline_hash="0f3a",
    )
    async with temporary_row() as row:
        row.tally = Tally(times=times)
        await row.put(1)
        await row.run(copy_step)
    span = spans.get_finished_spans()[-1]
    assert span.name == "process {pipeline}-to-edges"
    assert says(span)["messaging.destination.template"] == "{pipeline}-to-edges"
    assert says(span)["messaging.destination.name"] == "0f3a-to-edges"


# -- off, and on without what it needs


_RUN = """
import sys, trio
import iterum_sidecar.pod
from tests.unit.row import copy_step, temporary_row

async def main():
    async with temporary_row() as row:
        await row.put(2)
        await row.run(copy_step)
        assert len(row.outputs()) == 2
        assert all(message.headers == {} for message in row.broker.messages("out"))

trio.run(main)
print([name for name in sys.modules if name.partition(".")[0] in {"opentelemetry", "requests", "google"}])
"""


def test_nothing_of_it_is_imported_when_it_is_off() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _RUN], capture_output=True, text=True, check=False, timeout=60
    )
    assert (ended.stdout, ended.stderr) == ("[]\n", "")


def settings_of(tmp_path: Path, **environment: str) -> Settings:
    return read_settings(
        {
            "DATA_VOLUME_PATH": str(tmp_path),
            "TRANSFORMATION_STEP_INPUT": "in.sock",
            "TRANSFORMATION_STEP_OUTPUT": "out.sock",
            "ITERUM_NAME": "hash-edges",
            "PIPELINE_HASH": "hash",
            "ITERUM_CONFIG_PATH": "config",
            "MQ_BROKER_URL": "amqp://guest:guest@nowhere",
            "MQ_INPUT_QUEUE": INPUT,
            "MQ_OUTPUT_QUEUE": OUTPUT,
            "MINIO_URL": "nowhere:9000",
            "MINIO_ACCESS_KEY": "key",
            "MINIO_SECRET_KEY": "secret",
            "MINIO_OUTPUT_BUCKET": "results",
            "SIDECAR_TRACING": "otlp",
            **environment,
        }
    )


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.exporter"])
def test_on_without_the_extra_is_an_error_that_says_what_to_install(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.startswith(missing):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(BadConfiguration) as refused:
        settings_of(tmp_path)
    assert refused.value.problems == [
        "SIDECAR_TRACING is otlp, and what sends traces is not installed:"
        " pip install 'iterum-sidecar[otel]', or set it to off"
    ]
    assert not settings_of(tmp_path, SIDECAR_TRACING="off").tracing


# -- the way to the collector


class Collector(SpanExporter):
    """An exporter that notes what it is given, or refuses it, or waits for its gate before it answers."""

    def __init__(self, *, takes: bool = True) -> None:
        self.gate = threading.Event()
        self.taken: list[ReadableSpan] = []
        self._takes = takes

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.gate.wait()
        if self._takes:
            self.taken.extend(spans)
        return SpanExportResult.SUCCESS if self._takes else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        pass


async def run_traced(collector: Collector, settings: Settings) -> None:
    tracing = Tracing(settings, collector)
    async with temporary_row() as row:
        row.tally = Tally(times=tracing.times)
        await row.put(1)
        await row.run(copy_step)
    await tracing.close()


async def test_all_spans_are_sent_before_the_end(tmp_path: Path, complaints: io.StringIO) -> None:
    collector = Collector()
    collector.gate.set()
    await run_traced(collector, settings_of(tmp_path))
    assert len(collector.taken) == 7
    assert complaints.getvalue() == ""
    attributes = collector.taken[0].resource.attributes
    assert attributes["service.name"] == "edges"
    assert attributes["iterum.step"] == "hash-edges"
    assert attributes["iterum.pipeline"] == "hash"


async def test_spans_that_the_collector_refuses_are_counted(
    tmp_path: Path, complaints: io.StringIO
) -> None:
    collector = Collector(takes=False)
    collector.gate.set()
    await run_traced(collector, settings_of(tmp_path))
    line = json.loads(complaints.getvalue())
    assert (line["message"], line["lost"], line["of"]) == ("spans were lost", 7, 7)


async def test_a_collector_that_hangs_holds_up_the_end_for_two_seconds(
    tmp_path: Path, complaints: io.StringIO
) -> None:
    collector = Collector()
    began = time.monotonic()
    try:
        await run_traced(collector, settings_of(tmp_path))
        assert 2 <= time.monotonic() - began < 10
    finally:
        collector.gate.set()
    line = json.loads(complaints.getvalue())
    assert (line["message"], line["lost"], line["of"]) == ("spans were lost", 7, 7)


def test_what_otel_variables_say_of_the_service_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaints: io.StringIO
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    collector = Collector()
    tracing = Tracing(settings_of(tmp_path), collector)
    collector.gate.set()
    tracing._provider.shutdown()
    attributes = tracing._provider.resource.attributes
    assert attributes["service.name"] == "ours"
    assert attributes["deployment.environment.name"] == "test"


def test_a_variable_that_the_sdk_refuses_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaints: io.StringIO
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with pytest.raises(BadConfiguration) as refused:
        open_tracing(settings_of(tmp_path))
    assert refused.value.problems == [
        "SIDECAR_TRACING is otlp, and an OTEL_ variable is not what it should be:"
        " max_queue_size must be a positive integer."
    ]


def test_what_opentelemetry_logs_is_one_warning_of_each_logger_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaints: io.StringIO
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1/v1/traces")
    tracing = open_tracing(settings_of(tmp_path))
    tracing._provider.shutdown()
    logging.getLogger("opentelemetry.trace.span").warning("a publisher's header is no state")
    assert complaints.getvalue() == ""
    exporter = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    exporter.warning("Transient error %s", "http://me:secret@there/v1/traces?token=secret refused")
    exporter.error("again")
    logging.getLogger("opentelemetry.sdk._shared_internal").warning("Queue full")
    lines = [json.loads(line) for line in complaints.getvalue().splitlines()]
    assert [line["reason"] for line in lines] == [
        "Transient error http://there/v1/traces refused",
        "Queue full",
    ]
    assert {line["severity"] for line in lines} == {"WARNING"}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("http://me:sec@ret@there:4318/v1/traces refused", "http://there:4318/v1/traces refused"),
        # What `requests` and `http.client` say of OTEL_EXPORTER_OTLP_HEADERS.
        ("return character(s) in header value: 'sec\\nret'", "return character(s) in header value"),
        ("Invalid header value b'sec\\nret'", "Invalid header value"),
    ],
)
def test_no_secret_is_told_of_what_the_export_complains_of(
    said: str, told: str, complaints: io.StringIO
) -> None:
    _Complaints().handle(logging.LogRecord("urllib3", logging.WARNING, "", 0, "%s", (said,), None))
    assert json.loads(complaints.getvalue())["reason"] == told


def test_a_header_that_cannot_be_sent_is_not_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaints: io.StringIO
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1/v1/traces")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=hunter%0A2hunter")
    tracing = open_tracing(settings_of(tmp_path))
    tracing._provider.get_tracer("test").start_span("any").end()
    tracing._provider.shutdown()
    line = json.loads(complaints.getvalue())
    assert line["reason"].endswith("in header value")
    assert "hunter" not in complaints.getvalue()
