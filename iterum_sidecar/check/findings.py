"""What was looked at and what was found: plain data, and its two forms, text and JSON."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from iterum_sidecar.exit_codes import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["AREAS", "Finding", "Findings", "Outcome", "as_json", "as_text", "exit_code_of"]

#: The areas in the order in which they are told, and the exit code that a failure in each stands for.
AREAS = {
    "variables": ExitCode.CONFIGURATION,
    "volume": ExitCode.VOLUME,
    "broker": ExitCode.SERVICE,
    "store": ExitCode.SERVICE,
    "manager": ExitCode.MANAGER,
}

#: Characters; a peer's words may be of any length.
_LONGEST_DETAIL = 500


class Outcome(StrEnum):
    """How a look ended. FAILED alone changes the exit code, and is the one in capitals: it is what to look for."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "FAILED"
    UNKNOWN = "unknown"


class Finding(Struct, frozen=True):
    """One look: at what, how it ended, what was found, and what mends it (empty where nothing is to be done)."""

    area: str
    subject: str
    outcome: Outcome
    detail: str
    remedy: str = ""


class Findings:
    """The findings of one area, in the order in which they came; `all` is there at any time, also half-way."""

    def __init__(self, area: str) -> None:
        self._area = area
        self.all: list[Finding] = []

    def ok(self, subject: str, detail: str) -> None:
        """Add that something is as it should be."""
        self._add(subject, Outcome.OK, detail, "")

    def warning(self, subject: str, detail: str, remedy: str) -> None:
        """Add what `run` can work with, and somebody should look at."""
        self._add(subject, Outcome.WARNING, detail, remedy)

    def failed(self, subject: str, detail: str, remedy: str) -> None:
        """Add what `run` cannot work with."""
        self._add(subject, Outcome.FAILED, detail, remedy)

    def unknown(self, subject: str, detail: str, remedy: str = "") -> None:
        """Add what could not be looked at."""
        self._add(subject, Outcome.UNKNOWN, detail, remedy)

    def _add(self, subject: str, outcome: Outcome, detail: str, remedy: str) -> None:
        self.all.append(
            Finding(self._area, _one_line(subject), outcome, _one_line(detail), _one_line(remedy))
        )


def exit_code_of(findings: Iterable[Finding]) -> ExitCode:
    """Return the code of the first area (in the order of AREAS) in which something failed, or DONE."""
    failed = {finding.area for finding in findings if finding.outcome is Outcome.FAILED}
    return next((code for area, code in AREAS.items() if area in failed), ExitCode.DONE)


def as_text(findings: Sequence[Finding]) -> str:
    """Return the findings in aligned columns, a line each and one more for a remedy, and a line that sums them up."""
    area_width = max((len(finding.area) for finding in findings), default=0)
    subject_width = max((len(finding.subject) for finding in findings), default=0)
    indent = " " * (len(Outcome.WARNING) + 2)
    lines: list[str] = []
    for finding in findings:
        lines.append(
            f"{finding.outcome:<{len(Outcome.WARNING)}}  {finding.area:<{area_width}}"
            f"  {finding.subject:<{subject_width}}  {finding.detail}"
        )
        if finding.remedy:
            lines.append(f"{indent}-> {finding.remedy}")
    counts = _counts(findings)
    told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in Outcome)
    return "\n".join([*lines, "", f"{told}; exit code {int(exit_code_of(findings))}", ""])


def as_json(findings: Sequence[Finding]) -> str:
    """Return the findings and their summary as one JSON object on one line."""
    counts = _counts(findings)
    summary = {outcome.value: counts[outcome] for outcome in Outcome}
    whole = {
        "findings": findings,
        "summary": summary | {"exit_code": int(exit_code_of(findings))},
    }
    return msgspec.json.encode(whole).decode() + "\n"


def _counts(findings: Iterable[Finding]) -> Counter[Outcome]:
    return Counter(finding.outcome for finding in findings)


def _one_line(text: str) -> str:
    """Keep a stranger's words from filling the terminal, from writing lines of their own, and from steering it."""
    text = " ".join(text.split())
    return "".join(char if char.isprintable() else "?" for char in text)[:_LONGEST_DETAIL]
