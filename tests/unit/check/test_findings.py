from __future__ import annotations

import json

import pytest

from iterum_sidecar.check.findings import AREAS, Findings, as_json, as_text, exit_code_of
from iterum_sidecar.exit_codes import ExitCode


def some() -> Findings:
    findings = Findings("broker")
    findings.ok("name", "localhost is 127.0.0.1")
    findings.failed("login", "403 refused", "mend the password")
    return findings


def test_text_is_aligned_and_a_remedy_stands_below_what_was_found() -> None:
    volume = Findings("volume")
    volume.warning("free space", "1 MiB", "make room")
    volume.unknown("queues", "not looked at")
    assert as_text([*volume.all, *some().all]).splitlines() == [
        "warning  volume  free space  1 MiB",
        "         -> make room",
        "unknown  volume  queues      not looked at",
        "ok       broker  name        localhost is 127.0.0.1",
        "FAILED   broker  login       403 refused",
        "         -> mend the password",
        "",
        "1 ok, 1 warning, 1 FAILED, 1 unknown; exit code 12",
    ]


def test_nothing_found_is_told_too() -> None:
    assert as_text([]) == "\n0 ok, 0 warning, 0 FAILED, 0 unknown; exit code 0\n"


def test_json_is_one_object_on_one_line() -> None:
    text = as_json(some().all)
    assert text.count("\n") == 1
    assert json.loads(text) == {
        "findings": [
            {
                "area": "broker",
                "subject": "name",
                "outcome": "ok",
                "detail": "localhost is 127.0.0.1",
                "remedy": "",
            },
            {
                "area": "broker",
                "subject": "login",
                "outcome": "FAILED",
                "detail": "403 refused",
                "remedy": "mend the password",
            },
        ],
        "summary": {"ok": 1, "warning": 0, "FAILED": 1, "unknown": 0, "exit_code": 12},
    }


@pytest.mark.parametrize("area", AREAS)
def test_warnings_and_what_is_unknown_fail_nothing(area: str) -> None:
    findings = Findings(area)
    findings.warning("this", "that", "so")
    findings.unknown("this", "that")
    assert exit_code_of(findings.all) is ExitCode.DONE


def test_the_code_is_that_of_the_first_area_that_failed() -> None:
    found = []
    for area in reversed(AREAS):
        findings = Findings(area)
        findings.failed("this", "that", "so")
        found += findings.all
        assert exit_code_of(found) is AREAS[area]


def test_a_strangers_words_stay_on_their_line_and_steer_no_terminal() -> None:
    findings = Findings("store")
    findings.failed("bucket", "bad\nnews \x1b[31m" + "x" * 10_000, "")
    (finding,) = findings.all
    assert finding.detail.startswith("bad news ?[31mxxx")
    assert len(finding.detail) == 500
