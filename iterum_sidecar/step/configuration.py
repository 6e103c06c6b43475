"""The step's configuration: what the pipeline file says under `config`, and the files that it names."""

from __future__ import annotations

import os
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

__all__ = ["Configuration", "check_channel", "config", "config_file", "given"]

#: Seconds between looks for a config file that is not there yet.
_LOOK_EVERY = 0.05


class Configuration(NamedTuple):
    """A configuration that stands in for the environment's."""

    text: str
    directory: str


#: Set while `run_on` runs a step.
given: ContextVar[Configuration | None] = ContextVar("given", default=None)


def config() -> dict[str, Any]:
    """Return the step's configuration, `ITERUM_CONFIG`; empty when there is none.

    Raises:
        ValueError: it is no JSON object.
    """
    text = _present().text
    if not text.strip():
        return {}
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"ITERUM_CONFIG is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"ITERUM_CONFIG is a JSON object, not {text[:80]!r}")
    return value


def config_file(name: str, *, timeout: float = 60.0) -> Path:
    """Return the path of the config file that the configuration's `config_files` calls by this name.

    Waits for it, in its thread, up to `timeout` seconds, because the sidecar may still be fetching it. An async step
    leaves that to another thread: `await anyio.to_thread.run_sync(config_file, name)`.

    Raises:
        LookupError: the configuration names no such file.
        TimeoutError: it has not come.
        RuntimeError: there is no volume; a sidecar tells of it by DATA_VOLUME_PATH.
    """
    files = config().get("config_files")
    if not isinstance(files, dict) or not isinstance(files.get(name), str):
        known = ", ".join(map(repr, files)) if isinstance(files, dict) and files else "none"
        raise LookupError(
            f"the configuration has no config file {name!r} (it has {known}); name it under `config_files`"
        )
    path = Path(_present().directory, files[name])
    give_up_at = time.monotonic() + timeout
    while not path.exists():
        if time.monotonic() >= give_up_at:
            raise TimeoutError(
                f"the config file {name!r} did not come to {path} within {timeout:g} s"
            )
        time.sleep(_LOOK_EVERY)
    return path


def check_channel(channel: str | None) -> None:
    """Hold the output channel of a result against the configuration, where that can tell which there are.

    Raises:
        ValueError: `queue_mapping` has no such channel, so that the sidecar would refuse the result.
    """
    if not channel:
        return
    mapping = config().get("queue_mapping")
    if not isinstance(mapping, dict):
        # A step that is tried is often given a part of its configuration, or none, and a container may have none.
        if given.get() is not None or not _present().text.strip():
            return
        mapping = {}
    if channel not in mapping:
        known = ", ".join(map(repr, mapping)) or "none"
        raise ValueError(
            f"the configuration has no output channel {channel!r} (it has {known}); name it under `queue_mapping`"
        )


def _present() -> Configuration:
    stand_in = given.get()
    if stand_in is not None:
        return stand_in
    environment = os.environ
    directory = os.path.join(
        environment.get("DATA_VOLUME_PATH", ""), environment.get("ITERUM_CONFIG_PATH", "")
    )
    return Configuration(environment.get("ITERUM_CONFIG", ""), directory)
