"""A collector of one's own: it takes OTLP over HTTP, as OpenTelemetry's does, and keeps the spans."""

from __future__ import annotations

import contextlib
import http.server
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from testbed.ports import LOCAL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue


@dataclass(frozen=True)
class SentSpan:
    """A span as it came; IDs are in hexadecimal digits, that of a parent is empty where there is none."""

    service: str
    name: str
    kind: int
    trace: str
    own: str
    parent: str
    begin: int
    end: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    status: int


@dataclass
class Collector:
    """What has come to a collector. `status` is what it answers."""

    endpoint: str
    spans: list[SentSpan] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    status: int = 200

    def named(self, name: str, service: str | None = None) -> list[SentSpan]:
        return [
            span
            for span in self.spans
            if span.name == name and (service is None or span.service == service)
        ]

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        for of_resource in request.resource_spans:
            resource = _plain(of_resource.resource.attributes)
            for of_scope in of_resource.scope_spans:
                assert of_scope.scope.name == "iterum_sidecar"
                self.spans += [
                    SentSpan(
                        str(resource["service.name"]),
                        span.name,
                        span.kind,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        _plain(span.attributes),
                        resource,
                        span.status.code,
                    )
                    for span in of_scope.spans
                ]


def _plain(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value")
        for each in attributes
    }


@contextlib.contextmanager
def running_collector() -> Iterator[Collector]:
    """Run a collector in a thread; its `endpoint` is what OTEL_EXPORTER_OTLP_ENDPOINT is set to."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.paths.add(self.path)
            collector.take(self.rfile.read(int(self.headers["Content-Length"])))
            body = ExportTraceServiceResponse().SerializeToString()
            self.send_response(collector.status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            """Keep quiet."""

    with http.server.ThreadingHTTPServer((LOCAL, 0), Handler) as server:
        collector = Collector(f"http://{LOCAL}:{server.server_port}")
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
