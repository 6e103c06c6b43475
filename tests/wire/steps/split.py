"""Make several fragments of one. Argument: how many; part i has the i-th share of the first file's bytes."""

from __future__ import annotations

import os
import sys

import pyterum

count = int(sys.argv[1])
directory = f"{os.environ['DATA_VOLUME_PATH']}/output"
os.makedirs(directory, exist_ok=True)
inputs = pyterum.TransformationStepInput()
outputs = pyterum.TransformationStepOutput()
for number, fragment in enumerate(inputs.consumer()):
    if fragment is None:
        break
    with open(fragment.files[0].path, "rb") as source:
        data = source.read()
    share = len(data) // count
    for part in range(count):
        path = f"{directory}/{number}-{part}"
        with open(path, "wb") as target:
            target.write(data[part * share : (part + 1) * share])
        # Every part has the same name, so that the parts differ in nothing but their order.
        files = [pyterum.LocalFileDesc("part", path)]
        outputs.produce(pyterum.LocalFragmentDesc(files, [fragment.metadata.fragment_id]))
    outputs.done_with(fragment)
outputs.produce_done()
