"""A pipeline file as a `Pipeline`: whatever can be found wrong with its text and its types is found at once."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from iterum_sidecar.pipeline.model import Combiner, Fragmenter, Pipeline, Step
from iterum_sidecar.pipeline.problems import (
    Findings,
    PipelineRefused,
    did_you_mean,
    nearest,
    quoted,
    shown,
)
from iterum_sidecar.pipeline.syntax import parse

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from iterum_sidecar.pipeline.problems import KeyPath

__all__ = ["read_pipeline", "warn_of_unknown_keys"]

#: A pipeline file has some kilobytes; a folder of data named by mistake must not fill the memory.
LARGEST_FILE = 16 * 2**20


class _Key(NamedTuple):
    """A key of the file: what type its value must have, that type in words, and whether the key must be there."""

    name: str
    type: Any
    expected: str
    required: bool = False


_TEXT = "a text"
_OBJECT = "an object"
_COMMAND = 'a list of texts, as ["python", "step.py"]'

_IMAGE_AND_COMMAND = (_Key("image", str, _TEXT), _Key("command", list[str], _COMMAND))
_CONFIG = _Key("config", dict[str, Any], _OBJECT)
_INPUT = _Key("input_channel", str, "the name of a channel", required=True)
_OUTPUT = _Key("output_channel", str, "the name of a channel", required=True)

#: The contract's section 9, and what a local run reads beside it.
_PIPELINE = (
    _Key("name", str, _TEXT, required=True),
    _Key("input_dataset", str, _TEXT),
    _Key("input_dataset_commit_hash", str, _TEXT),
    _Key("fragmenter", dict[str, Any], 'an object with an "output_channel"', required=True),
    _Key("steps", list[Any], "a list of objects", required=True),
    _Key("combiner", dict[str, Any], 'an object with an "input_channel"', required=True),
    _CONFIG,
)
_FRAGMENTER = (*_IMAGE_AND_COMMAND, _OUTPUT, _CONFIG)
_STEP = (
    _Key("name", str, _TEXT, required=True),
    *_IMAGE_AND_COMMAND,
    _INPUT,
    _OUTPUT,
    _Key("instance_count", int, "a whole number from 1 up"),
    _Key("prefetch_count", int, "a whole number from 0 to 65535"),
    _Key("version", str | int | float, "a text or a number"),
    _CONFIG,
)
_COMBINER = (_INPUT,)

#: What Iterum's manager writes into a pipeline that it gives back, and no one else reads.
_OF_THE_MANAGER = frozenset({"pipeline_run_hash", "config_files_all"})


def warn_of_unknown_keys(places: Iterable[KeyPath], findings: Findings) -> None:
    """Add a warning to `findings` for each key that no one reads, by its place."""
    keys = {"fragmenter": _FRAGMENTER, "steps": _STEP, "combiner": _COMBINER}
    for path in places:
        name = str(path[-1])
        known = [key.name for key in (keys[str(path[0])] if path[1:] else _PIPELINE)]
        message = f"the key {quoted(name)} is unknown, and no one reads it"
        findings.warn(path, message, f"{did_you_mean(name, known)}remove it")


def read_pipeline(path: str | os.PathLike[str]) -> Pipeline:
    """Return the pipeline that a file describes: JSON, TOML (`.toml`), or YAML (`.yaml`, `.yml`; with PyYAML).

    Null is the same as an absent key where a key may be absent. What else may be wrong with the pipeline is for `lint` to find.

    Raises:
        PipelineRefused: with everything that keeps it from being read.
    """
    findings = Findings(str(path))
    text = _text_of(Path(path), findings)
    values = parse(text, Path(path).suffix.lower(), findings)
    reader = _Reader(findings)
    pipeline = reader.pipeline(values)
    if pipeline is None:
        # With nothing left to look at, no one else could tell of them.
        warn_of_unknown_keys(reader.unknown_keys, findings)
    if pipeline is None or findings:
        raise PipelineRefused(findings, pipeline)
    return pipeline


def _text_of(path: Path, findings: Findings) -> str:
    content = b""
    try:
        if path.is_dir():
            inside = "the pipeline file in it, as " + str(path / "pipeline.json")
            findings.error((), "is a folder, not a pipeline file", f"name {inside}")
        else:
            with path.open("rb") as file:
                content = file.read(LARGEST_FILE + 1)
            _check_content(content, findings)
    except FileNotFoundError:
        remedy = f"name a pipeline file that is there (looked for it at {path.absolute()})"
        findings.error((), "is not there", remedy)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        findings.error((), f"cannot be read: {reason}", "make it a file that you may read")
    if findings:
        raise PipelineRefused(findings)
    return content.decode()


def _check_content(content: bytes, findings: Findings) -> None:
    if len(content) > LARGEST_FILE:
        size = f"{LARGEST_FILE // 2**20} MiB"
        findings.error((), f"is larger than {size}", "name the pipeline file, not a file of data")
        return
    if not content.strip():
        findings.error(
            (),
            "is empty",
            "describe a pipeline in it; `iterum-sidecar new NAME` makes one to begin with",
        )
        return
    save = "save it as UTF-8 without a byte order mark"
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        findings.error((), f"is not UTF-8: byte {error.start:,}, in line {line}", save)
        return
    if text.startswith("\ufeff"):
        findings.error((), "begins with a byte order mark, which Iterum does not read", save)


class _Reader:
    """Reads values into the model, and goes on after each that is wrong."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self.unknown_keys: list[KeyPath] = []
        """The places of keys that no one reads, but for those that a missing one was taken for."""

    def pipeline(self, values: Any) -> Pipeline | None:  # noqa: ANN401 - whatever the file holds
        """Return the pipeline, without what was found wrong; None when what cannot do without it is wrong or missing."""
        read = self._object(values, (), _PIPELINE)
        fragmenter, combiner = (
            self._object(read[name], (name,), keys) if name in read else {}
            for name, keys in (("fragmenter", _FRAGMENTER), ("combiner", _COMBINER))
        )
        steps = [
            self._object(each, ("steps", number), _STEP)
            for number, each in enumerate(read.get("steps", []))
        ]
        whole = [
            (read, _PIPELINE),
            (fragmenter, _FRAGMENTER),
            (combiner, _COMBINER),
            *((step, _STEP) for step in steps),
        ]
        # Without its configuration a step may write other channels, and no word about channels would be true.
        config_refused = any(problem.path[-1:] == (_CONFIG.name,) for problem in self._findings)
        if config_refused or not all(_has_what_it_needs(part, keys) for part, keys in whole):
            return None
        parts: dict[str, Any] = {
            "fragmenter": Fragmenter(**fragmenter),
            "steps": tuple(map(_step_of, steps)),
            "combiner": Combiner(**combiner),
        }
        unknown = tuple(self.unknown_keys)
        return Pipeline(**{**read, **parts}, source=self._findings.file, unknown_keys=unknown)

    def _object(
        self,
        values: Any,  # noqa: ANN401 - whatever the file holds
        path: KeyPath,
        keys: Sequence[_Key],
    ) -> dict[str, Any]:
        if not isinstance(values, dict):
            example = ", ".join(f'"{key.name}"' for key in keys if key.required)
            self._findings.error(
                path,
                f"is {shown(values)}, and should be an object",
                f"write an object with {example}",
            )
            return {}
        read: dict[str, Any] = {}
        names = {key.name for key in keys} | _OF_THE_MANAGER
        unknown = [name for name in values if name not in names]
        misspelt = _misspelt(unknown, [key.name for key in keys if values.get(key.name) is None])
        for key in keys:
            value = values.get(key.name)
            if value is not None:
                self._value(value, (*path, key.name), key, read)
            elif key.required:
                self._missing(path, key, misspelt.get(key.name))
                unknown = [name for name in unknown if name != misspelt.get(key.name)]
        self.unknown_keys += [(*path, name) for name in unknown]
        return read

    def _value(self, value: Any, path: KeyPath, key: _Key, read: dict[str, Any]) -> None:  # noqa: ANN401 - whatever the file holds
        try:
            read[key.name] = msgspec.convert(value, key.type)
        except msgspec.ValidationError:
            message = f"is {_told_of(value, key)}, and should be {key.expected}"
            self._findings.error(path, message, _remedy(value, key))

    def _missing(self, path: KeyPath, key: _Key, misspelt: str | None) -> None:
        name = quoted(key.name)
        message, remedy = f"{name} is missing", f"add it: {key.expected}"
        if misspelt is not None:
            message += f", and {quoted(misspelt)} is no key that anyone reads"
            remedy = f"did you mean {name} by {quoted(misspelt)}? Otherwise {remedy}"
        self._findings.error((*path, key.name), message, remedy)


def _misspelt(unknown: Iterable[str], absent: Sequence[str]) -> dict[str, str]:
    """Return which unknown key each absent one may be meant by; an unknown one is meant for its nearest alone."""
    found: dict[str, str] = {}
    for name in unknown:
        meant = nearest(name, absent)
        if meant is not None:
            found.setdefault(meant, name)
    return found


def _has_what_it_needs(read: dict[str, Any], keys: Sequence[_Key]) -> bool:
    return all(key.name in read for key in keys if key.required)


def _step_of(read: dict[str, Any]) -> Step:
    version = read.get("version")
    return Step(**{**read, "version": None if version is None else str(version)})


def _told_of(value: Any, key: _Key) -> str:  # noqa: ANN401 - whatever the file holds
    if isinstance(value, list) and key.type == list[str]:
        wrong = next(each for each in value if not isinstance(each, str))
        return f"a list with {shown(wrong)} in it"
    return shown(value)


def _remedy(value: Any, key: _Key) -> str:  # noqa: ANN401 - whatever the file holds
    if key.type == list[str] and isinstance(value, str):
        try:
            words = shlex.split(value)
        except ValueError:
            words = value.split()
        return f"write one text for each word: {msgspec.json.encode(words).decode()}"
    if key.type is int and isinstance(value, str):
        return "write the number without quotation marks"
    if isinstance(value, bool | int | float) and key.type in {str, list[str]}:
        return "put it in quotation marks"
    return f"write {key.expected} there"
