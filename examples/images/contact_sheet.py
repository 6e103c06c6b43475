"""A step that gathers: one sheet with all pictures, each above its edges."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont, ImageOps

from iterum_sidecar.step import transform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iterum_sidecar.step import Batch, File

COLUMNS = 4
CELL = 240
MARGIN = 16
CAPTION = 26
PAPER = (24, 26, 31)
INK = (214, 217, 224)


@transform(gather="all")
def contact_sheet(batch: Batch) -> None:
    """Make `contact-sheet.jpg` of everything that comes; each fragment is a picture and its edges."""
    # They come in the order in which they got ready; the sheet is the same every time.
    in_order = sorted(batch, key=lambda fragment: fragment.files[0].name)
    with batch.create("contact-sheet.jpg") as path:
        draw_sheet([fragment.files for fragment in in_order]).save(path, quality=90)


def draw_sheet(groups: Sequence[Sequence[File]]) -> Image.Image:
    """Draw the pictures of a group one above the other, and the groups side by side in rows."""
    columns, deep = min(COLUMNS, len(groups)), max(map(len, groups))
    width, height = CELL + MARGIN, deep * CELL + CAPTION + MARGIN
    rows = -(-len(groups) // columns)
    sheet = Image.new("RGB", (MARGIN + columns * width, MARGIN + rows * height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, files in enumerate(groups):
        left = MARGIN + number % columns * width
        top = MARGIN + number // columns * height
        for place, file in enumerate(files):
            with Image.open(file.path) as picture:
                fitted = ImageOps.fit(picture.convert("RGB"), (CELL, CELL))
                sheet.paste(fitted, (left, top + place * CELL))
        caption = PurePath(files[0].name).stem
        draw.text((left, top + deep * CELL + 4), caption, font=font, fill=INK)
    return sheet


if __name__ == "__main__":
    contact_sheet.run()
