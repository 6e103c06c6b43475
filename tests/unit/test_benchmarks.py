"""The parts of the benchmarks that measure nothing: their arithmetic, their looking whether work was done, their tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest

from benchmarks import compare, rounds, table
from benchmarks.results import Figures, Machine, Results, Row, Value, read_results
from benchmarks.stages import framing, measuring, messages
from benchmarks.stages.catalogue import STAGES, Contender, Stage, stage_named
from benchmarks.stages.task import Meter, Task, Tasting, description
from iterum_sidecar.framing import FrameReader
from testbed.contents import content
from testbed.process import ProcessFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MACHINE = Machine(cpu="a CPU", cores=2, memory=2**32, kernel="Linux 6", files="tmpfs at /dev/shm")


def row(contender: str, *cpu: float, faults: tuple[str, ...] = ()) -> Row:
    """Return a row whose runs took so many seconds of CPU for ten operations."""
    runs = [Figures(operations=10, cpu=each, wall=2.0, memory=50_000_000) for each in cpu]
    return Row("stage", "a-stage", contender, runs, list(faults))


def results(*rows: Row, machine: Machine = MACHINE, **versions: str) -> Results:
    return Results("2026-01-01 12:00 UTC", machine, versions, (0.5, 0.4, 0.3), list(rows))


def test_a_value_is_the_median_and_half_the_range() -> None:
    value = Value.of([4.0, 1.0, 2.0])
    assert value == Value(2.0, 1.5, 3)
    assert value.share == 0.75


def test_of_one_run_nobody_knows_the_noise() -> None:
    value = Value.of([4.0])
    assert value == Value(4.0, None, 1)
    assert value.share is None


def test_a_ratio_is_taken_round_by_round() -> None:
    ours, floor = row("ours", 20.0, 60.0, 80.0), row("floor", 10.0, 20.0, 40.0)
    assert results(ours, floor).ratio(ours) == Value(2.0, 0.5, 3)
    failed_later = row("floor", 10.0, 20.0)
    assert results(ours, failed_later).ratio(ours) == Value(2.5, 0.5, 2)


def test_a_row_counts_by_operations() -> None:
    one = row("ours", 2.0, 4.0, 3.0)
    assert one.cpu is not None
    assert (one.cpu.median, one.cpu.noise) == pytest.approx((0.3, 0.1))
    assert one.rate == Value(5.0, 0.0, 3)
    assert row("ours").cpu is None


def test_a_ratio_needs_a_floor_of_the_same_stage() -> None:
    ours, floor = row("ours", 30.0), row("floor", 20.0)
    assert results(ours, floor).ratio(ours) == Value(1.5, None, 1)
    assert results(ours, floor).ratio(floor) is None
    assert results(ours, row("floor")).ratio(ours) is None
    other = Row("stage", "another", "floor", floor.runs)
    assert results(ours, other).ratio(ours) is None


def test_the_table_shows_ratios_noise_and_faults() -> None:
    found = results(
        row("ours", 2.0, 3.0, 4.0),
        row("floor", 1.0),
        row("others", faults=("exit code 1",)),
        Python="3.11",
    )
    lines = table.table_of(found).splitlines()
    assert "load average before 0.50 0.40 0.30" in lines[0]
    assert "a CPU, 2 cores, 4.0 GiB, Linux 6; files: tmpfs at /dev/shm" in lines[1]
    assert lines[2].endswith("Python 3.11")
    ours, floor, others = (line.split() for line in lines[-3:])
    assert ours == [
        "a-stage",
        "ours",
        "3",
        "300,000.00",
        "33",
        "2.00",
        "-",
        "5",
        "0",
        "50.0",
        "yes",
    ]
    assert floor == ["a-stage", "floor", "1", "100,000.00", "-", "5", "-", "50.0", "yes"]
    assert others == ["a-stage", "others", "0", "exit", "code", "1"]


@pytest.mark.parametrize(
    ("old", "new", "mark"),
    [
        ([9, 10, 11], [12.9, 13.9, 14.9], ""),
        ([9, 10, 11], [13.1, 14.1, 15.1], "worse"),
        ([9, 10, 11], [4.9, 5.9, 6.9], "better"),
        ([9, 10, 11], [6.1, 6.1, 8.1], ""),
        ([10, 10, 10], [10, 10, 10], ""),
        ([10, 10], [20, 20, 20], ""),
        ([10, 10, 10], [20, 20], ""),
        ([10, 10, 10], [20], ""),
    ],
)
def test_a_change_is_marked_when_it_is_more_than_both_ranges(
    old: list[float], new: list[float], mark: str
) -> None:
    assert compare.Change(Value.of(old), Value.of(new)).mark == mark


def test_rows_are_compared_side_by_side_with_their_ratios() -> None:
    old = results(row("ours", 2.0, 2.1, 2.2), row("floor", 1.0, 1.0, 1.0))
    new = results(row("ours", 4.0, 4.2, 4.4), row("floor", 2.0, 2.0, 2.0))
    *_, ours, floor = compare.comparison_of(old, new).splitlines()
    assert ours.split() == [
        *("a-stage", "ours", "210,000.00", "420,000.00", "+100", "%", "29", "%", "worse"),
        *("2.10", "2.10", "+0", "%", "19", "%"),
    ]
    assert floor.split()[-6:] == ["200,000.00", "+100", "%", "0", "%", "worse"]


def test_what_differs_besides_is_said() -> None:
    old = results(row("ours", 1.0), row("gone", 1.0), Python="3.11", pika="1.3")
    other = msgspec.structs.replace(MACHINE, cores=64)
    new = results(
        row("ours", 1.0, faults=("3 files left",)), row("come", 1.0), machine=other, Python="3.12"
    )
    said = compare.comparison_of(old, new)
    assert "The machine differs" in said
    assert "64 cores" in said
    assert "Python 3.11 -> 3.12, pika 1.3 -> none" in said
    assert "new: 3 files left" in said
    assert "only in old: a-stage gone\nonly in new: a-stage come" in said
    same = compare.comparison_of(old, old)
    assert "differ" not in same
    assert "only in" not in same


def test_times_of_two_machines_are_not_judged_but_ratios_are() -> None:
    old = results(row("ours", 2.0, 2.0, 2.0), row("floor", 1.0, 1.0, 1.0))
    other = msgspec.structs.replace(MACHINE, cores=64)
    new = results(row("ours", 3.0, 3.0, 3.0), row("floor", 1.0, 1.0, 1.0), machine=other)
    *_, ours, _ = compare.comparison_of(old, new).splitlines()
    assert ours.split()[4:] == [
        *("+50", "%", "0", "%"),
        *("2.00", "3.00", "+50", "%", "0", "%", "worse"),
    ]


def test_a_row_without_figures_is_compared_with_nothing() -> None:
    old, new = results(row("ours", faults=("hung",))), results(row("ours", 1.0))
    assert "a-stage       ours" in compare.comparison_of(old, new)
    assert "old: hung" in compare.comparison_of(old, new)


def test_what_is_written_can_be_read_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    written = results(row("ours", 1.0, 2.0), row("floor", 1.0), Python="3.11")
    path.write_bytes(msgspec.json.encode(written))
    assert read_results(path) == written
    compare.main([str(path), str(path)])
    printed = capsys.readouterr().out
    assert "+0 %" in printed
    assert "worse" not in printed


def _without_operations() -> str:
    broken = msgspec.to_builtins(results(row("ours", 1.0)))
    broken["rows"][0]["runs"][0]["operations"] = 0
    return json.dumps(broken)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file or directory"),
        ("", "not JSON"),
        ("not JSON at all", "not JSON"),
        ("[1, 2]", "Expected `object`, got `array`"),
        ('{"small": {"sidecar": []}}', "unknown field `small`"),
        (_without_operations(), "$.rows[0].runs[0].operations"),
    ],
)
def test_bad_input_gives_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, reason: str
) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_bytes(msgspec.json.encode(results(row("ours", 1.0))))
    if text is not None:
        bad.write_text(text, encoding="utf-8")
    for old, new in ((good, bad), (bad, good)):
        with pytest.raises(SystemExit) as ended:
            compare.main([str(old), str(new)])
        assert ended.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith(f"{bad}: ")
        assert reason in line


def test_a_file_that_is_not_text_is_bad_input_too(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_bytes(b'{"taken": "\xff"}')
    with pytest.raises(SystemExit) as ended:
        compare.main([str(bad), str(bad)])
    assert ended.value.code == 2


def turns_of(
    asked: list[str], *, failing: str = "", names: tuple[str, ...] = ("one", "two")
) -> list[rounds.Turn]:
    def run(contender: str) -> Callable[[], tuple[Figures, list[str]]]:
        def take() -> tuple[Figures, list[str]]:
            asked.append(contender)
            if contender == failing:
                raise ProcessFailed("it fell over\n  | its log")
            return Figures(1, 1.0, 1.0, 1), ["not all was done"]

        return take

    return [rounds.Turn(Row("stage", "a-stage", each, []), run(each)) for each in names]


def test_everybody_has_a_turn_in_each_round() -> None:
    asked: list[str] = []
    rows = rounds.run_rounds(turns_of(asked), 3, 60)
    assert asked == ["one", "two"] * 3
    assert [len(each.runs) for each in rows] == [3, 3]
    assert rows[0].faults == ["not all was done"]


def test_who_fails_is_told_of_and_not_asked_again() -> None:
    asked: list[str] = []
    rows = rounds.run_rounds(turns_of(asked, failing="one"), 2, 60)
    assert asked == ["one", "two", "two"]
    assert rows[0].faults == ["it fell over"]
    assert rows[0].runs == []


def test_when_there_is_no_time_the_first_round_is_the_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[str] = []
    rounds.run_rounds(turns_of(asked), 2, 0)
    assert asked == ["one", "two"]
    assert "no time for run 2 of a-stage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "contender"),
    [
        (stage, contender)
        for stage in STAGES
        for contender in stage.contenders
        if stage.kind == "memory"
    ],
    ids=lambda each: each.name,
)
def test_contenders_in_memory_do_what_they_should(stage: Stage, contender: Contender) -> None:
    meter = Meter()
    contender.load()(Task(stage.name, contender.name, 300), meter)
    assert meter.faults == []
    assert meter.measured().cpu > 0


def test_messages_that_are_others_are_noticed() -> None:
    meter = Meter()
    task = Task("messages", "ours", 10)
    messages.measure(task, meter, lambda body: (body, b'{"transformation_step":"another"}'))
    assert "a message is another" in meter.faults


def test_frames_that_get_lost_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter()
    monkeypatch.setattr(FrameReader, "feed", lambda _self, _data: iter(()))
    framing.ours(Task("framing", "ours", 10), meter)
    assert meter.faults[0] == "0 frames of 20"


def test_messages_that_come_are_counted_and_some_looked_at() -> None:
    meter = Meter()
    tasting = Tasting(Task("amqp-consume", "ours", 3))
    assert [tasting.take(description(number)) for number in (0, 1)] == [False, False]
    tasting.look(meter)
    assert meter.faults == ["2 messages received"]
    assert tasting.take(b"")
    another = Tasting(Task("amqp-consume", "ours", 1))
    another.take(description(5))
    another.look(meter)
    assert meter.faults == ["2 messages received", "message 0 is another"]


def test_objects_that_are_missing_or_others_are_noticed(tmp_path: Path) -> None:
    stage = Stage("s3-put", "put", (), 3, 64)
    for number in range(3):
        (tmp_path / Task.file_name(number)).write_bytes(content(number, 64))
    assert measuring.faults_of_files(tmp_path, stage) == []
    (tmp_path / Task.file_name(1)).write_bytes(content(0, 64))
    assert measuring.faults_of_files(tmp_path, stage) == [
        "file-000001.bin is missing, or has another content"
    ]
    (tmp_path / Task.file_name(2)).unlink()
    assert len(measuring.faults_of_files(tmp_path, stage)) == 3


def test_a_contender_that_is_not_installed_says_so() -> None:
    assert Contender("ours", "ledger", "ours").missing == ""
    missing = Contender("none", "none", "none", "no_such_package").missing
    assert missing.startswith("no_such_package is not installed")


def test_every_stage_has_ours_and_a_floor() -> None:
    for stage in STAGES:
        names = [each.name for each in stage.contenders]
        assert names[:2] == ["ours", "floor"]
        assert stage_named(stage.name).contender("ours").module


def test_a_description_has_about_400_bytes_and_is_another_for_each_number() -> None:
    bodies = {description(number) for number in range(100)}
    assert len(bodies) == 100
    assert all(350 <= len(body) <= 450 for body in bodies)
