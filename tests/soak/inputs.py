"""The inputs of a soak, each derived from its number: nothing of them need be kept."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import random
from typing import TYPE_CHECKING, Final

from testbed.contents import content
from testbed.fragments import RemoteFile, RemoteFragment

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["POISON", "Input", "Nature", "input_of"]

#: The name of a file on which the step dies.
POISON: Final = "poison"
MEBIBYTE: Final = 1 << 20


class Nature(enum.Enum):
    """What an input is, and so what has to become of it: an output, or a dead letter."""

    GOOD = "good"
    MALFORMED = "not a fragment"
    MISSING = "its object is not there"
    POISON = "the step dies on it"


@dataclasses.dataclass(frozen=True)
class Input:
    """One input."""

    number: int
    nature: Nature
    fragment: RemoteFragment
    sizes: tuple[int, ...]
    body: bytes

    def content(self, position: int) -> bytes:
        """Return what is in one of its files."""
        return content(8 * self.number + position, self.sizes[position])


def input_of(seed: int, number: int, bucket: str) -> Input:
    """Return the input of a number."""
    draw = random.Random(f"{seed} {number}")
    nature = _nature(number)
    sizes = tuple(_size(draw) for _ in range(draw.choice((1, 1, 1, 1, 2, 2, 4))))
    fragment_id = hashlib.sha256(f"soak {seed} {number}".encode()).hexdigest()
    names = [f"{number}-{position}.bin" for position in range(len(sizes))]
    if draw.random() < 0.1:
        names[-1] = f"below/{names[-1]}"
    if nature is Nature.POISON:
        names[0] = POISON
    files = tuple(RemoteFile(name, f"iterum_data/{fragment_id}/{name}", bucket) for name in names)
    fragment = RemoteFragment(fragment_id, files)
    body = fragment.body()
    if nature is Nature.MALFORMED:
        body = draw.choice(MALFORMED)(fragment)
    return Input(number, nature, fragment, sizes, body)


def _nature(number: int) -> Nature:
    """Return what a number is; bad ones never follow each other so closely that intake would pause for them."""
    if number % 300 == 40:
        return Nature.POISON
    if number % 90 == 17:
        return Nature.MALFORMED
    if number % 90 == 62:
        return Nature.MISSING
    return Nature.GOOD


def _size(draw: random.Random) -> int:
    chance = draw.random()
    if chance < 0.08:
        return 0
    if chance < 0.96:
        return draw.randint(1, 4096)
    if chance < 0.995:
        return draw.randint(4096, MEBIBYTE // 4)
    return 2 * MEBIBYTE


def _with(fragment: RemoteFragment, **changes: object) -> bytes:
    return json.dumps({**fragment.description(), **changes}).encode()


#: Ways of being no fragment. Each message has its ID in it somewhere, so that it can be told from others.
MALFORMED: Final[tuple[Callable[[RemoteFragment], bytes], ...]] = (
    lambda fragment: b"not JSON " + fragment.fragment_id.encode(),
    lambda fragment: fragment.body()[:-3],
    lambda fragment: _with(fragment, files=[]),
    lambda fragment: _with(fragment, metadata={"fragment_id": fragment.fragment_id[:63]}),
    lambda fragment: _with(
        fragment, files=[dataclasses.asdict(file) for file in fragment.files] * 2
    ),
    lambda fragment: _with(
        fragment, files=[{**dataclasses.asdict(file), "name": "../up"} for file in fragment.files]
    ),
)
