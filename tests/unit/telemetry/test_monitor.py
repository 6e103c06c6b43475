"""What is answered over HTTP about a sidecar, path by path, at its start, at work and while it drains."""

from __future__ import annotations

import json
import platform
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from iterum_sidecar import __version__
from iterum_sidecar.exit_codes import AddressUnusable, ExitCode
from iterum_sidecar.patience import Patience
from iterum_sidecar.telemetry import status
from iterum_sidecar.telemetry.http import Answer, Question, open_http_listeners
from iterum_sidecar.telemetry.monitor import Monitor, measure_lag, open_listeners
from iterum_sidecar.telemetry.stage_times import Histogram, StageTimes
from iterum_sidecar.telemetry.subject import Subject
from iterum_sidecar.telemetry.tally import Tally
from tests.unit.row import INPUT, FinishedOnRequest, Row, StepConnection, copy_step, temporary_row
from tests.unit.row_with_faults import finished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import Metric

    from iterum_sidecar.sidecar import Sidecar

Clock = trio.testing.MockClock

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
#: What Prometheus 3 sends, in short.
PROMETHEUS = f"{OPENMETRICS};escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"


def monitor_of(row: Row, sidecar: Sidecar) -> Monitor:
    services = {"broker": Patience("the broker", 0), "store": Patience("the store", 0)}
    return Monitor(Subject(row.settings(), sidecar, row.tally, services, lambda: 7))


def asked(monitor: Monitor, path: str, accept: str = "") -> tuple[int, str]:
    answer = monitor.answer(Question(path, accept))
    return int(answer.status), answer.body.decode()


def values(families: Iterable[Metric]) -> dict[str, float]:
    """Every sample by its name and its labels in their order, as in `name{label=value}`."""
    found = {}
    for sample in (sample for family in families for sample in family.samples):
        labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
        found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def slow_step(connection: StepConnection) -> None:
    async for fragment in connection.fragments():
        await trio.sleep(10)
        await connection.done(fragment["metadata"]["fragment_id"])
    await connection.kill()


# -- probes


async def test_the_probes_through_a_life(autojump_clock: Clock) -> None:
    async with temporary_row() as row:
        sidecar = row.make_sidecar(FinishedOnRequest())
        monitor = monitor_of(row, sidecar)
        assert asked(monitor, "/live") == (200, "starting\n")
        assert asked(monitor, "/startup") == (503, "starting\n")
        assert asked(monitor, "/ready") == (503, "starting\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sidecar.run)
            await trio.sleep(1)
            assert asked(monitor, "/startup") == (200, "waiting\n")
            assert asked(monitor, "/ready") == (503, "waiting: the transformation\n")
            nursery.start_soon(row.run_step, slow_step)
            await row.put(1)
            await trio.sleep(1)
            assert asked(monitor, "/ready") == (200, "ready\n")
            sidecar.drain()
            assert asked(monitor, "/ready") == (503, "draining\n")
            assert asked(monitor, "/live") == (200, "draining\n")
            assert asked(monitor, "/startup") == (200, "draining\n")


async def test_another_path_is_told_which_there_are(autojump_clock: Clock) -> None:
    async with temporary_row() as row:
        monitor = monitor_of(row, row.make_sidecar(finished()))
        code, said = asked(monitor, "/metrics/")
        assert code == HTTPStatus.NOT_FOUND
        assert "/ready" in said


# -- status


async def test_the_status_tells_of_each_fragment_in_flight(autojump_clock: Clock) -> None:
    async with temporary_row() as row:
        row.tally = Tally(times=StageTimes(trio.current_time))
        await row.put(2)
        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)
        monitor = monitor_of(row, sidecar)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sidecar.run)
            nursery.start_soon(row.run_step, slow_step)
            await trio.sleep(5)
            told = json.loads(asked(monitor, "/status")[1])
            assert told["tasks"] == trio.lowlevel.current_statistics().tasks_living
            upstream.finished.set()
    assert told["version"] == __version__
    assert (told["step"], told["pipeline_hash"]) == ("hash-step", "hash")
    assert (told["state"], told["missing"]) == ("ready", [])
    assert told["health"]["broker"] is True
    assert told["uptime_seconds"] == pytest.approx(5, abs=0.1)
    assert (told["window"], told["connections"]) == (32, 1)
    assert told["fragments_in_flight"] == 2
    fragments: list[dict[str, Any]] = sorted(told["fragments"], key=lambda each: str(each["stage"]))
    assert [each["stage"] for each in fragments] == ["ready", "transformation"]
    for each in fragments:
        assert each["seconds"] == pytest.approx(5, abs=0.1)
        assert (each["files"], each["attempts"]) == (1, 0)
        assert len(each["id"]) == 64


async def test_only_the_oldest_fragments_are_told_of_one_by_one(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "MOST_FRAGMENTS", 3)
    async with temporary_row() as row:
        await row.put(8)
        upstream = FinishedOnRequest()
        sidecar = row.make_sidecar(upstream)
        monitor = monitor_of(row, sidecar)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sidecar.run)
            await trio.sleep(1)
            told = json.loads(asked(monitor, "/status")[1])
            nursery.start_soon(row.run_step, copy_step)
            upstream.finished.set()
    assert told["fragments_in_flight"] == 8
    assert len(told["fragments"]) == 3


# -- metrics


async def after_ten(told: Callable[[Monitor], Any]) -> Any:  # noqa: ANN401 - whatever is asked
    """Let ten fragments and one that is none go through, and ask."""
    async with temporary_row() as row:
        await row.put(10)
        row.broker.put(INPUT, b"not JSON")
        sidecar = row.make_sidecar(finished())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(row.run_step, copy_step)
            await sidecar.run()
        return told(monitor_of(row, sidecar))


async def test_both_forms_are_what_prometheus_reads_and_say_the_same(
    autojump_clock: Clock,
) -> None:
    def told(monitor: Monitor) -> list[Answer]:
        accepts = ("", "text/plain", PROMETHEUS)
        return [monitor.answer(Question("/metrics", accept)) for accept in accepts]

    plain, same, openmetrics = await after_ten(told)
    assert plain.content_type == same.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert openmetrics.content_type.startswith("application/openmetrics-text; version=1.0.0;")
    one = values(parse_text(plain.body.decode()))
    other = values(parse_openmetrics(openmetrics.body.decode()))  # type: ignore[no-untyped-call]
    ours = {name for name in one if name.startswith("iterum_sidecar_")}
    assert len(ours) > 50
    assert ours == {name for name in other if name.startswith("iterum_sidecar_")}
    counted = [name for name in ours if "volume" not in name]
    assert [one[name] for name in counted] == [other[name] for name in counted]
    assert one["process_cpu_seconds_total"] > 0
    assert one["process_resident_memory_bytes"] > 0


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text;version=x", "text/plain;version=1.a"]
)
async def test_a_form_that_cannot_be_read_is_answered_as_if_none_was_asked_for(
    accept: str, autojump_clock: Clock
) -> None:
    async with temporary_row() as row:
        answer = monitor_of(row, row.make_sidecar(finished())).answer(Question("/metrics", accept))
    assert answer.content_type.startswith("text/plain; version=0.0.4")
    assert values(parse_text(answer.body.decode()))


async def test_the_numbers_are_those_of_what_went_through(autojump_clock: Clock) -> None:
    def told(monitor: Monitor) -> dict[str, float]:
        return values(parse_text(asked(monitor, "/metrics")[1]))

    found = await after_ten(told)
    expected = {
        f"build_info{{python={platform.python_version()},version={__version__}}}": 1,
        "fragments_total": 10,
        "outputs_total": 10,
        "downloaded_files_total": 10,
        "downloaded_bytes_total": 90,
        "uploaded_files_total": 10,
        "uploaded_bytes_total": 90,
        "dead_letters_total{kind=unreadable}": 1,
        "dead_letters_total{kind=breach}": 0,
        "struck_fragments_total": 0,
        "in_flight_fragments{stage=download}": 0,
        "window_fragments": 32,
        "channel_items{channel=settle}": 0,
        "transformation_connections": 0,
        "fragment_duration_seconds_count": 10,
        "fragment_duration_seconds_bucket{le=+Inf}": 10,
        "stage_duration_seconds_count{stage=transformation}": 10,
        "stage_duration_seconds_count{stage=publish}": 10,
        "service_waiting{service=broker}": 0,
        "service_waits_total{service=store}": 0,
        "store_retries_total": 7,
        "ready": 0,
        "draining": 1,
        "available{part=store}": 1,
    }
    assert {name: found.get(f"iterum_sidecar_{name}") for name in expected} == expected
    assert found["iterum_sidecar_volume_size_bytes"] > 0


async def test_buckets_count_all_that_is_within_their_bound(autojump_clock: Clock) -> None:
    async with temporary_row() as row:
        monitor = monitor_of(row, row.make_sidecar(finished()))
        for seconds in (0.0005, 0.3, 0.4, 10_000):
            row.tally.times.whole.observe(seconds)
        found = values(parse_text(asked(monitor, "/metrics")[1]))
    name = "iterum_sidecar_fragment_duration_seconds"
    counts = [
        found[f"{name}_bucket{{le={le}}}"] for le in ("0.001", "0.25", "0.5", "3600.0", "+Inf")
    ]
    assert counts == [1, 1, 3, 3, 4]
    assert found[f"{name}_sum"] == pytest.approx(10_000.7005)


async def test_waits_are_counted(autojump_clock: Clock) -> None:
    async with temporary_row() as row:
        patience = Patience("the store", 0)
        sidecar = row.make_sidecar(finished())
        subject = Subject(row.settings(), sidecar, row.tally, {"store": patience}, lambda: 0)
        monitor = Monitor(subject)
        for _ in range(3):
            await patience.wait("it is away")
        waiting = values(parse_text(asked(monitor, "/metrics")[1]))
        patience.over()
        await patience.wait("again")
        patience.over()
        over = values(parse_text(asked(monitor, "/metrics")[1]))
    names = [
        f"iterum_sidecar_service_{each}{{service=store}}"
        for each in ("waiting", "waits_total", "failures_total")
    ]
    assert [waiting[name] for name in names] == [1, 1, 3]
    assert [over[name] for name in names] == [0, 2, 4]


async def test_the_lag_is_how_late_the_loop_is(autojump_clock: Clock) -> None:
    lag = Histogram((0.1, 1.0))
    with trio.move_on_after(5.5):
        await measure_lag(lag)
    assert lag.counts == [5, 0, 0]


# -- the address


async def test_a_port_in_use_is_one_clear_error() -> None:
    (held,) = await open_http_listeners("127.0.0.1", 0)
    async with held:
        port = held.socket.getsockname()[1]
        with pytest.raises(AddressUnusable) as refused:
            await open_listeners("127.0.0.1", port)
    assert str(refused.value) == (
        f"SIDECAR_HTTP_ADDRESS 127.0.0.1:{port} cannot be listened on: Address already in use;"
        " set it to a free port of this machine, or leave it unset"
    )
    assert refused.value.exit_code is ExitCode.CONFIGURATION


async def test_an_address_of_another_machine_is_one_too() -> None:
    with pytest.raises(AddressUnusable, match=r"192\.0\.2\.1:8080 cannot be listened on"):
        await open_listeners("192.0.2.1", 8080)
