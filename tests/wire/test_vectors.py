"""The frames of contract section 2, byte for byte, from the real pyterum."""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import TYPE_CHECKING

from testbed.process import running

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import pyterum
outputs = pyterum.TransformationStepOutput()
inputs = pyterum.TransformationStepInput()
fragment = next(inputs.consumer())
files = [pyterum.LocalFileDesc("edges_cat.jpg", "/data-volume/output/cat.jpg")]
outputs.produce(pyterum.LocalFragmentDesc(files, [fragment.metadata.fragment_id]))
outputs.done_with(fragment)
assert next(inputs.consumer()) is None
outputs.produce_done()
"""
ID = "a" * 64
OUTPUT = (
    b'\xee\x00\x00\x00{"files": [{"name": "edges_cat.jpg", "path": "/data-volume/output/cat.jpg"}], '
    b'"metadata": {"output_channel": null, "custom": null, "fragment_id": null, "predecessors": ["'
    + ID.encode()
    + b'"]}}'
)
DONE = b'\x53\x00\x00\x00{"fragment_id": "' + ID.encode() + b'"}'
KILL = b'\x16\x00\x00\x00{"status": "complete"}'


def frame(message: object) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    return len(body).to_bytes(4, "little") + body


def test_the_vectors_are_what_pyterum_writes(volume: Path, tmp_path: Path) -> None:
    environment = {
        "DATA_VOLUME_PATH": str(volume),
        "TRANSFORMATION_STEP_INPUT": "in.sock",
        "TRANSFORMATION_STEP_OUTPUT": "out.sock",
        "PATH": os.environ["PATH"],
    }
    with socket.socket(socket.AF_UNIX) as inputs, socket.socket(socket.AF_UNIX) as outputs:
        for listener, name in ((inputs, "in.sock"), (outputs, "out.sock")):
            listener.bind(str(volume / name))
            listener.listen()
            listener.settimeout(20)
        command = [sys.executable, "-c", PROGRAM]
        with running(command, log=tmp_path / "log", environment=environment, cwd=tmp_path) as step:
            receiver, _ = outputs.accept()
            sender, _ = inputs.accept()
            with receiver, sender:
                metadata = {"fragment_id": ID, "predecessors": []}
                file = {"name": "cat.jpg", "path": "/data-volume/cat.jpg"}
                sender.sendall(frame({"files": [file], "metadata": metadata}))
                sender.sendall(frame({"status": "complete"}))
                received = b""
                while data := receiver.recv(65536):
                    received += data
            assert step.wait(10).code == 0
    assert received == OUTPUT + DONE + KILL
