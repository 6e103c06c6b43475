"""What a soak reads in the logs."""

from __future__ import annotations

import json

from .logs import faults_of_log


def line(severity: str, message: str, **fields: str) -> str:
    return json.dumps({"severity": severity, "message": message, **fields})


def test_a_fault_of_the_world_is_told_in_lines() -> None:
    lines = [
        "told to stop before anything was begun",
        line("INFO", "at work"),
        line("WARNING", "waiting for the broker", reason="it is away"),
        line("ERROR", "fragments were dead-lettered"),
    ]
    assert faults_of_log("a-1", 0, "\n".join(lines)) == []


def test_a_traceback_is_a_fault_whether_it_is_logged_or_printed() -> None:
    logged = line("ERROR", "a fault of the sidecar itself", traceback="Traceback (most …")
    assert len(faults_of_log("a-1", 143, logged)) == 1
    printed = "Traceback (most recent call last):\n  File …\nValueError"
    assert len(faults_of_log("a-1", None, printed)) == 3


def test_an_error_tells_of_an_end_that_was_not_well() -> None:
    told = line("ERROR", "10 s were not enough")
    assert faults_of_log("a-1", 16, told) == []
    assert len(faults_of_log("a-1", 0, told)) == 1


def test_a_long_traceback_is_told_in_a_few_lines() -> None:
    assert len(faults_of_log("a-1", 1, "no event\n" * 100)) == 6
