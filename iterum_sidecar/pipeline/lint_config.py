"""What is wrong with a configuration: that of the pipeline, of a step, or of the fragmenter.

Most of it is the user's own and may be anything; `config_files`, `queue_mapping` and `sidecar` are read by others.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from iterum_sidecar.pipeline.model import texts_of
from iterum_sidecar.pipeline.problems import did_you_mean, quoted, shown
from iterum_sidecar.variables import EXTENSIONS

if TYPE_CHECKING:
    from pathlib import Path

    from iterum_sidecar.pipeline.problems import Findings, KeyPath
    from iterum_sidecar.variables import Variable

__all__ = ["check_config"]

#: What the sidecar of a step reads from the object "sidecar", by its key there.
_SIDECAR = {variable.name.removeprefix("SIDECAR_").lower(): variable for variable in EXTENSIONS}


def check_config(
    config: dict[str, Any], path: KeyPath, findings: Findings, directory: Path
) -> None:
    """Add to `findings` what is wrong with the configuration at `path`; its config files are looked up in `directory`."""
    for key, example in (
        ("config_files", '{"weights": "weights.bin"}'),
        ("queue_mapping", '{"errors": "errors"}'),
    ):
        value = config.get(key)
        if value is not None and not isinstance(value, dict):
            message = f"is {shown(value)}, and should be an object of texts"
            findings.error((*path, key), message, f"write an object, as {example}")
        elif value:
            for name, each in value.items():
                if not isinstance(each, str):
                    message = f"is {shown(each)}, and should be a text"
                    findings.error((*path, key, name), message, f"write a text, as in {example}")
    for name, file in texts_of(config, "config_files").items():
        _check_config_file(file, (*path, "config_files", name), findings, directory)
    if "sidecar" in config:
        _check_sidecar(config["sidecar"], (*path, "sidecar"), findings)


def _check_config_file(file: str, path: KeyPath, findings: Findings, directory: Path) -> None:
    parts = [part for part in file.split("/") if part not in {"", "."}]
    if not parts or file.startswith("/") or ".." in parts or "\0" in file:
        findings.error(
            path,
            f"{shown(file)} leads out of the pipeline file's folder",
            "put the file beside the pipeline file, and write its path as seen from there",
        )
        return
    looked_at = directory.absolute() / file
    if not os.path.isfile(looked_at):
        state = "is no file" if os.path.exists(looked_at) else "is not there"
        findings.error(
            path,
            f"the config file {shown(file)} {state}: looked for it at {looked_at}",
            "put it there, or write its path as seen from the pipeline file",
        )
    elif not os.access(looked_at, os.R_OK):
        message = f"the config file {looked_at} cannot be read"
        findings.error(path, message, "make it a file that you may read")


def _check_sidecar(values: Any, path: KeyPath, findings: Findings) -> None:  # noqa: ANN401 - whatever the file holds
    """Hold the settings of a sidecar against what it takes: in a pod it would not start with others."""
    if not isinstance(values, dict):
        message = f"is {shown(values)}, and should be an object"
        findings.error(path, message, 'write an object, as {"attempts": 5}')
        return
    for key, value in values.items():
        variable = _SIDECAR.get(key)
        if variable is None:
            message = f"the key {quoted(key)} is unknown, and a sidecar does not start with it"
            findings.error((*path, key), message, f"{did_you_mean(key, _SIDECAR)}remove it")
        elif value is not None and value != "" and not _is_taken(value, variable):
            told = "a secret" if variable.secret else shown(value)
            message = f"is {told}, and should be {variable.expected}"
            findings.error((*path, key), message, "write that, or leave it out")


def _is_taken(value: object, variable: Variable) -> bool:
    """Tell whether a variable may have a value that is written as JSON, as `settings.py` reads it."""
    if not isinstance(value, str | int | float):
        return False
    text = str(value).lower() if isinstance(value, bool) else str(value)
    try:
        variable.read(text)
    except ValueError:
        return False
    return True
