"""A file as the function sees it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["File"]


class File:
    """A file of a fragment or of a result. It may be given to whatever takes a path."""

    __slots__ = ("_path", "name")

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        """Its logical name, by which the next steps know it; may hold a `/`."""
        self._path = path

    @property
    def path(self) -> Path:
        """Where it lies on this machine. An input file may be changed in place; it is this step's own copy."""
        return Path(self._path)

    def __fspath__(self) -> str:
        return self._path

    def __repr__(self) -> str:
        return f"<File {self.name!r} at {self._path}>"
