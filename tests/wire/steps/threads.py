"""Turn bytes round over several connections to each socket at a time. Argument: how many."""

from __future__ import annotations

import os
import sys
import threading

import pyterum

directory = f"{os.environ['DATA_VOLUME_PATH']}/output"
os.makedirs(directory, exist_ok=True)


def serve(name: int) -> None:
    inputs = pyterum.TransformationStepInput()
    outputs = pyterum.TransformationStepOutput()
    for number, fragment in enumerate(inputs.consumer()):
        if fragment is None:
            break
        (file,) = fragment.files
        path = f"{directory}/{name}-{number}"
        with open(file.path, "rb") as source, open(path, "wb") as target:
            target.write(source.read()[::-1])
        files = [pyterum.LocalFileDesc(file.name, path)]
        result = pyterum.LocalFragmentDesc(files, [fragment.metadata.fragment_id])
        result.metadata.custom = {"thread": str(name)}
        outputs.produce(result)
        outputs.done_with(fragment)
    outputs.produce_done()


threads = [threading.Thread(target=serve, args=(name,)) for name in range(int(sys.argv[1]))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
