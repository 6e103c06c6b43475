"""Copy every file, but misbehave once with each fragment whose file is called `bad`.

Arguments: how, and a path outside the volume that some of the ways need. The ways whose name ends in `frame`
misbehave on the output socket, and say done afterwards unless a third argument is `silent`; the others send a
result whose path is not what it should be.
"""

from __future__ import annotations

import os
import shutil
import struct
import sys

import pyterum

way, outside = sys.argv[1:3]
silent = sys.argv[3:] == ["silent"]
directory = f"{os.environ['DATA_VOLUME_PATH']}/output"
os.makedirs(directory, exist_ok=True)
inputs = pyterum.TransformationStepInput()
outputs = pyterum.TransformationStepOutput()
FRAMES = {
    "garbage-frame": struct.pack("<I", 9) + b"not JSON!",
    "empty-frame": struct.pack("<I", 0),
    "unknown-frame": struct.pack("<I", 13) + b'{"status":""}',
    "oversized-frame": struct.pack("<I", 0xFFFFFFFF) + b"{",
    "half-frame": struct.pack("<I", 100) + b'{"files":',
}


def path_of_result(number: int, source: str) -> str:
    path = f"{directory}/{number}"
    if way == "outside":
        return outside
    if way == "dots":
        return f"{directory}/{os.path.relpath(outside, directory)}"
    if way == "symlink":
        os.symlink(outside, path)
    elif way == "directory-symlink":
        os.symlink(os.path.dirname(outside), path)
        return f"{path}/{os.path.basename(outside)}"
    elif way == "fifo":
        os.mkfifo(path)
    elif way == "directory":
        os.makedirs(path)
    elif way != "missing":
        shutil.copyfile(source, path)
    return path


done = False
for number, fragment in enumerate(inputs.consumer()):
    if fragment is None:
        break
    (file,) = fragment.files
    bad = file.name == "bad" and not done
    if bad and way in FRAMES:
        done = True
        outputs.socket.sendall(FRAMES[way])
        if way == "half-frame":
            os._exit(1)
        assert outputs.socket.recv(1) == b"", "the sidecar closes a connection that it cannot read"
        outputs.reconnect()
        if not silent:
            outputs.done_with(fragment)
        continue
    path = f"{directory}/{number}"
    if bad:
        path = path_of_result(number, file.path)
    else:
        shutil.copyfile(file.path, path)
    name = "../name" if bad and way == "name" else file.name
    result = pyterum.LocalFragmentDesc(
        [pyterum.LocalFileDesc(name, path)], [fragment.metadata.fragment_id]
    )
    if bad and way == "channel":
        result.metadata.output_channel = "nowhere"
    outputs.produce(result)
    outputs.done_with(fragment)
outputs.produce_done()
