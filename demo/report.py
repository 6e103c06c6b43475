"""What the demo prints: a row for every fragment, and a summary."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from testbed.fragments import RemoteFragment

__all__ = ["Row", "summary", "table"]

HEADING = ("fragment", "input", "result", "object key", "lineage", "seconds")
ID_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Row:
    """One output: the input that it was made of, and the lineage message that tells so."""

    source: RemoteFragment
    output: RemoteFragment
    lineage: str

    def cells(self) -> list[tuple[str, ...]]:
        """Return one line of cells for each file of the output; what is the same for all stands in the first."""
        lines: list[tuple[str, ...]] = []
        for file in self.output.files:
            key = file.path.replace(
                self.output.fragment_id, f"{self.output.fragment_id[:ID_SHOWN]}…"
            )
            lines.append(("", "", file.name, key, "", ""))
        source = self.source.files[0].name
        seconds = str((self.output.custom or {}).get("seconds", ""))
        identity = f"{self.output.fragment_id[:ID_SHOWN]}…"
        lines[0] = (identity, source, lines[0][2], lines[0][3], self.lineage, seconds)
        return lines


def table(rows: Sequence[Row]) -> str:
    """Return the rows under a heading, in columns as wide as they need to be."""
    lines = [HEADING, *(cells for row in rows for cells in row.cells())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADING))]
    ruler = "─" * (sum(widths) + 2 * (len(widths) - 1))
    printed = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([printed[0], ruler, *printed[1:]])


def summary(rows: Sequence[Row], seconds: float, results: Path) -> str:
    """Return what it comes to."""
    files = sum(len(row.output.files) for row in rows)
    return (
        f"{len(rows)} fragments became {files} files in {seconds:.1f} s; every one is uploaded, published, told to"
        f" the lineage\nqueue, and acknowledged, and nothing is left in the input queue or on the volume."
        f" Look at {results}/"
    )
