"""A step that counts the words of every text."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING

from iterum_sidecar.step import config_file, transform

if TYPE_CHECKING:
    from iterum_sidecar.step import Fragment


@transform
def count_words(fragment: Fragment) -> None:
    """Make `NAME.json` of each text: how often which word is in it, less those that `left-out` lists."""
    left_out = set(config_file("left-out").read_text(encoding="utf-8").split())
    for file in fragment.files:
        words = re.findall(r"[a-z]+(?:-[a-z]+)*", file.path.read_text(encoding="utf-8").lower())
        counts = Counter(word for word in words if word not in left_out)
        # The custom metadata travels with the result to the next step.
        with fragment.create(f"{file.name}.json", custom={"words": len(words)}) as path:
            path.write_text(json.dumps(counts), encoding="utf-8")


if __name__ == "__main__":
    count_words.run()
