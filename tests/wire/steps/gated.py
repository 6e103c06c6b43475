"""Turn bytes round, but finish nothing before the gate is open: a file whose path is the argument."""

from __future__ import annotations

import os
import sys
import time

import pyterum

gate = sys.argv[1]
directory = f"{os.environ['DATA_VOLUME_PATH']}/output"
os.makedirs(directory, exist_ok=True)
inputs = pyterum.TransformationStepInput()
outputs = pyterum.TransformationStepOutput()
for number, fragment in enumerate(inputs.consumer()):
    if fragment is None:
        break
    with open(f"{gate}.reached", "w", encoding="ascii"):
        pass
    while not os.path.exists(gate):
        time.sleep(0.01)
    (file,) = fragment.files
    path = f"{directory}/{os.getpid()}-{number}"
    with open(file.path, "rb") as source, open(path, "wb") as target:
        target.write(source.read()[::-1])
    files = [pyterum.LocalFileDesc(file.name, path)]
    outputs.produce(pyterum.LocalFragmentDesc(files, [fragment.metadata.fragment_id]))
    outputs.done_with(fragment)
outputs.produce_done()
