"""Write every result to one and the same path, as many steps do."""

from __future__ import annotations

import os

import pyterum

directory = f"{os.environ['DATA_VOLUME_PATH']}/output"
os.makedirs(directory, exist_ok=True)
inputs = pyterum.TransformationStepInput()
outputs = pyterum.TransformationStepOutput()
for fragment in inputs.consumer():
    if fragment is None:
        break
    (file,) = fragment.files
    with open(file.path, "rb") as source, open(f"{directory}/result", "wb") as target:
        target.write(source.read()[::-1])
    files = [pyterum.LocalFileDesc(file.name, f"{directory}/result")]
    outputs.produce(pyterum.LocalFragmentDesc(files, [fragment.metadata.fragment_id]))
    outputs.done_with(fragment)
outputs.produce_done()
