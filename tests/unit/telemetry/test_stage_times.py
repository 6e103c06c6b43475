"""Stage times: what is observed of a fragment and of an output, and in which bucket."""

from __future__ import annotations

from iterum_sidecar.cargo import FragmentCargo, FragmentEntry, FragmentOutput, Parcel
from iterum_sidecar.entries import Entry, Output, Verdict
from iterum_sidecar.telemetry.stage_times import Histogram, StageTimes


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def observed(times: StageTimes) -> dict[str, float]:
    return {stage: each.sum for stage, each in times.stages.items() if each.count}


def settled(cargo: FragmentCargo, verdict: Verdict) -> FragmentEntry:
    entry: FragmentEntry = Entry("id", None, None, cargo)
    entry.verdict = verdict
    return entry


def test_a_value_counts_in_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5, 100.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 2]
    assert histogram.count == 6
    assert histogram.sum == 107.5


def test_each_stage_of_a_fragment_is_observed_when_it_is_left() -> None:
    clock = Clock()
    times = StageTimes(clock)
    cargo = FragmentCargo(None)
    times.begin(cargo, {})
    for seconds, stage in ((1, "ready"), (2, "transformation"), (4, "results")):
        clock.now += seconds
        times.enter(cargo, stage)  # type: ignore[arg-type]
        assert cargo.stage == stage
    clock.now += 8
    times.end(settled(cargo, Verdict.ACKNOWLEDGE))
    assert observed(times) == {"download": 1, "ready": 2, "transformation": 4, "results": 8}
    assert (times.whole.count, times.whole.sum) == (1, 15)


def test_what_was_not_processed_has_no_whole_time() -> None:
    clock = Clock()
    times = StageTimes(clock)
    cargo = FragmentCargo(None)
    times.begin(cargo, {})
    clock.now += 3
    times.end(settled(cargo, Verdict.DEAD_LETTER))
    assert times.whole.count == 0
    assert observed(times) == {"download": 3}


def test_an_output_is_told_when_it_has_passed_a_stage() -> None:
    clock = Clock()
    times = StageTimes(clock)
    output: FragmentOutput = Output("id", [], repeated=False)
    assert times.pass_output("publish", Parcel(output, "out", b"", 98.0)) == 100.0
    assert observed(times) == {"publish": 2}


def test_an_output_is_published_without_headers() -> None:
    output: FragmentOutput = Output("id", [], repeated=False)
    assert StageTimes().headers_of(Parcel(output, "out", b"", 0.0)) is None
