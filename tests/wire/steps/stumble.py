"""Turn bytes round; stop at the n-th fragment, with nothing said of it, until killed. Started again, go on to the end. Argument: n.

That it has stopped is told by the file `stumbled` in the volume, beside it; while that is there it stops no more.
"""

from __future__ import annotations

import os
import sys
import time

import pyterum

at = int(sys.argv[1])
volume = os.environ["DATA_VOLUME_PATH"]
mark = f"{volume}/output/stumbled"
os.makedirs(f"{volume}/output", exist_ok=True)
inputs = pyterum.TransformationStepInput()
outputs = pyterum.TransformationStepOutput()
for number, fragment in enumerate(inputs.consumer(), 1):
    if fragment is None:
        break
    if number == at and not os.path.exists(mark):
        with open(mark, "w", encoding="ascii"):
            pass
        time.sleep(3600)
    (file,) = fragment.files
    path = f"{volume}/output/{os.getpid()}-{number}"
    with open(file.path, "rb") as source, open(path, "wb") as target:
        target.write(source.read()[::-1])
    files = [pyterum.LocalFileDesc(file.name, path)]
    outputs.produce(pyterum.LocalFragmentDesc(files, [fragment.metadata.fragment_id]))
    outputs.done_with(fragment)
if os.path.exists(mark):
    os.remove(mark)
outputs.produce_done()
