"""The sidecar's numbers in Prometheus' forms, read when they are asked for: nothing is kept here.

Names follow Prometheus' "Metric and label naming". `docs/monitoring.md` explains each; a test holds the two together.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

from iterum_sidecar import __version__
from iterum_sidecar.entries import DeadLetterKind
from iterum_sidecar.telemetry.http import Answer
from iterum_sidecar.telemetry.stage_times import FRAGMENT_STAGES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from iterum_sidecar.telemetry.stage_times import Histogram, Stage
    from iterum_sidecar.telemetry.subject import Subject

__all__ = ["Metrics"]

_PREFIX = "iterum_sidecar_"


class Metrics(Collector):
    """Answers a scrape with the numbers of one sidecar, and with those of its process."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def answer(self, accept: str) -> Answer:
        """Return the numbers in the form that is accepted: OpenMetrics, or else Prometheus' text."""
        try:
            encode, content_type = choose_encoder(accept)
        except TypeError:  # what it raises for a version that is none
            encode, content_type = choose_encoder("")
        return Answer(HTTPStatus.OK, content_type, encode(self._registry))

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, as its value is now."""
        yield InfoMetricFamily(
            f"{_PREFIX}build",
            "The program, and what runs it.",
            value={"version": __version__, "python": platform.python_version()},
        )
        yield from self._health()
        yield from self._work()
        yield from self._faults()
        yield from self._in_flight()
        yield from self._times()
        yield from self._services()
        yield from self._machine()

    def _health(self) -> Iterator[Metric]:
        health = self._subject.sidecar.health()
        yield _gauge("ready", "Whether fragments can be worked.", health.ready)
        yield _gauge("draining", "Whether nothing new is taken.", health.draining)
        yield _gauges(
            "available",
            "Whether a part of what the sidecar needs is there.",
            "part",
            {
                "sockets": health.listening,
                "broker": health.broker,
                "store": health.store,
                "transformation": health.transformation,
            },
        )

    def _work(self) -> Iterator[Metric]:
        tally = self._subject.tally
        yield _counter("fragments", "Fragments acknowledged as processed.", tally.fragments)
        yield _counter("outputs", "Outputs published and confirmed.", tally.outputs)
        yield _counter("downloaded_files", "Files fetched from the store.", tally.files_in)
        yield _counter("downloaded_bytes", "Bytes fetched from the store.", tally.bytes_in)
        yield _counter("uploaded_files", "Files put into the store.", tally.files_out)
        yield _counter("uploaded_bytes", "Bytes put into the store.", tally.bytes_out)

    def _faults(self) -> Iterator[Metric]:
        tally = self._subject.tally
        yield _counters(
            "dead_letters",
            "Messages put on the dead-letter queue.",
            "kind",
            {str(kind): tally.dead_letters_by_kind[kind] for kind in DeadLetterKind},
        )
        yield _counter(
            "struck_fragments",
            "Fragments queued again after a death of the transformation.",
            tally.struck,
        )
        yield _counter(
            "given_back_fragments", "Fragments returned to the queue undone.", tally.given_back
        )
        yield _counter(
            "repeated_deliveries",
            "Deliveries of fragments that were known already.",
            tally.repeated,
        )
        yield _counter(
            "late_results",
            "Results that came after their fragments were settled.",
            tally.late_results,
        )
        yield _counter(
            "stray_results",
            "Results of hand-outs that were over, which are dropped.",
            tally.stray_results,
        )
        yield _counter("refused_results", "Results that were refused.", tally.refused_results)

    def _in_flight(self) -> Iterator[Metric]:
        sidecar = self._subject.sidecar
        stages = Counter(entry.work.stage for entry in sidecar.in_flight())
        yield _gauges(
            "in_flight_fragments",
            "Fragments let in and not settled, by where they are.",
            "stage",
            {stage: stages[stage] for stage in FRAGMENT_STAGES},
        )
        yield _gauge("window_fragments", "Fragments that may be in flight.", sidecar.window)
        yield _gauge(
            "volume_held_bytes",
            "Bytes of input files that are on the volume, or on their way there.",
            sidecar.volume_held,
        )
        yield _gauge(
            "volume_budget_bytes",
            "How many of them there may be; infinite without a bound.",
            sidecar.volume_budget,
        )
        yield _gauges(
            "channel_items",
            "What waits in the channels between the stages, by where they lead.",
            "channel",
            sidecar.channel_depths(),
        )
        yield _gauge(
            "transformation_connections",
            "Connections of the transformation to the input socket.",
            sidecar.connections,
        )

    def _times(self) -> Iterator[Metric]:
        times = self._subject.tally.times
        yield _histograms(
            "stage_duration_seconds",
            "Seconds that fragments and outputs were in a stage.",
            "stage",
            times.stages,
        )
        yield _histogram(
            "fragment_duration_seconds",
            "Seconds from the arrival of a fragment to its acknowledgement.",
            times.whole,
        )

    def _services(self) -> Iterator[Metric]:
        services = self._subject.services
        yield _gauges(
            "service_waiting",
            "Whether a service is waited for.",
            "service",
            {name: patience.is_waiting for name, patience in services.items()},
        )
        yield _counters(
            "service_waits",
            "How often a service was not there, or went away, and was waited for.",
            "service",
            {name: patience.waits for name, patience in services.items()},
        )
        yield _counters(
            "service_failures",
            "Attempts to reach a service, or to use it, that failed and were waited for.",
            "service",
            {name: patience.failures for name, patience in services.items()},
        )
        yield _counter(
            "store_retries",
            "Requests sent to the store again after a moment.",
            self._subject.store_retries(),
        )

    def _machine(self) -> Iterator[Metric]:
        yield _histogram(
            "event_loop_lag_seconds",
            "Seconds by which the event loop was late, looked at every second.",
            self._subject.lag,
        )
        with suppress(OSError):
            volume = os.statvfs(self._subject.settings.volume)
            yield _gauge(
                "volume_size_bytes",
                "Size of the file system of the volume.",
                volume.f_blocks * volume.f_frsize,
            )
            yield _gauge(
                "volume_available_bytes",
                "Free space on it, for who is not root.",
                volume.f_bavail * volume.f_frsize,
            )


def _gauge(name: str, said: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, said, value=value)


def _gauges(name: str, said: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, said, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counter(name: str, said: str, value: float) -> Metric:
    return CounterMetricFamily(_PREFIX + name, said, value=value)


def _counters(name: str, said: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, said, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _histogram(name: str, said: str, histogram: Histogram) -> Metric:
    return HistogramMetricFamily(
        _PREFIX + name, said, buckets=_buckets(histogram), sum_value=histogram.sum
    )


def _histograms(name: str, said: str, label: str, values: Mapping[Stage, Histogram]) -> Metric:
    family = HistogramMetricFamily(_PREFIX + name, said, labels=[label])
    for key, histogram in values.items():
        family.add_metric([key], _buckets(histogram), histogram.sum)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Return the counts as Prometheus has them: each of all that is within its bound."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
    return buckets
