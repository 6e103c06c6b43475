"""One pipeline in every format, and what a file is refused for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.exit_codes import ExitCode
from iterum_sidecar.pipeline.problems import PipelineRefused
from iterum_sidecar.pipeline.reading import read_pipeline

if TYPE_CHECKING:
    from pathlib import Path

    from iterum_sidecar.pipeline.problems import Problem

JSON = """
{"name": "demo", "input_dataset": "cats", "input_dataset_commit_hash": "abc",
 "fragmenter": {"image": "fragmenter:1", "output_channel": "first", "config": {"n": 1}},
 "steps": [{"name": "edges", "image": "edges:1", "command": ["python", "edges.py"],
            "input_channel": "first", "output_channel": "last", "instance_count": 2,
            "prefetch_count": 5, "version": 3, "config": {"blur": 2.5, "files": ["a"]}}],
 "combiner": {"input_channel": "last"}, "config": {"all": true}}
"""
TOML = """
name = "demo"
input_dataset = "cats"
input_dataset_commit_hash = "abc"
config = { all = true }
[fragmenter]
image = "fragmenter:1"
output_channel = "first"
config = { n = 1 }
[[steps]]
name = "edges"
image = "edges:1"
command = ["python", "edges.py"]
input_channel = "first"
output_channel = "last"
instance_count = 2
prefetch_count = 5
version = 3
config = { blur = 2.5, files = ["a"] }
[combiner]
input_channel = "last"
"""
YAML = """
name: demo
input_dataset: cats
input_dataset_commit_hash: abc
fragmenter: {image: "fragmenter:1", output_channel: first, config: {n: 1}}
steps:
  - name: edges
    image: edges:1
    command: [python, edges.py]
    input_channel: first
    output_channel: last
    instance_count: 2
    prefetch_count: 5
    version: 3
    config: {blur: 2.5, files: [a]}
combiner: {input_channel: last}
config: {all: true}
"""


def refused(path: Path) -> list[Problem]:
    with pytest.raises(PipelineRefused) as refusal:
        read_pipeline(path)
    assert refusal.value.exit_code is ExitCode.CONFIGURATION
    for problem in refusal.value.problems:
        assert problem.place in str(refusal.value)
        assert problem.remedy in str(refusal.value)
        assert problem.place.startswith(str(path))
        assert problem.severity == "error"
    return refusal.value.problems


def only(path: Path) -> tuple[str, str, str]:
    """The place without the file, the message and the remedy of the one problem."""
    (problem,) = refused(path)
    return problem.place.removeprefix(str(path)), problem.message, problem.remedy


def place_and_remedy(path: Path) -> tuple[str, str]:
    place, _, remedy = only(path)
    return place, remedy
