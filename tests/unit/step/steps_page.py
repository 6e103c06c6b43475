"""`docs/steps.md` as the tests read it: its blocks, its sections, and what its tables name."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "steps.md"
CLIENT = ROOT / "iterum_sidecar" / "step"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@cache
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def told_anywhere(text: str) -> bool:
    """Whether the page says this, in however many lines."""
    return text in " ".join(page().split())


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page()) if found == language]


def programs() -> dict[str, str]:
    """Return the Python blocks by the file names in their first lines."""
    return {block.partition("\n")[0].removeprefix("# "): block for block in blocks("python")}


def section(title: str) -> str:
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", page(), re.MULTILINE | re.DOTALL)
    return str(text)


def first_cells(text: str) -> list[str]:
    return re.findall(r"^\| `?([^|`]+?)`? \|", text, re.MULTILINE)[1:]
