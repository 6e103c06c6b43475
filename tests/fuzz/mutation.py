"""Changes that a broken or hostile peer may make to a good message: to what it says, and to its bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

__all__ = ["changed", "changed_json", "damaged"]

#: What is put in the place of something else.
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 64, 1.5, 1e300, 2**63, 10**30, "", "x", "complete", [], {}, [[]], [None], {"": None}),
    *("a" * 64, "a" * 63, "a" * 65, "é" * 64, "a" * 63 + "\n", "../" * 20 + "etc/passwd", "/etc/passwd", ".", "..", "a/", "a//b"),
    *("a\0b", "\0", "\ud800", "\udfff", "x" * 300, "x/" * 600, "x" * 5000, "null", '{"a":1}', "\u2028", "%00", "-", "~"),
)  # fmt: skip
DEEP = 600


def changed(value: Any, random: Random) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return a value of JSON with one of its parts changed; it shares the rest with the given one."""
    if isinstance(value, dict | list) and value and random.random() < 0.75:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = random.choice(keys)
        copy = value.copy()
        if random.random() < 0.15:
            del copy[key]
        elif random.random() < 0.1 and isinstance(copy, list):
            copy *= 2
        elif random.random() < 0.1 and isinstance(copy, dict):
            copy[random.choice(("more", "files", "status", "fragment_id", "metadata"))] = copy[key]
        else:
            copy[key] = changed(copy[key], random)
        return copy
    choice = random.random()
    if choice < 0.1:
        return [value]
    if choice < 0.2:
        return {"name": value}
    if choice < 0.3 and isinstance(value, str) and value:
        at = random.randrange(len(value))
        return value[:at] + random.choice(("/", "\0", "..", "\ud800", "A", "")) + value[at + 1 :]
    return random.choice(ODD)


def changed_json(message: bytes, random: Random) -> bytes:
    """Return a message that says something else in one to three places, as JSON that may be written oddly."""
    value = json.loads(message)
    for _ in range(random.randrange(1, 4)):
        value = changed(value, random)
    # Lone surrogates are written as escapes, as Python's own programs do it.
    text = json.dumps(value, indent=random.choice((None, None, 1)))
    if random.random() < 0.05:
        text = text.replace("null", "[" * DEEP + "]" * DEEP, 1)
    return text.encode()


def damaged(data: bytes, random: Random) -> bytes:
    """Return the bytes with one of them changed, or some lost, repeated or put between."""
    at = random.randrange(len(data) + 1)
    length = random.randrange(1, 9)
    strange = random.randbytes(length)
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: data[:at] + strange[:1] + data[at + 1 :],
        lambda: data[:at] + strange + data[at:],
        lambda: data[:at] + data[at + length :],
        lambda: data[:at] + data[at : at + length] * 2 + data[at + length :],
        lambda: data[:at],
        lambda: strange,
    )
    return random.choice(ways)()
