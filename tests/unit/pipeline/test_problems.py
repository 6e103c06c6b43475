from __future__ import annotations

import pytest

from iterum_sidecar.pipeline.problems import Findings, did_you_mean, report, shown


def test_a_report_has_a_block_for_each_problem_in_the_order_of_the_file() -> None:
    findings = Findings("pipeline.json")
    findings.error(("config", "a key", "b"), "is late", "move it")
    findings.warn(("steps", 1, "name"), "is long", "shorten it")
    findings.error(("steps", 10, "name"), "is tenth", "leave it")
    findings.error(("steps", 1, "command"), "is no list", "make it one")
    findings.error(("combiner", "input_channel"), "is dry", "feed it")
    findings.error(("fragmenter",), "is odd", "even it out")
    findings.error((), "is old", "renew it")
    findings.error(("name",), "is short", "lengthen it")
    text = report(findings)
    assert text.split("\n\n") == [
        "pipeline.json\n  error: is old\n  remedy: renew it",
        "pipeline.json: name\n  error: is short\n  remedy: lengthen it",
        "pipeline.json: fragmenter\n  error: is odd\n  remedy: even it out",
        "pipeline.json: steps[1].command\n  error: is no list\n  remedy: make it one",
        "pipeline.json: steps[1].name\n  warning: is long\n  remedy: shorten it",
        "pipeline.json: steps[10].name\n  error: is tenth\n  remedy: leave it",
        "pipeline.json: combiner.input_channel\n  error: is dry\n  remedy: feed it",
        'pipeline.json: config."a key".b\n  error: is late\n  remedy: move it',
        "7 errors, 1 warning",
    ]


def test_a_report_of_nothing_is_empty() -> None:
    assert report([]) == ""


def test_the_nearest_name_is_suggested_and_never_the_name_itself() -> None:
    assert did_you_mean("edegs", ["edges", "images"]) == 'did you mean "edges"? Otherwise '
    assert did_you_mean("edges", ["edges"]) == ""
    assert did_you_mean("quite else", ["edges"]) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (0, "0"),
        (2.5, "2.5"),
        ("größe", '"größe"'),
        ({"a": 1}, "an object"),
        ([1], "a list"),
        ("\x1b[31m\n\u202e\x9b", '"\\u001b[31m\\n\ufffd\ufffd"'),
        ("\ud800", '"\ufffd"'),
    ],
)
def test_a_value_is_shown_as_the_file_has_it_and_moves_no_terminal(
    value: object, text: str
) -> None:
    assert shown(value) == text


def test_a_long_value_is_cut() -> None:
    assert len(shown("x" * 1000)) == 60
