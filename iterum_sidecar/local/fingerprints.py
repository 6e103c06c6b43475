"""What makes a step what it is: when any of it changes, whatever the step has made is made again."""

from __future__ import annotations

import os
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec

from iterum_sidecar.identity import OutputIdentity
from iterum_sidecar.pipeline.commands import named_files
from iterum_sidecar.pipeline.model import texts_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from iterum_sidecar.pipeline.model import Pipeline, Step

__all__ = ["ancestry", "fingerprint", "output_identity", "pipeline_hash"]

#: As long as those of Iterum's manager.
_HASH_LENGTH = 32


def pipeline_hash(pipeline: Pipeline) -> str:
    """Return the hash of a local run of this pipeline: always the same for one name, so that its fragments keep their IDs."""
    return sha256(b"local\0" + pipeline.name.encode()).hexdigest()[:_HASH_LENGTH]


def fingerprint(pipeline: Pipeline, step: Step, directory: Path) -> str:
    """Return the fingerprint of a step: 64 hexadecimal digits over all that decides what it makes of a fragment.

    That is its name, its version, its image, the words of its command and the content of the files that they name, its
    configuration and the content of its config files, and where its results go. What those files import is not looked at.
    """
    config = pipeline.merged_config(step)
    files = [directory / file for file in texts_of(config, "config_files").values()]
    parts = {
        "name": step.name,
        "version": step.version,
        "image": None if step.command else step.image,
        "command": step.command,
        "command_files": [_content(file) for file in named_files(step.command or [], directory)],
        "config": config,
        "config_files": [_content(file) for file in files],
        "output_channel": step.output_channel,
    }
    return sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def ancestry(own: str, upstream: Sequence[str], first_fragments: str) -> str:
    """Return what the results that a step gathers depend on besides itself: all steps before it, and the set of first fragments."""
    return sha256("\n".join([own, first_fragments, *sorted(upstream)]).encode()).hexdigest()


def output_identity(hash_of_pipeline: str, step: Step, own: str) -> OutputIdentity:
    """Return what names the outputs of a step in a local run: its fingerprint counts as a part of its name."""
    return OutputIdentity(hash_of_pipeline, f"{step.name}\n{own}")


def _content(file: Path) -> str | None:
    """Return the hash of a file's content; None where there is none to read, which `lint` tells."""
    try:
        with open(file, "rb") as opened:
            digest = sha256()
            while data := opened.read(1 << 20):
                digest.update(data)
            executable = os.fstat(opened.fileno()).st_mode & 0o111 != 0
    except OSError:
        return None
    return f"{digest.hexdigest()}{'+x' if executable else ''}"
