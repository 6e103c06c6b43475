"""A step written against pyterum that makes of each file its edges alone, and hands on nothing else."""

from __future__ import annotations

from pathlib import Path, PurePath

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
    result = pyterum.LocalFragmentDesc([], [fragment.metadata.fragment_id])
    for number, file in enumerate(fragment.files):
        picture = PurePath(file.name)
        target = results / f"{fragment.metadata.fragment_id}-{number}{picture.suffix}"
        draw_edges(PurePath(file.path), target)
        result.add_file(pyterum.LocalFileDesc(f"edges/{picture.name}", str(target)))
    step_output.produce(result)
    step_output.done_with(fragment)
