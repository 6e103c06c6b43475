"""The step of `edges.py`, written against pyterum as it comes from PyPI: any Iterum step looks like this."""

from __future__ import annotations

import os
from pathlib import Path

import pyterum
from edges import draw_edges

results = Path(pyterum.env.DATA_VOLUME_PATH, "edges")
results.mkdir(exist_ok=True)
step_input = pyterum.TransformationStepInput()
step_output = pyterum.TransformationStepOutput()

for fragment in step_input.consumer():
    if fragment is None:
        step_output.produce_done()
        break
    (picture,) = fragment.files
    name = os.path.basename(picture.name)
    target = results / f"{fragment.metadata.fragment_id}-{name}"
    draw_edges(Path(picture.path), target)
    drawn = pyterum.LocalFileDesc(f"edges/{name}", str(target))
    for channel in (None, "sheet"):
        result = pyterum.LocalFragmentDesc([picture, drawn], [fragment.metadata.fragment_id])
        result.metadata.output_channel = channel
        step_output.produce(result)
    step_output.done_with(fragment)
