"""Turn bytes round, and take so many seconds for each fragment until a file is there. Arguments: seconds, the file's path."""

from __future__ import annotations

import os
import sys
import time

import pyterum

seconds, hurry = float(sys.argv[1]), sys.argv[2]
directory = f"{os.environ['DATA_VOLUME_PATH']}/output"
os.makedirs(directory, exist_ok=True)
inputs = pyterum.TransformationStepInput()
outputs = pyterum.TransformationStepOutput()
for number, fragment in enumerate(inputs.consumer()):
    if fragment is None:
        break
    until = time.monotonic() + seconds
    while time.monotonic() < until and not os.path.exists(hurry):
        time.sleep(0.01)
    (file,) = fragment.files
    path = f"{directory}/{os.getpid()}-{number}"
    with open(file.path, "rb") as source, open(path, "wb") as target:
        target.write(source.read()[::-1])
    files = [pyterum.LocalFileDesc(file.name, path)]
    outputs.produce(pyterum.LocalFragmentDesc(files, [fragment.metadata.fragment_id]))
    outputs.done_with(fragment)
outputs.produce_done()
