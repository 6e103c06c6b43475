"""Traces: a span for each fragment, with its stages and its outputs below it, and the context of each output in its message.

This is the only module that imports opentelemetry, which is an extra; it is imported itself only where SIDECAR_TRACING asks for it.
Names and attributes are those of OpenTelemetry's semantic conventions for messaging, and of RabbitMQ's.
"""

from __future__ import annotations

import logging
import re
import time
from itertools import islice
from typing import TYPE_CHECKING

import trio
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from iterum_sidecar import __version__
from iterum_sidecar.amqp import ConnectionParameters
from iterum_sidecar.entries import Verdict
from iterum_sidecar.exit_codes import BadConfiguration
from iterum_sidecar.telemetry.logs import get_log
from iterum_sidecar.telemetry.stage_times import StageTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

    from iterum_sidecar.cargo import (
        FragmentCargo,
        FragmentEntry,
        FragmentOutput,
        OutputCargo,
        Parcel,
    )
    from iterum_sidecar.settings import Settings
    from iterum_sidecar.telemetry.stage_times import Stage

    Attributes = Mapping[str, AttributeValue]

__all__ = ["OUTCOMES", "UNFINISHED", "TracedStageTimes", "Tracing", "open_tracing"]

_log = get_log(__name__)

#: Seconds that the last spans have to be sent in when the program ends.
LAST_SPANS_SECONDS = 2.0
#: The longest `tracestate` that is passed on, in characters: what W3C's Trace Context asks for, and far from what a broker's frame holds.
LONGEST_TRACE_HEADER = 512
#: What the SDK keeps of a span's links unless told otherwise; of a larger batch the first ones are linked.
MOST_LINKS = 128
#: The longest reason in a span's status, in characters.
LONGEST_REASON = 2000

_W3C = TraceContextTextMapPropagator()
_W3C_HEADERS = ("traceparent", "tracestate")

#: What becomes of a fragment, in its span, by its verdict.
OUTCOMES = {
    Verdict.ACKNOWLEDGE: "processed",
    Verdict.DEAD_LETTER: "dead_letter",
    Verdict.STRIKE: "struck",
    Verdict.GIVE_BACK: "given_back",
}
#: Of what has no verdict when the sidecar ends; it goes back to its queue.
UNFINISHED = "unfinished"

#: Where a URL may hold a secret, and what is said of a header that cannot be sent: it quotes OTEL_EXPORTER_OTLP_HEADERS.
_SECRETS = re.compile(r"(?<=://)[^/\s]*@|\?[^\s)'\"]*|(?<=header value).*", re.DOTALL)
#: Whose complaints are told; others complain of what publishers put into headers.
_COMPLAIN_OF_EXPORT = ("opentelemetry.exporter", "opentelemetry.sdk", "urllib3")


class TracedStageTimes(StageTimes):
    """Stage times that are spans too, made by `tracer`; `queue` is the input queue, `broker` where it is.

    A queue's name that holds the hash of the pipeline is another one in each run. The names of spans have `{pipeline}` in its place,
    so that they stay few.
    """

    __slots__ = (
        "_broker",
        "_offset",
        "_open",
        "_pipeline_hash",
        "_process",
        "_publishing",
        "_tracer",
    )

    def __init__(
        self,
        tracer: Tracer,
        *,
        queue: str,
        broker: ConnectionParameters,
        pipeline_hash: str,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        super().__init__(clock)
        self._tracer = tracer
        # Spans want the time of day. It is looked at once, so that a clock that is set turns no span round.
        self._offset = wall_clock() - round(clock() * 1e9)
        self._pipeline_hash = pipeline_hash
        self._broker = broker
        self._process = self._operation("process", "process", queue)
        self._open: dict[FragmentCargo, Span] = {}
        """The spans of what is in flight."""
        self._publishing: dict[FragmentOutput, Span] = {}
        """The spans of outputs that are not confirmed."""

    def begin(self, cargo: FragmentCargo, headers: Mapping[str, object]) -> None:
        """Begin the span of a fragment, below the one that its message names."""
        super().begin(cargo, headers)
        name, attributes = self._process
        if cargo.message is not None:
            attributes = {
                **attributes,
                "iterum.fragment.id": cargo.message.metadata.fragment_id,
                "iterum.files": len(cargo.message.files),
            }
        self._open[cargo] = self._tracer.start_span(
            name,
            _context_of(headers),
            SpanKind.CONSUMER,
            attributes,
            start_time=self._moment(cargo.began),
        )

    def enter(self, cargo: FragmentCargo, stage: Stage) -> None:
        """Make a span of the stage that the fragment leaves."""
        left, since = cargo.stage, cargo.since
        super().enter(cargo, stage)
        self._add_stage(self._open[cargo], left, since, cargo.since)

    def end(self, entry: FragmentEntry) -> None:
        """End the span of a fragment, and say what has become of it."""
        super().end(entry)
        span = self._open.pop(entry.work)
        if entry.verdict is not None:
            span.set_attribute("iterum.outcome", OUTCOMES[entry.verdict])
        span.set_attribute("iterum.attempts", entry.attempts)
        span.set_attribute("iterum.outputs", len(entry.known_outputs))
        if entry.verdict is Verdict.DEAD_LETTER:
            _fail(span, str(entry.kind), entry.reason)
        elif entry.verdict is Verdict.STRIKE:
            _fail(span, "attempt_lost", "an attempt on it was lost; it is queued again")
        span.end(self._moment(entry.work.since))

    def pass_output(self, stage: Stage, cargo: OutputCargo | Parcel) -> float:
        """Make a span of an upload, or end that of a publishing."""
        now = super().pass_output(stage, cargo)
        if stage == "publish":
            span = self._publishing.pop(cargo.output, None)
        else:
            attributes = {"iterum.fragment.id": cargo.output.output_id}
            span = self._start_below(cargo, stage, SpanKind.INTERNAL, attributes)
        if span is not None:
            span.end(self._moment(now))
        return now

    def headers_of(self, parcel: Parcel) -> Mapping[str, str] | None:
        """Begin the span of a publishing, and return the headers by which the next step goes on from it.

        An output that came late, when its fragments were settled, has no trace: its next step begins one.
        """
        name, attributes = self._operation("publish", "send", parcel.queue)
        attributes = {
            **attributes,
            "messaging.message.body.size": len(parcel.body),
            "iterum.fragment.id": parcel.output.output_id,
        }
        span = self._start_below(parcel, name, SpanKind.PRODUCER, attributes)
        if span is None:
            return None
        self._publishing[parcel.output] = span
        headers: dict[str, str] = {}
        _W3C.inject(headers, set_span_in_context(span, Context()))
        return headers

    def finish(self) -> None:
        """End the spans of all that is still open: the sidecar ends before it is settled."""
        seconds = self.clock()
        now = self._moment(seconds)
        for span in self._publishing.values():
            span.set_attribute("iterum.outcome", UNFINISHED)
            span.end(now)
        for cargo, span in self._open.items():
            self._add_stage(span, cargo.stage, cargo.since, seconds)
            span.set_attribute("iterum.outcome", UNFINISHED)
            span.end(now)
        self._publishing.clear()
        self._open.clear()

    def _add_stage(self, above: Span, stage: Stage, since: float, until: float) -> None:
        # Asked first, because a fragment that is not sampled should cost nothing more.
        if above.is_recording():
            span = self._tracer.start_span(
                stage, set_span_in_context(above, Context()), start_time=self._moment(since)
            )
            span.end(self._moment(until))

    def _start_below(
        self, cargo: OutputCargo | Parcel, name: str, kind: SpanKind, attributes: Attributes
    ) -> Span | None:
        """Begin a span below the first predecessor of an output, with links to the others; None if none is in flight."""
        spans = [
            self._open[entry.work] for entry in cargo.output.entries if entry.work in self._open
        ]
        if not spans:
            return None
        return self._tracer.start_span(
            name,
            set_span_in_context(spans[0], Context()),
            kind,
            attributes,
            links=[Link(other.get_span_context()) for other in islice(spans, 1, 1 + MOST_LINKS)],
            start_time=self._moment(cargo.since),
        )

    def _operation(self, name: str, kind: str, queue: str) -> tuple[str, Attributes]:
        """Return the name and the attributes of a span of messaging."""
        attributes: dict[str, AttributeValue] = {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": name,
            "messaging.operation.type": kind,
            # By the conventions the routing key, where the exchange is the default one: there it is the queue's name.
            "messaging.destination.name": queue,
            "messaging.rabbitmq.destination.routing_key": queue,
            "server.address": self._broker.host,
            "server.port": self._broker.port,
        }
        template = queue.replace(self._pipeline_hash, "{pipeline}")
        if template != queue:
            attributes["messaging.destination.template"] = template
        return f"{name} {template}", attributes

    def _moment(self, seconds: float) -> int:
        """Return the time of day of a moment of `clock`, in nanoseconds."""
        return round(seconds * 1e9) + self._offset


def _context_of(headers: Mapping[str, object]) -> Context:
    """Return the context that a message's headers carry; an empty one if they carry none that can be read."""
    found: dict[str, str] = {}
    for name in _W3C_HEADERS:
        value = headers.get(name)
        if isinstance(value, bytes | bytearray):
            value = value.decode("ascii", errors="replace")
        if isinstance(value, str) and len(value) <= LONGEST_TRACE_HEADER:
            found[name] = value
    return _W3C.extract(found, Context())


def _fail(span: Span, kind: str, reason: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, reason[:LONGEST_REASON]))


class Tracing:
    """The traces of one life of the sidecar: `times` makes the spans, a thread of the SDK's sends them by `exporter`."""

    def __init__(self, settings: Settings, exporter: SpanExporter) -> None:
        self._exporter = _CountingExporter(exporter)
        self._spans = _CountingProcessor(self._exporter)
        # Not at the exit: `close` has a deadline, and the SDK's own end has none.
        self._provider = TracerProvider(resource=_resource(settings), shutdown_on_exit=False)
        self._provider.add_span_processor(self._spans)
        self.times = TracedStageTimes(
            self._provider.get_tracer("iterum_sidecar", __version__),
            queue=settings.input_queue,
            broker=ConnectionParameters.from_url(settings.broker_url),
            pipeline_hash=settings.pipeline_hash,
        )

    async def close(self) -> None:
        """Send what is left, for two seconds at most, whoever cancels, and tell if spans were lost."""
        self.times.finish()
        with trio.move_on_after(LAST_SPANS_SECONDS, shield=True):
            # Its thread is left behind when the time is up; it is a daemon's, as the SDK's is.
            await trio.to_thread.run_sync(self._provider.shutdown, abandon_on_cancel=True)
        if lost := self._spans.ended - self._exporter.exported:
            _log.warning("spans were lost", lost=lost, of=self._spans.ended)


def open_tracing(settings: Settings) -> Tracing:
    """Begin to trace, and send to where OpenTelemetry's own variables say.

    Raises:
        BadConfiguration: one of those is wrong.
    """
    _take_complaints()
    try:
        return Tracing(settings, OTLPSpanExporter())
    # Whatever reads OTEL_… in the SDK raises what it likes; each is a variable that is wrong.
    except Exception as error:
        said = _SECRETS.sub("", str(error))
        raise BadConfiguration(
            [f"SIDECAR_TRACING is otlp, and an OTEL_ variable is not what it should be: {said}"]
        ) from None


def _resource(settings: Settings) -> Resource:
    """Return what the spans are of; the step's name without its pipeline's hash is the service, unless OTEL_… name another."""
    own = {"iterum.step": settings.step, "iterum.pipeline": settings.pipeline_hash}
    found = Resource.create(own | {"service.version": __version__})
    if str(found.attributes["service.name"]).startswith("unknown_service"):
        name = settings.step.removeprefix(f"{settings.pipeline_hash}-")
        found = found.merge(Resource({"service.name": name}))
    return found


class _CountingProcessor(BatchSpanProcessor):
    """Gives spans to a thread that exports them; `ended` counts them."""

    ended = 0

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span that has ended, if it is sampled."""
        context = span.context
        self.ended += context is not None and context.trace_flags.sampled
        super().on_end(span)


class _CountingExporter(SpanExporter):
    """Exports by another; `exported` counts the spans that have arrived."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.exported = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export a batch."""
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.exported += len(spans)
        return result

    def shutdown(self) -> None:
        """Export nothing more, and wait for no further attempt."""
        self._exporter.shutdown()


class _Complaints(logging.Handler):
    """Takes what the SDK and its HTTP client log, and says the first of each logger as a warning of ours.

    One is the exporter's, which repeats itself for as long as the collector is away.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Tell what is of the export and was not told, without the secrets that it may quote."""
        if record.name in self._told or not record.name.startswith(_COMPLAIN_OF_EXPORT):
            return
        self._told.add(record.name)
        _log.warning(
            "traces: something is wrong on their way; the work goes on, and this is said once",
            reason=_SECRETS.sub("", record.getMessage()),
        )


def _take_complaints() -> None:
    handler = _Complaints()
    for name in ("opentelemetry", "urllib3"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
