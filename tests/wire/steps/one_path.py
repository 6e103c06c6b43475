"""Write every result to one and the same path, as many steps do; pause for so many seconds at every 100th fragment."""

from __future__ import annotations

import os
import sys
import time

import pyterum

pause = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
directory = f"{os.environ['DATA_VOLUME_PATH']}/output"
os.makedirs(directory, exist_ok=True)
inputs = pyterum.TransformationStepInput()
outputs = pyterum.TransformationStepOutput()
for number, fragment in enumerate(inputs.consumer()):
    if fragment is None:
        break
    if number % 100 == 0:
        time.sleep(pause)
    (file,) = fragment.files
    with open(file.path, "rb") as source, open(f"{directory}/result", "wb") as target:
        target.write(source.read()[::-1])
    files = [pyterum.LocalFileDesc(file.name, f"{directory}/result")]
    outputs.produce(pyterum.LocalFragmentDesc(files, [fragment.metadata.fragment_id]))
    outputs.done_with(fragment)
outputs.produce_done()
