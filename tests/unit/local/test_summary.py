from __future__ import annotations

import json
from typing import Any

import pytest

from iterum_sidecar.local import summary as summaries
from iterum_sidecar.local.summary import (
    Failure,
    Outcome,
    Places,
    Renamed,
    StepSummary,
    Summary,
    text,
)

PLACES = Places("results/", "results/logs/", "results/lineage.jsonl", "results/failed/")


def made(outcome: Outcome = "done", **fields: object) -> Summary:
    usual: dict[str, Any] = {
        "pipeline": "images",
        "outcome": outcome,
        "seconds": 3.21,
        "first_fragments": 24,
        "results_new": 49,
        "results_before": 0,
        "places": PLACES,
        "exit_code": 0,
        "steps": [StepSummary("edges", 24, 0, 0, 24), StepSummary("sheet", 1, 0, 0, 1)],
    }
    return Summary(**(usual | fields))


def failures(number: int) -> list[Failure]:
    return [Failure("edges", [f"{n}.jpg"], "why", f"failed/{n}/") for n in range(number)]


def test_a_run_that_went_well_is_told_in_a_line_and_its_places() -> None:
    assert text(made()) == (
        "24 fragments became 49 files in 3.2 s.\n"
        "\n"
        "results  results/\n"
        "logs     results/logs/\n"
        "lineage  results/lineage.jsonl"
    )


@pytest.mark.parametrize(
    ("summary", "line"),
    [
        (made(first_fragments=1, results_new=1), "1 fragment became 1 file in 3.2 s."),
        (
            made(results_new=19, results_before=30),
            "24 fragments became 49 files, 19 of them new, in 3.2 s.",
        ),
        (
            made("nothing to do", results_new=0, results_before=49),
            "Nothing to do: 24 fragments, and 49 results are there from earlier runs.",
        ),
        (
            made("nothing to do", first_fragments=0, results_new=0),
            "Nothing to do: the input gave no fragment.",
        ),
        (
            made("done with failures", failures=failures(1)),
            "24 fragments became 49 files in 3.2 s, but 1 fragment failed.",
        ),
        (
            made("interrupted", results_new=12),
            "Interrupted after 3.2 s: 24 fragments, 12 results so far.",
        ),
        (
            made("failed", reason="step edges died 5 times in a row"),
            "Failed after 3.2 s: step edges died 5 times in a row.",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_first_line_says_how_it_went(summary: Summary, line: str) -> None:
    assert text(summary).splitlines()[0] == line


def test_steps_are_told_when_the_first_line_is_not_the_whole_truth() -> None:
    steps = [StepSummary("edges", 20, 4, 1, 24), StepSummary("contact-sheet", 0, 0, 0, 0)]
    told = "  edges          20 done, 4 done by earlier runs, 1 failed\n  contact-sheet  0 done\n"
    assert told in text(made("interrupted", steps=steps))
    assert told in text(made("done", steps=steps))
    assert told not in text(made("nothing to do", steps=steps))
    assert "edges " not in text(made())


def test_a_failure_has_its_files_reason_and_place() -> None:
    failure = Failure(
        "edges", ["a.jpg", "b c.jpg", "d.jpg", "e.jpg"], "ValueError: bad\n  image", "r/failed/1/"
    )
    assert (
        "Failed, each with its input files, the reason and the last lines of the log:\n"
        "  edges: a.jpg, b c.jpg, d.jpg … and 1 more\n"
        "    ValueError: bad image\n"
        "    r/failed/1/\n"
    ) in text(made("done with failures", failures=[failure]))


def test_the_folder_of_failures_is_told_only_when_there_are_some() -> None:
    assert "failed   results/failed/" in text(made("done with failures", failures=failures(1)))
    assert "results/failed/" not in text(made())


def test_a_long_or_missing_reason_does_not_fill_the_screen() -> None:
    long = Failure("edges", ["a"], "xy z " * 5000, "p")
    none = Failure("edges", ["b"], "", "p")
    shown = text(made("done with failures", failures=[long, none]))
    assert len(shown) < 1000
    assert "…" in shown
    assert "no reason was given" in shown


def test_lists_are_cut_at_ten() -> None:
    names = [f"{n}.png" for n in range(24)]
    shown = text(
        made(
            "done with failures",
            failures=failures(24),
            renamed=[Renamed(name, f"x-{name}", ["a"], "that of b") for name in names],
            stale=names,
            pruned=names,
        ),
        110,
    )
    assert shown.count("… and 14 more") == 4
    assert "9.jpg" in shown
    assert "10.jpg" not in shown


def test_a_list_of_ten_is_whole() -> None:
    assert "more" not in text(made(stale=[f"{n}.png" for n in range(10)]))


def test_renamed_results_have_both_names() -> None:
    shown = text(made(renamed=[Renamed("a b.png", "a b-1f3c.png", ["2.jpg"], "that of 1.jpg")]))
    assert "1 result has another name" in shown
    assert "  a b.png of 2.jpg -> a b-1f3c.png (taken by that of 1.jpg)\n" in shown


def test_results_that_are_out_of_date_are_told_with_the_remedy() -> None:
    shown = text(made(stale=["a.png", "b.png", "c.png"]))
    assert (
        "3 results are out of date: this run would not make them (kept; --prune removes\n"
        "  them): a.png, b.png, c.png\n"
    ) in shown
    assert (
        "1 result is out of date: this run would not make it (kept; --prune removes it):\n  a.png"
    ) in text(made(stale=["a.png"]))
    assert "1 result that was out of date was removed: a.png" in text(made(pruned=["a.png"]))
    assert "2 results that were out of date were removed: a, b" in text(made(pruned=["a", "b"]))


def test_a_step_that_made_nothing_at_all_is_asked_about() -> None:
    steps = [StepSummary("edges", 8, 4, 0, 0), StepSummary("sheet", 0, 0, 0, 0)]
    asked = (
        "edges made nothing of 12 fragments: does its function create, return or yield\n"
        "  its results?"
    )
    assert asked in text(made(steps=steps))
    assert asked in text(made("nothing to do", steps=steps))
    assert "sheet made" not in text(made(steps=steps))


@pytest.mark.parametrize("outcome", ["interrupted", "failed"])
def test_a_step_that_was_stopped_is_not_asked_about(outcome: Outcome) -> None:
    assert "made nothing" not in text(made(outcome, steps=[StepSummary("edges", 8, 0, 0, 0)]))


def test_a_step_whose_fragments_failed_is_not_asked_about() -> None:
    shown = text(made("done with failures", steps=[StepSummary("edges", 8, 0, 1, 0)]))
    assert "made nothing" not in shown


def test_a_failure_is_told_in_one_line_that_cannot_steer_a_terminal() -> None:
    files = ["a\nb\x1b[31m.txt", "c", "d", "e"]
    failure = Failure("edges", files, "ValueError: bad\x1b[31m\nimage", "p")
    assert failure.in_one_line == (
        "edges failed on a\\x0ab\\x1b[31m.txt, c, d … and 1 more: ValueError: bad\\x1b[31m"
    )
    assert Failure("edges", ["a"], "", "p").in_one_line == "edges failed on a: "


def test_how_to_go_on_is_the_last_word() -> None:
    shown = text(made("interrupted", how_to_go_on="The same command goes on.", state_bytes=2**20))
    assert shown.endswith("The same command goes on.")
    assert "kept     1.0 MiB" in shown


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal_unless_a_name_is(width: int) -> None:
    long = "x" * 300
    summary = made(
        "done with failures",
        failures=[Failure("edges", ["a.jpg"] * 5, "why it failed " * 20, "r/failed/1/")] * 3,
        renamed=[Renamed("a.png", "b.png", ["c.jpg"] * 9, "that of d.jpg")],
        stale=["some name.png"] * 30 + [long],
        pruned=[long],
        how_to_go_on="Words on how to go on " * 10,
        state_bytes=1,
    )
    lines = text(summary, width).splitlines()
    assert [line for line in lines if len(line) > width] == ["  " + long]


def test_no_name_can_steer_a_terminal_or_forge_a_line() -> None:
    bad = "a\x1b[31m\r\nforged"
    summary = made(
        "failed",
        reason=bad,
        places=Places(bad, bad, bad, bad),
        failures=[Failure("edges", [bad], bad, bad)],
        renamed=[Renamed(bad, bad, [bad], bad)],
        stale=[bad],
        pruned=[bad],
    )
    shown = text(summary)
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert not any(line.strip().startswith("forged") for line in shown.splitlines())


def test_json_has_everything_uncut_in_one_line_of_ascii() -> None:
    summary = made(
        "done with failures",
        failures=failures(24),
        renamed=[Renamed("é\n", "b", ["c"], "that of d")],
        stale=["\udcff", "\u2028"],
    )
    line = summaries.json(summary)
    assert line.isascii()
    assert "\n" not in line
    fields = json.loads(line)
    assert fields["failures"][23] == {
        "step": "edges", "files": ["23.jpg"], "reason": "why", "place": "failed/23/",
    }  # fmt: skip
    assert fields["steps"][0] == {
        "name": "edges", "done": 24, "done_before": 0, "failed": 0, "made": 24,
    }  # fmt: skip
    assert fields["renamed"] == [
        {"wanted": "é\n", "given": "b", "files": ["c"], "taken_by": "that of d"}
    ]
    assert fields["stale"] == ["\udcff", "\u2028"]
    assert fields["places"]["output"] == "results/"
    assert fields["how_to_go_on"] is None
    assert fields["exit_code"] == 0
