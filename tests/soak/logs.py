"""What may not be in the log of a sidecar, whatever the world does to it."""

from __future__ import annotations

import json
from typing import Final

__all__ = ["faults_of_log"]

#: Lines of one log that are told, of those that may not be there.
MOST_LINES: Final = 5
#: What is said of a stop before there is a log.
EARLY: Final = "told to stop before anything was begun"
#: Errors in the log of a life that ended well, which may be there.
ERRORS_ALLOWED: Final = ("fragments were dead-lettered",)


def faults_of_log(name: str, code: int | None, text: str) -> list[str]:
    """Return what may not be in the log of a life that ended with `code`: tracebacks, errors for no end, lines that are no events."""
    lines = [line for line in text.splitlines() if line != EARLY and _is_wrong(line, code)]
    faults = [f"log of {name}: {line}" for line in lines[:MOST_LINES]]
    if len(lines) > MOST_LINES:
        faults.append(f"log of {name}: {len(lines) - MOST_LINES} more such lines")
    return faults


def _is_wrong(line: str, code: int | None) -> bool:
    try:
        event = json.loads(line)
    except ValueError:
        return True
    is_error = event["severity"] == "ERROR" and event["message"] not in ERRORS_ALLOWED
    return "traceback" in event or "Traceback" in line or (is_error and code == 0)
