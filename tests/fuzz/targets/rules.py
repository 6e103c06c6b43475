"""The contract's rules for names, IDs and metadata, written a second time and without haste."""

from __future__ import annotations

import json
import posixpath
import string
from contextlib import suppress

__all__ = ["check_custom", "check_names", "is_id"]

_ID_CHARACTERS = set(string.ascii_letters + string.digits + "_-")


def is_id(value: object) -> bool:
    """Tell whether a value is a fragment's ID."""
    return isinstance(value, str) and len(value) == 64 and _ID_CHARACTERS.issuperset(value)


def check_names(names: list[str]) -> None:
    """Assert that a file system could hold files of these names together, each below a directory of the sidecar's."""
    assert names
    directories: set[str] = set()
    for name in names:
        below = posixpath.normpath(posixpath.join("/workspace", name))
        assert below == f"/workspace/{name}", f"{name!r} is not the plain way to a file"
        assert below.startswith("/workspace/")
        assert "\0" not in name
        assert len(name.encode()) <= 4095
        parts = name.split("/")
        assert all(len(part.encode()) <= 255 for part in parts)
        directories.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    assert len(set(names)) == len(names)
    assert not directories.intersection(names)


def check_custom(custom: bytes) -> None:
    """Assert that metadata is JSON that another reader takes, or nothing."""
    if custom:
        with suppress(RecursionError):  # ours goes deeper than Python's
            json.loads(custom)
