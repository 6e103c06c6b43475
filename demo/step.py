"""The transformation of the demo, written as any user of Iterum writes one: with pyterum.

It makes two pictures of one: its edges, and a thumbnail.
"""

from __future__ import annotations

import os
import time

import pyterum
from PIL import Image, ImageFilter, ImageOps


def edges(image: Image.Image) -> Image.Image:
    """Return the edges of a picture, bright on dark."""
    return ImageOps.autocontrast(image.convert("L").filter(ImageFilter.FIND_EDGES), cutoff=1)


def thumbnail(image: Image.Image) -> Image.Image:
    """Return a small copy of a picture."""
    return ImageOps.contain(image, (64, 64))


def main() -> None:
    """Serve the sidecar until it says that nothing more comes."""
    directory = os.path.join(os.environ["DATA_VOLUME_PATH"], "output")
    os.makedirs(directory, exist_ok=True)
    inputs = pyterum.TransformationStepInput()
    outputs = pyterum.TransformationStepOutput()
    for fragment in inputs.consumer():
        if fragment is None:
            break
        started = time.perf_counter()
        result = pyterum.LocalFragmentDesc([], [fragment.metadata.fragment_id])
        for file in fragment.files:
            with Image.open(file.path) as image:
                for work in (edges, thumbnail):
                    name = f"{work.__name__}-{file.name}"
                    work(image).save(os.path.join(directory, name))
                    result.add_file(pyterum.LocalFileDesc(name, os.path.join(directory, name)))
        result.metadata.custom = {"seconds": f"{time.perf_counter() - started:.3f}"}
        outputs.produce(result)
        outputs.done_with(fragment)
    outputs.produce_done()


if __name__ == "__main__":
    main()
