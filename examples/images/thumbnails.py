"""A step that makes a small copy of every picture."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from iterum_sidecar.step import config, transform

if TYPE_CHECKING:
    from iterum_sidecar.step import Fragment


@transform
def thumbnails(fragment: Fragment) -> None:
    """Make `thumbnails/NAME.jpg` of each picture, at most `size` pixels wide and high."""
    size = config().get("size", 240)
    for file in fragment.files:
        with (
            Image.open(file.path) as picture,
            fragment.create(f"thumbnails/{PurePath(file.name).stem}.jpg") as path,
        ):
            # As the camera was held, which a photograph tells in its EXIF data.
            upright = ImageOps.exif_transpose(picture).convert("RGB")
            ImageOps.contain(upright, (size, size)).save(path, quality=88)


if __name__ == "__main__":
    thumbnails.run()
