"""What was processed, counted as it happens and told once at the end, or whenever somebody asks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from iterum_sidecar.telemetry.stage_times import StageTimes

__all__ = ["Tally"]


@dataclass(slots=True)
class Tally:
    """Counts of one life of the sidecar; bytes and files are those that were moved to or from the store."""

    fragments: int = 0
    """Fragments that were acknowledged as processed."""
    outputs: int = 0
    files_in: int = 0
    bytes_in: int = 0
    files_out: int = 0
    bytes_out: int = 0
    dead_letters: int = 0
    dead_letters_by_kind: Counter[str] = field(default_factory=Counter)
    refused_results: int = 0
    late_results: int = 0
    stray_results: int = 0
    """Results that were dropped because they came of hand-outs that were over."""
    struck: int = 0
    given_back: int = 0
    repeated: int = 0
    """Deliveries that came again and were not worked again."""
    times: StageTimes = field(default_factory=StageTimes)

    def summary(self, seconds: float) -> dict[str, float]:
        """Return the fields of the last line of the log; what never happened is left out, but for the usual ones."""
        usual = {
            "fragments": self.fragments,
            "outputs": self.outputs,
            "files_in": self.files_in,
            "bytes_in": self.bytes_in,
            "files_out": self.files_out,
            "bytes_out": self.bytes_out,
            "dead_letters": self.dead_letters,
            "seconds": round(seconds, 3),
            "fragments_per_second": round(self.fragments / seconds, 1) if seconds > 0 else 0.0,
        }
        unusual = {
            "refused_results": self.refused_results,
            "late_results": self.late_results,
            "stray_results": self.stray_results,
            "struck": self.struck,
            "given_back": self.given_back,
            "repeated": self.repeated,
        }
        return usual | {name: number for name, number in unusual.items() if number}
