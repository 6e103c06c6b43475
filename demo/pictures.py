"""Small pictures to send through the pipeline: Julia sets, plasmas and moirés, none like another."""

from __future__ import annotations

import cmath
import colorsys
import io
import math
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["pictures"]

SIZE = 192
COUNT = 24
ITERATIONS = 48


def julia(turn: float) -> Callable[[float, float], float]:
    """Return a Julia set of the family on a circle around 0; `turn` says where on the circle, from 0 to 1."""
    constant = cmath.rect(0.7885, math.tau * turn)

    def value(x: float, y: float) -> float:
        point = complex(1.5 * x, 1.5 * y)
        for step in range(ITERATIONS):
            point = point * point + constant
            if abs(point) > 4:
                return (step + 1 - math.log2(math.log2(abs(point)))) / ITERATIONS
        return 1.0

    return value


def plasma(turn: float) -> Callable[[float, float], float]:
    """Return a smooth field of a few waves that cross."""
    waves = [(math.cos(angle), math.sin(angle)) for angle in (turn * 7, turn * 7 + 2, turn * 7 + 4)]

    def value(x: float, y: float) -> float:
        total = sum(math.sin(5 * (a * x + b * y) + 3 * turn) for a, b in waves)
        return 0.5 + total / 6

    return value


def moire(turn: float) -> Callable[[float, float], float]:
    """Return two sets of rings whose centres are apart."""
    shift = 0.25 + 0.5 * turn

    def value(x: float, y: float) -> float:
        rings = math.sin(22 * math.hypot(x - shift, y)) * math.sin(22 * math.hypot(x + shift, y))
        return 0.5 + rings / 2

    return value


FAMILIES = {"julia": julia, "plasma": plasma, "moire": moire}


def palette(turn: float) -> bytes:
    """Return 256 colours that go from dark to light around a hue."""
    colours = bytearray()
    for level in range(256):
        share = level / 255
        red, green, blue = colorsys.hsv_to_rgb(
            (turn + 0.35 * share) % 1, 0.85 - 0.5 * share, share**0.7
        )
        colours += bytes((int(255 * red), int(255 * green), int(255 * blue)))
    return bytes(colours)


def picture(value: Callable[[float, float], float], turn: float) -> bytes:
    """Return a field of values from 0 to 1 as a PNG file."""
    levels = bytearray(SIZE * SIZE)
    for row in range(SIZE):
        for column in range(SIZE):
            level = value(2 * column / SIZE - 1, 2 * row / SIZE - 1)
            levels[row * SIZE + column] = int(255 * min(1.0, max(0.0, level)))
    image = Image.frombytes("P", (SIZE, SIZE), bytes(levels))
    image.putpalette(palette(turn))
    file = io.BytesIO()
    image.convert("RGB").save(file, "PNG")
    return file.getvalue()


def pictures() -> dict[str, bytes]:
    """Return all pictures by their names, as PNG files."""
    made = {}
    for number in range(COUNT):
        family = list(FAMILIES)[number % len(FAMILIES)]
        turn = number / COUNT
        made[f"{family}-{number:02}.png"] = picture(FAMILIES[family](turn), turn)
    return made
