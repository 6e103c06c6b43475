"""The copying step of a pipeline, with pyterum: nothing in it knows of this project."""

from __future__ import annotations

import os
import shutil

import pyterum
from pyterum import env


def main() -> None:
    """Serve one sidecar."""
    directory = os.path.join(env.DATA_VOLUME_PATH, "output")
    os.makedirs(directory, exist_ok=True)
    inputs = pyterum.TransformationStepInput()
    outputs = pyterum.TransformationStepOutput()
    for fragment in inputs.consumer():
        if fragment is None:
            outputs.produce_done()
            break
        result = pyterum.LocalFragmentDesc([], [fragment.metadata.fragment_id])
        for file in fragment.files:
            path = os.path.join(directory, file.name)
            shutil.copyfile(file.path, path)
            result.add_file(pyterum.LocalFileDesc(file.name, path))
        outputs.produce(result)
        outputs.done_with(fragment)


if __name__ == "__main__":
    main()
