"""The identity of an output fragment: derived from what made it, so that work done again names it the same."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["OutputIdentity"]


def _part(text: str) -> bytes:
    encoded = text.encode()
    return len(encoded).to_bytes(8, "big") + encoded


def _parts(texts: Sequence[str]) -> bytes:
    return len(texts).to_bytes(8, "big") + b"".join(map(_part, texts))


class OutputIdentity:
    """Derives the IDs of one step's outputs (contract, section 3).

    An ID is the SHA-256, as 64 hexadecimal digits, over: the pipeline hash, the step's name, the predecessors, the output
    channel, the names of the files, and the ordinal. A text counts as its length in 8 bytes, big-endian, and its
    UTF-8; a list as the number of its members in 8 bytes and then each of them; the absent channel as an empty list and a
    channel as a list of one; the ordinal as 8 bytes. So no two different descriptions read alike.
    """

    __slots__ = ("_origin",)

    def __init__(self, pipeline_hash: str, step: str) -> None:
        self._origin = sha256(_part(pipeline_hash) + _part(step))

    def derive(
        self, predecessors: Sequence[str], channel: str | None, names: Sequence[str], ordinal: int
    ) -> str:
        """Return the ID of the output with this `ordinal` among those that agree in all else.

        `predecessors` and `names` are given sorted, the former without repeats.
        """
        digest = self._origin.copy()
        digest.update(
            _parts(predecessors)
            + _parts([] if channel is None else [channel])
            + _parts(names)
            + ordinal.to_bytes(8, "big")
        )
        return digest.hexdigest()
