"""What a sidecar tells the step by the environment; the same variables, read in the same way, as pyterum's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Surroundings", "SurroundingsMissing", "read_surroundings"]

_SOCKETS = ("TRANSFORMATION_STEP_INPUT", "TRANSFORMATION_STEP_OUTPUT")


class Surroundings(NamedTuple):
    """The volume, and the two sockets in it."""

    volume: str
    input_socket: str
    output_socket: str


class SurroundingsMissing(Exception):
    """There is no sidecar's environment; the text says what to do instead."""


def read_surroundings(environment: Mapping[str, str], name: str) -> Surroundings:
    """Read where the volume and the sockets are; `name` is the step's function, for the message.

    Raises:
        SurroundingsMissing: a variable is not set, or does not end in `.sock`.
    """
    volume = environment.get("DATA_VOLUME_PATH", "")
    sockets = [os.path.join(volume, environment.get(each, "")) for each in _SOCKETS]
    problems = [] if volume else ["DATA_VOLUME_PATH is not set"]
    for variable, path in zip(_SOCKETS, sockets, strict=True):
        if not environment.get(variable):
            problems.append(f"{variable} is not set")
        elif not path.endswith(".sock"):
            problems.append(f"{variable} does not end in .sock")
    if problems:
        raise SurroundingsMissing(
            f"{name} is a step of a pipeline and is started by a sidecar, but {', '.join(problems)}.\n"
            f"To try it on a file: run_on({name}, 'FILE') of iterum_sidecar.step.\n"
            "To run a whole pipeline: iterum-sidecar local PIPELINE.json --input DIRECTORY --output DIRECTORY"
        )
    return Surroundings(volume, sockets[0], sockets[1])
