"""What a target is made of, and how its bytes are cut into the pieces in which a stream comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Target", "pieces_of"]


class Target(NamedTuple):
    """One entry of a stranger's bytes."""

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    """Bytes to begin with: good ones, bad ones, and all that has ever found a fault."""
    words: tuple[bytes, ...]
    """What the bytes are made of, for a fuzzer to put together."""
    says_json: bool = False
    """Whether the bytes are one JSON value, so that what it says can be changed."""


def pieces_of(data: bytes) -> Iterator[bytes]:
    """Yield the pieces in which all but the first byte of `data` comes; the first says how they are cut."""
    if not data:
        return
    size = (1, 2, 3, 7, 64, 1000, 65_536)[data[0] % 7]
    for start in range(1, len(data), size):
        yield data[start : start + size]
