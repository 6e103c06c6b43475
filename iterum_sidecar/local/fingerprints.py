"""What makes a step what it is: when any of it changes, whatever the step has made is made again."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
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

__all__ = ["ancestry", "fingerprint", "fingerprints", "output_identity", "pipeline_hash"]

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


def fingerprints(pipeline: Pipeline, directory: Path) -> dict[str, str]:
    """Return the fingerprint of every step, by its name. It reads all files of the steps, best in a thread: some may be gigabytes."""
    return {step.name: fingerprint(pipeline, step, directory) for step in pipeline.steps}


def ancestry(own: str, upstream: Sequence[str], first_fragments: str) -> str:
    """Return what the results that a step gathers depend on besides itself: all steps before it, and the set of first fragments."""
    return sha256("\n".join([own, first_fragments, *sorted(upstream)]).encode()).hexdigest()


def output_identity(hash_of_pipeline: str, step: Step, own: str) -> OutputIdentity:
    """Return what names the outputs of a step in a local run: its fingerprint counts as a part of its name."""
    return OutputIdentity(hash_of_pipeline, f"{step.name}\n{own}")


def _content(file: Path) -> str | None:
    """Return the hash of a file's content; None where there is none to read, which `lint` tells."""
    try:
        found = os.stat(file)
        digest = _digest(file, found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns)
    except OSError:
        return None
    return f"{digest}{'+x' if found.st_mode & 0o111 else ''}"


@lru_cache(maxsize=1024)
def _digest(file: Path, *_stamp: int) -> str:
    """Read a file once for all steps that have it, and for the looks at whether it has changed, as long as its stamp is the same."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
