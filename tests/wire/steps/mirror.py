"""Turn every file's bytes round. Arguments: seconds for each fragment (0), output channel for every second one."""

from __future__ import annotations

import os
import sys
import time

import pyterum

seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
channel = sys.argv[2] if len(sys.argv) > 2 else None
directory = f"{os.environ['DATA_VOLUME_PATH']}/output"
os.makedirs(directory, exist_ok=True)
inputs = pyterum.TransformationStepInput()
outputs = pyterum.TransformationStepOutput()
for number, fragment in enumerate(inputs.consumer()):
    if fragment is None:
        break
    time.sleep(seconds)
    files = []
    for position, file in enumerate(fragment.files):
        path = f"{directory}/{os.getpid()}-{number}-{position}"
        with open(file.path, "rb") as source, open(path, "wb") as target:
            target.write(source.read()[::-1])
        files.append(pyterum.LocalFileDesc(file.name, path))
    result = pyterum.LocalFragmentDesc(files, [fragment.metadata.fragment_id])
    if number % 2:
        result.metadata.output_channel = channel
    outputs.produce(result)
    outputs.done_with(fragment)
outputs.produce_done()
