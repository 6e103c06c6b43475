"""How many examples Hypothesis makes: seconds' worth in the suite, and FUZZ_TIMES as many where that is set."""

from __future__ import annotations

import os

__all__ = ["examples"]


def examples(count: int) -> int:
    """Return the number of examples of a test that makes `count` in the suite."""
    return count * int(os.environ.get("FUZZ_TIMES", "1"))
