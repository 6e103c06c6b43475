"""Traces of real sidecars: one through two steps, and what a collector that is not there costs."""

from __future__ import annotations

import dataclasses
import json
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.contents import content
from testbed.ports import free_ports
from testbed.step import make_step

from .journey import journey_of
from .otlp_collector import running_collector

if TYPE_CHECKING:
    from testbed.object_stores import ObjectStore
    from testbed.process import Process
    from testbed.rabbitmq import RabbitMQ

    from .journey import Journey

# OTLP's numbers (`trace.proto`).
INTERNAL, PRODUCER, CONSUMER = 1, 4, 5
UNSET = 0
STAGES = ("download", "ready", "transformation", "results")
CONFIGURATION_EXIT = 10


def lines_of(sidecar: Process) -> list[dict[str, object]]:
    return [json.loads(line) for line in sidecar.log_text().splitlines()]


def warnings_of(sidecar: Process) -> list[str]:
    return [str(line["message"]) for line in lines_of(sidecar) if line["severity"] == "WARNING"]


def test_one_trace_goes_through_two_steps(
    rabbitmq: RabbitMQ, rclone: ObjectStore, volume: Path, tmp_path: Path
) -> None:
    with (
        running_collector() as collector,
        tempfile.TemporaryDirectory(prefix="v-", dir=volume.parent) as second_volume,
        journey_of(rabbitmq, rclone, volume, tmp_path) as first,
        journey_of(rabbitmq, rclone, Path(second_volume), tmp_path) as second,
    ):
        # Two steps of one pipeline, named as the manager names them.
        pipeline_hash = first.step.pipeline_hash
        first.step = make_step(volume, name="thumbnails", pipeline_hash=pipeline_hash)
        second.step = dataclasses.replace(
            make_step(Path(second_volume), name="edges", pipeline_hash=pipeline_hash),
            input_queue=first.step.output_queue,
            input_bucket=first.step.output_bucket,
        )
        for journey in (first, second):
            journey.variables = {
                "SIDECAR_TRACING": "otlp",
                "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            }
        fragments = [first.seed({"a": content(number, 1000)}) for number in range(3)]
        first.queue_inputs()
        second.queues.declare(second.step.output_queue)
        for journey in (first, second):
            sidecar = journey.start_sidecar()
            journey.end(sidecar, journey.start_step("mirror"))
            assert warnings_of(sidecar) == []
        assert collector.paths == {"/v1/traces"}
        outputs = second.queues.take(second.step.output_queue)
        first.queues.take(first.step.lineage_queue)
        first.queues.delete(
            first.step.input_queue, second.step.input_queue, second.step.output_queue
        )
        assert len(outputs) == len(fragments)

        own = {span.own: span for span in collector.spans}
        assert len(own) == len(collector.spans) == 2 * 3 * 7
        roots = {
            span.attributes["iterum.fragment.id"]: span
            for span in collector.spans
            if not span.parent
        }
        assert roots.keys() == {fragment.fragment_id for fragment in fragments}
        assert len({root.trace for root in roots.values()}) == 3
        for root in roots.values():
            assert (root.service, root.kind) == ("thumbnails", CONSUMER)
            assert root.name == "process {pipeline}-to-thumbnails"
            assert root.attributes["iterum.outcome"] == "processed"
            assert root.resource["iterum.step"] == first.step.name
            assert root.status == UNSET
            of_trace = [span for span in collector.spans if span.trace == root.trace]
            assert len(of_trace) == 14
            (taken_over,) = [
                span for span in of_trace if span.kind == CONSUMER and span is not root
            ]
            handed_on = own[taken_over.parent]
            assert (handed_on.service, handed_on.kind) == ("thumbnails", PRODUCER)
            assert handed_on.parent == root.own
            assert handed_on.name == "publish {pipeline}-from-thumbnails"
            assert (taken_over.service, taken_over.name) == (
                "edges",
                "process {pipeline}-from-thumbnails",
            )
            same = "iterum.fragment.id"
            assert handed_on.attributes[same] == taken_over.attributes[same]
            for fragment in (root, taken_over):
                below = [span for span in of_trace if span.parent == fragment.own]
                assert {span.name for span in below} >= {*STAGES, "upload"}
                assert all(fragment.begin <= span.begin <= span.end for span in below)
                assert all(span.end <= fragment.end for span in below)
        now = time.time_ns()
        assert all(now - 120e9 < span.begin <= span.end <= now for span in collector.spans)
        # What came out of the second step would be gone on from by a third.
        last = {
            f"00-{span.trace}-{span.own}-03" for span in collector.spans if span.kind == PRODUCER
        }
        for message in outputs:
            assert message.headers["traceparent"] in last


def test_a_collector_that_is_away_neither_slows_the_work_nor_fails_it(journey: Journey) -> None:
    (nowhere,) = free_ports(1)
    for number in range(20):
        journey.seed({"a": content(number, 1000)})
    journey.variables = {
        "SIDECAR_TRACING": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{nowhere}",
        # So that the exporter is at its attempts before the end.
        "OTEL_BSP_SCHEDULE_DELAY": "20",
    }
    journey.queue_inputs()
    sidecar = journey.start_sidecar()
    journey.end(sidecar, journey.start_step("mirror"))
    assert len(journey.outcome().outputs) == 20
    away, lost = [line for line in lines_of(sidecar) if line["severity"] == "WARNING"]
    assert str(away["message"]).startswith("traces: something is wrong on their way")
    assert "Connection refused" in str(away["reason"])
    assert lost["message"] == "spans were lost"
    assert lost["lost"] == lost["of"] == 140


def test_a_collector_that_hangs_holds_up_the_end_for_two_seconds_at_most(
    journey: Journey,
) -> None:
    journey.seed({"a": b"1"})
    journey.queue_inputs()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        journey.variables = {
            "SIDECAR_TRACING": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }
        sidecar = journey.start_sidecar()
        journey.end(sidecar, journey.start_step("mirror"))
        log = lines_of(sidecar)
    assert len(journey.outcome().outputs) == 1
    assert [line["message"] for line in log if line["severity"] == "WARNING"] == ["spans were lost"]
    assert log[-1]["message"] == "end"


def test_a_stop_that_comes_while_the_last_spans_are_sent_changes_nothing(journey: Journey) -> None:
    journey.seed({"a": b"1"})
    journey.queue_inputs()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        journey.variables = {
            "SIDECAR_TRACING": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            # So that nothing is sent before the end.
            "OTEL_BSP_SCHEDULE_DELAY": "600000",
        }
        sidecar = journey.start_sidecar()
        step = journey.start_step("mirror")
        exporter, _ = silent.accept()
        with exporter:
            sidecar.signal(signal.SIGTERM)
            journey.end(sidecar, step)
    assert lines_of(sidecar)[-1]["message"] == "end"
    assert journey.state_file.read_text() == "done\n"
    assert len(journey.outcome().outputs) == 1


def test_a_variable_of_opentelemetry_that_is_wrong_ends_it_at_once(journey: Journey) -> None:
    sidecar = journey.start_sidecar(SIDECAR_TRACING="otlp", OTEL_BSP_MAX_QUEUE_SIZE="-1")
    assert sidecar.wait(20).code == CONFIGURATION_EXIT
    assert "an OTEL_ variable is not what it should be" in sidecar.log_text()
