"""Make one fragment of many, one file with all their bytes. Argument: of how many; the last may have fewer.

What is gathered is finished only when the batch is full, or when the sidecar says that nothing more comes.
"""

from __future__ import annotations

import os
import sys

import pyterum

count = int(sys.argv[1])
directory = f"{os.environ['DATA_VOLUME_PATH']}/output"
os.makedirs(directory, exist_ok=True)
inputs = pyterum.TransformationStepInput()
outputs = pyterum.TransformationStepOutput()
batch: list[tuple[pyterum.LocalFragmentDesc, bytes]] = []
number = 0


def finish() -> None:
    path = f"{directory}/{number}"
    with open(path, "wb") as target:
        target.writelines(data for _, data in batch)
    files = [pyterum.LocalFileDesc(f"batch-{number}", path)]
    predecessors = [fragment.metadata.fragment_id for fragment, _ in batch]
    outputs.produce(pyterum.LocalFragmentDesc(files, predecessors))
    for fragment, _ in batch:
        outputs.done_with(fragment)
    batch.clear()


for fragment in inputs.consumer():
    if fragment is None:
        break
    with open(fragment.files[0].path, "rb") as source:
        batch.append((fragment, source.read()))
    if len(batch) == count:
        finish()
        number += 1
if batch:
    finish()
outputs.produce_done()
