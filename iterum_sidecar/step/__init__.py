"""For people who write transformations: a function becomes a step of a pipeline.

    from iterum_sidecar.step import transform

    @transform
    def edges(fragment):
        for file in fragment.files:
            with fragment.create(f"edges_{file.name}") as path:
                draw_edges(file.path, path)

    if __name__ == "__main__":
        edges.run()

A sidecar hands fragments to the function one by one and takes what it makes. `run_on(edges, "cat.jpg")` tries the
function without one. It speaks the frames of the contract and nothing else, so that every Iterum sidecar can stand
beside it, and it imports nothing but msgspec, and AnyIO for an async function.
"""

from __future__ import annotations

from iterum_sidecar.step.configuration import config, config_file
from iterum_sidecar.step.fragments import Batch, File, Fragment
from iterum_sidecar.step.making import Result
from iterum_sidecar.step.transformation import Transform, transform
from iterum_sidecar.step.trial import run_on

__all__ = [
    "Batch",
    "File",
    "Fragment",
    "Result",
    "Transform",
    "config",
    "config_file",
    "run_on",
    "transform",
]
