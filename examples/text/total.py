"""A step that gathers: the words of all texts together, and how long each text is."""

from __future__ import annotations

import csv
import json
from collections import Counter
from typing import TYPE_CHECKING

from iterum_sidecar.step import transform

if TYPE_CHECKING:
    from pathlib import Path

    from iterum_sidecar.step import Batch


@transform(gather="all")
def total(batch: Batch) -> None:
    """Make `words.csv`, the most frequent first, and `texts.csv`, the longest first."""
    counts: Counter[str] = Counter()
    texts: Counter[str] = Counter()
    for fragment in batch:
        (file,) = fragment.files
        counts.update(json.loads(file.path.read_text(encoding="utf-8")))
        texts[file.name.removesuffix(".json")] = fragment.custom["words"]
    with batch.create("words.csv") as path:
        write_table(path, ("word", "times"), counts)
    with batch.create("texts.csv") as path:
        write_table(path, ("text", "words"), texts)


def write_table(path: Path, heads: tuple[str, str], numbers: Counter[str]) -> None:
    """Write a table of two columns: the largest number first, and where two are equal by the alphabet."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(heads)
        by_number = sorted(numbers.items(), key=lambda row: (-row[1], row[0]))
        table.writerows(by_number)


if __name__ == "__main__":
    total.run()
