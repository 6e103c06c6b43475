"""Turn bytes round over several connections; hang on the file with a name. Arguments: how many connections, the name, and the gate.

It hangs until there is a file at the gate's path, or for ever if the gate is `-`. What begins to hang is told by a file `<gate>.reached`, or
`hangs` in the volume. With `once` behind these it hangs the first time only, as long as that file is there.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import pyterum

connections, hangs_on, gate = int(sys.argv[1]), sys.argv[2], sys.argv[3]
once = "once" in sys.argv[4:]
volume = os.environ["DATA_VOLUME_PATH"]
mark = f"{volume}/output/hangs" if gate == "-" else f"{gate}.reached"
os.makedirs(f"{volume}/output", exist_ok=True)
ended = threading.Semaphore(0)


def hang() -> None:
    if once and os.path.exists(mark):
        return
    with open(mark, "w", encoding="ascii"):
        pass
    if connections > 1 and gate == "-":
        ended.release()  # the process need not wait for this one
    while gate == "-" or not os.path.exists(gate):
        time.sleep(0.01)


def serve(name: int) -> None:
    inputs = pyterum.TransformationStepInput()
    outputs = pyterum.TransformationStepOutput()
    for number, fragment in enumerate(inputs.consumer()):
        if fragment is None:
            break
        (file,) = fragment.files
        with open(file.path, "rb") as source:
            content = source.read()
        if file.name == hangs_on:
            hang()
        path = f"{volume}/output/{os.getpid()}-{name}-{number}"
        with open(path, "wb") as target:
            target.write(content[::-1])
        files = [pyterum.LocalFileDesc(file.name, path)]
        outputs.produce(pyterum.LocalFragmentDesc(files, [fragment.metadata.fragment_id]))
        outputs.done_with(fragment)
        time.sleep(0.05)
    outputs.produce_done()
    ended.release()


for number in range(connections):
    threading.Thread(target=serve, args=(number,), daemon=True).start()
for _ in range(connections):
    ended.acquire()
