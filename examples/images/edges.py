"""A step that finds the edges in every picture, and hands on the picture beside them."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from PIL import Image, ImageFilter, ImageOps

from iterum_sidecar.step import transform

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iterum_sidecar.step import Fragment, Result


@transform
def edges(fragment: Fragment) -> Iterator[Result]:
    """Make `edges/NAME` of a picture; both go to the results, and to the contact sheet as well."""
    (picture,) = fragment.files
    drawn = fragment.new_path(f"edges/{PurePath(picture.name).name}")
    draw_edges(picture.path, drawn)
    yield fragment.result(picture, drawn)
    yield fragment.result(picture, drawn, channel="sheet")


def draw_edges(source: PurePath, target: PurePath) -> None:
    """Write the edges of a picture, bright on dark."""
    with Image.open(source) as picture:
        smooth = picture.convert("L").filter(ImageFilter.GaussianBlur(1))
        # Less the outermost pixels, which the filter leaves as they are.
        found = ImageOps.crop(smooth.filter(ImageFilter.FIND_EDGES), 1)
        ImageOps.autocontrast(found, cutoff=1).save(target)


if __name__ == "__main__":
    edges.run()
