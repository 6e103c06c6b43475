"""Make one file of all the files of each fragment, in their order."""

from __future__ import annotations

import os

import pyterum

directory = f"{os.environ['DATA_VOLUME_PATH']}/output"
os.makedirs(directory, exist_ok=True)
inputs = pyterum.TransformationStepInput()
outputs = pyterum.TransformationStepOutput()
for number, fragment in enumerate(inputs.consumer()):
    if fragment is None:
        break
    path = f"{directory}/{number}"
    with open(path, "wb") as target:
        for file in fragment.files:
            with open(file.path, "rb") as source:
                target.write(source.read())
    files = [pyterum.LocalFileDesc("joined", path)]
    outputs.produce(pyterum.LocalFragmentDesc(files, [fragment.metadata.fragment_id]))
    outputs.done_with(fragment)
outputs.produce_done()
