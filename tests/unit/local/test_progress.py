from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iterum_sidecar.local.progress import (
    Rates,
    RunProgress,
    StepProgress,
    as_rate,
    as_size,
    as_time,
    count,
    in_one_line,
    picture,
    printable,
)


def step(**fields: object) -> StepProgress:
    made = StepProgress("edges", state="works", in_work=1)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def noted(*samples: tuple[float, int], **fields: object) -> tuple[Rates, StepProgress]:
    rates, made = Rates(), step(**fields)
    for now, done in samples:
        made.done = done
        rates.note(made, now)
    return rates, made


# -- how fast


def test_a_rate_is_that_of_the_last_five_seconds() -> None:
    rates, made = noted(*((float(second), 100 * second) for second in range(11)), (15.0, 1050))
    assert rates.rate(made, 15.0) == pytest.approx(10)


def test_there_is_no_rate_before_there_is_something_to_tell() -> None:
    rates, made = noted((0.0, 0), (0.2, 3))
    assert rates.rate(made, 0.2) is None
    assert rates.rate(StepProgress("another"), 0.2) is None


def test_a_step_that_stalls_is_seen_to_stall() -> None:
    rates, made = noted((0.0, 0), (1.0, 100), (6.0, 100), (7.0, 100))
    assert rates.rate(made, 7.0) == 0


def test_what_a_step_waited_does_not_make_it_slow() -> None:
    rates, made = noted((0.0, 0), (59.9, 0), in_work=0)
    made.in_work = 1
    for now, done in ((60.0, 0), (61.0, 10)):
        made.done = done
        rates.note(made, now)
    assert rates.rate(made, 61.0) == pytest.approx(10, rel=0.1)


def test_a_failed_fragment_is_finished_too() -> None:
    rates, made = noted((0.0, 0))
    made.failed = 4
    rates.note(made, 2.0)
    assert rates.rate(made, 2.0) == 2


def test_samples_do_not_pile_up() -> None:
    rates, made = noted(*((index / 1000, index) for index in range(20_000)))
    assert len(rates._samples["edges"]) < 100
    assert rates.rate(made, 20.0) == pytest.approx(1000, rel=0.05)


# -- time left


def test_time_left_is_what_remains_at_the_present_rate() -> None:
    rates, made = noted((0.0, 0), (5.0, 50), expected=150)
    assert rates.time_left(made, 5.0) == pytest.approx(10)


def test_what_earlier_runs_did_need_not_be_done() -> None:
    rates, made = noted((0.0, 0), (5.0, 50), expected=150, done_before=90)
    assert rates.time_left(made, 5.0) == pytest.approx(1)


def test_time_left_is_unknown_while_it_is_not_known_what_will_come() -> None:
    rates, made = noted((0.0, 0), (5.0, 50))
    assert rates.time_left(made, 5.0) is None


def test_a_slow_step_is_judged_by_all_that_it_did() -> None:
    # One fragment in 30 s: in most windows none is finished.
    rates, made = noted(*((float(second), second // 30) for second in range(105)), expected=10)
    assert rates.rate(made, 104.0) == 0
    assert rates.time_left(made, 104.0) == pytest.approx(7 * 104 / 3)


def test_nothing_is_left_when_all_is_finished_or_the_step_has_ended() -> None:
    rates, made = noted((0.0, 0), (5.0, 9), expected=10, in_work=0)
    made.failed = 1
    assert rates.time_left(made, 5.0) == 0
    assert rates.time_left(step(state="ended"), 5.0) == 0


def test_what_is_there_is_never_less_than_what_remains() -> None:
    assert step(expected=5, done=5, waiting=3, in_work=1).remaining == 4


# -- the picture and the line


def plain(lines: list[list[tuple[str, str]]]) -> list[str]:
    return ["".join(text for text, _ in line) for line in lines]


COUNTS = st.integers(0, 10**7)
STEPS = st.builds(
    StepProgress,
    name=st.from_regex(r"[a-z0-9-]{1,63}", fullmatch=True),
    instances=st.integers(1, 500),
    waiting=COUNTS,
    in_work=COUNTS,
    done=COUNTS,
    failed=COUNTS,
    done_before=COUNTS,
    files=COUNTS,
    bytes=st.integers(0, 2**60),
    restarts=st.integers(0, 100),
    state=st.sampled_from(["waits", "works", "ended", "skipped", "broken"]),
    expected=st.none() | COUNTS,
)


@given(steps=st.lists(STEPS, max_size=30), width=st.integers(40, 250), height=st.integers(5, 60))
def test_the_picture_fits_whatever_is_in_it(
    steps: list[StepProgress], width: int, height: int
) -> None:
    lines = plain(picture(RunProgress("x", steps=steps), Rates(), 0.0, 1.0, (width, height)))
    assert len(lines) < height
    assert all(len(line) < width for line in lines[1:])
    assert len({len(line) for line in lines[2 : 2 + min(len(steps), height - 4)]}) <= 1


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (20, "step done"),
        (40, "step done left"),
        (50, "step in work done left"),
        (60, "step waiting in work done left"),
        (80, "step waiting in work done failed files rate left"),
        (120, "step waiting in work done failed files size rate left"),
    ],
)
def test_columns_are_lost_in_the_order_of_their_use(width: int, titles: str) -> None:
    run = RunProgress("x", steps=[step(expected=100)])
    lines = plain(picture(run, Rates(), 0.0, 1.0, (width, 24)))
    assert " ".join(lines[1].split()) == titles
    assert ("─" in lines[2]) == (width >= 40)


def test_failures_and_restarts_keep_their_columns_longer() -> None:
    run = RunProgress("x", steps=[step(failed=1, restarts=2)])
    assert "failed" in plain(picture(run, Rates(), 0.0, 1.0, (60, 24)))[1]
    assert "restarts" in plain(picture(run, Rates(), 0.0, 1.0, (100, 24)))[1]


def test_steps_at_work_are_shown_rather_than_others() -> None:
    steps = [StepProgress(f"s{index}", state="ended") for index in range(20)]
    steps[13].state, steps[17].state = "works", "broken"
    lines = plain(picture(RunProgress("x", steps=steps), Rates(), 0.0, 1.0, (80, 8)))
    assert [line.split()[0] for line in lines[2:-1]] == ["s0", "s1", "s13", "s17"]
    assert lines[-1] == "and 16 more steps"
    whole = plain(picture(RunProgress("x", steps=steps), Rates(), 0.0, 1.0, (80, None)))
    assert len(whole) == 22


def bar(**fields: object) -> list[tuple[str, str]]:
    run = RunProgress("x", steps=[step(**fields)])
    line = picture(run, Rates(), 0.0, 1.0, (200, 24), "#-")[2]
    return [part for part in line if part[0] and not set(part[0]) - set("#-")]


def test_a_bar_shows_what_was_done_before_done_and_failed() -> None:
    assert bar(expected=100, done_before=25, done=50, failed=10) == [
        ("#" * 10, "cyan"),
        ("#" * 20, "green"),
        ("#" * 4, "red"),
        ("-" * 6, "dim"),
    ]


def test_a_bar_is_full_only_when_all_is_done_and_shows_a_single_failure() -> None:
    assert bar(expected=100_000, done=99_999)[-1] == ("-", "dim")
    assert ("#", "red") in bar(expected=100_000, done=5, failed=1)


def test_a_bar_whose_end_is_not_known_is_faint() -> None:
    assert bar(done=5, waiting=4)[0] == ("#" * 20, "dim")


def test_a_line_tells_of_steps_at_work_first() -> None:
    run = RunProgress(
        "x",
        steps=[
            StepProgress("thumbs", state="ended", done=9),
            step(done=12, done_before=8, expected=36, failed=1),
            StepProgress("sheet"),
        ],
        results=20,
        results_before=8,
        failed=1,
    )
    line = in_one_line(run, Rates(), 0.0)
    assert line == ("edges 20 of 36, 1 failed; sheet waiting; thumbs ended; 28 results; 1 failed")


def test_a_line_tells_rate_and_time_left() -> None:
    rates, made = noted((0.0, 0), (5.0, 40), expected=100)
    line = in_one_line(RunProgress("x", steps=[made]), rates, 5.0)
    assert line.startswith("edges 40 of 100, 8.0/s, 8 s left;")


def test_a_line_of_many_steps_counts_those_that_do_nothing() -> None:
    run = RunProgress("x", steps=[StepProgress(f"s{index}") for index in range(9)])
    assert in_one_line(run, Rates(), 0.0) == "9 steps waiting; 0 results"


# -- words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0.1 s"), (3.24, "3.2 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"),
     (3599.7, "1 h 0 min"), (7500, "2 h 5 min"), (3600 * 76, "3 d 4 h")],
)  # fmt: skip
def test_time_for_people(seconds: float, words: str) -> None:
    assert as_time(seconds) == words


def test_whole_seconds_for_people() -> None:
    assert [as_time(each, whole=True) for each in (0, 3.2, 75)] == ["0 s", "3 s", "1 min 15 s"]


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (1536, "1.5 KiB"), (340 * 2**20, "340 MiB"),
     (2**30 - 1, "1.0 GiB"), (int(1.2 * 2**30), "1.2 GiB"), (2**60, "1024 PiB")],
)  # fmt: skip
def test_sizes_for_people(size: int, words: str) -> None:
    assert as_size(size) == words


@pytest.mark.parametrize(
    ("rate", "words"), [(0, "0.0/s"), (0.4, "24/min"), (1, "1.0/s"), (8.31, "8.3/s"), (120.4, "120/s")]
)  # fmt: skip
def test_rates_for_people(rate: float, words: str) -> None:
    assert as_rate(rate) == words


def test_one_thing_has_no_plural() -> None:
    assert (count(1, "file"), count(0, "file"), count(2, "it is", "they are")) == (
        "1 file", "0 files", "2 they are",
    )  # fmt: skip


@given(st.text())
def test_no_text_can_steer_a_terminal(text: str) -> None:
    bad = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]"
    assert re.search(bad, printable(text)) is None
    assert re.search(bad, printable(text, lines=True).replace("\n", "")) is None


def test_what_cannot_be_seen_is_told_and_lines_stay_where_wished() -> None:
    assert printable("a\x1b[2K\n\udcff é") == "a\\x1b[2K\\x0a\\udcff é"
    assert printable("a\x1b[2K\nb\tc", lines=True) == "a\\x1b[2K\nb   c"
