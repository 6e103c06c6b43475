"""Turn every file's bytes round, over several connections at a time, and misbehave when told to.

Arguments: how many connections, seconds for each fragment, the path of a file that tells what to do wrong next: `garbage` (a frame
that is none), `half` (half a frame, and the end) or `hang` (nothing for 30 s); it is removed by whoever does it. A file called
`poison` ends the process.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
import time

import pyterum

connections, seconds, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
directory = f"{os.environ['DATA_VOLUME_PATH']}/output"
os.makedirs(directory, exist_ok=True)
GARBAGE = struct.pack("<I", 9) + b"not JSON!"
HALF = struct.pack("<I", 100) + b'{"files":'


def told_to_do_wrong() -> str:
    mine = f"{command}.{os.getpid()}-{threading.get_ident()}"
    try:
        os.rename(command, mine)
    except FileNotFoundError:
        return ""
    with open(mine, encoding="ascii") as file:
        what = file.read()
    os.remove(mine)
    return what


def do_wrong(outputs: pyterum.TransformationStepOutput) -> None:
    what = told_to_do_wrong()
    if what == "hang":
        time.sleep(30)
    if what in {"", "hang"}:
        return
    try:
        outputs.socket.sendall(GARBAGE if what == "garbage" else HALF)
        if what == "half":
            os._exit(1)
        outputs.socket.recv(1)  # which ends when the sidecar has closed the connection
    except OSError:
        pass
    outputs.reconnect()


def serve(name: int) -> None:
    inputs = pyterum.TransformationStepInput()
    outputs = pyterum.TransformationStepOutput()
    for number, fragment in enumerate(inputs.consumer()):
        if fragment is None:
            break
        if any(file.name == "poison" for file in fragment.files):
            os._exit(1)
        time.sleep(seconds)
        do_wrong(outputs)
        files = []
        for position, file in enumerate(fragment.files):
            path = f"{directory}/{os.getpid()}-{name}-{number}-{position}"
            with open(file.path, "rb") as source, open(path, "wb") as target:
                target.write(source.read()[::-1])
            files.append(pyterum.LocalFileDesc(file.name, path))
        outputs.produce(pyterum.LocalFragmentDesc(files, [fragment.metadata.fragment_id]))
        outputs.done_with(fragment)
    outputs.produce_done()


def serve_or_die(name: int) -> None:
    try:
        serve(name)
    except Exception:
        # A process with a thread that has died would be neither alive nor dead.
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(2)


threads = [threading.Thread(target=serve_or_die, args=(name,)) for name in range(connections)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
