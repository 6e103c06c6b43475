"""One file of a result, where the volume is asked for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from iterum_sidecar.volume import TakenFile, Volume

__all__ = ["remove_result", "take"]


def take(volume: Volume, path: str, allowed: Collection[str] = ()) -> TakenFile:
    """Take one file."""
    taken: list[TakenFile] = []
    volume.take([path], taken, allowed)
    (one,) = taken
    return one


def remove_result(volume: Volume, taken: TakenFile) -> None:
    """Remove the own path of one file."""
    volume.remove_results([taken])
