"""Make every result of a config file, read the moment that it is there. Argument: the config file's name."""

from __future__ import annotations

import os
import sys
import time

import pyterum
from pyterum import env

name = sys.argv[1]
expected = os.path.join(env.CONFIG_PATH, env._CONFIG_DATA["config_files"][name])
while not os.path.exists(expected):
    time.sleep(0.0005)
with open(expected, "rb") as source:
    data = source.read()
assert pyterum.get_filepath(name, retries=0) == expected
directory = f"{os.environ['DATA_VOLUME_PATH']}/output"
os.makedirs(directory, exist_ok=True)
inputs = pyterum.TransformationStepInput()
outputs = pyterum.TransformationStepOutput()
for number, fragment in enumerate(inputs.consumer()):
    if fragment is None:
        break
    path = f"{directory}/{number}"
    with open(path, "wb") as target:
        target.write(data)
    files = [pyterum.LocalFileDesc("config", path)]
    outputs.produce(pyterum.LocalFragmentDesc(files, [fragment.metadata.fragment_id]))
    outputs.done_with(fragment)
outputs.produce_done()
