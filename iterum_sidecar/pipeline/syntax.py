"""The text of a pipeline file as plain values: JSON, TOML, and YAML where PyYAML is installed.

What these formats can say and JSON cannot (a date, a number that is none, a key that is no text, a key that is there twice) is a
problem with its place: the containers get their configuration as JSON, and Iterum's manager takes nothing else.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import tomllib
from collections import Counter
from typing import TYPE_CHECKING, Any

from iterum_sidecar.pipeline.problems import PipelineRefused, Problem, quoted

if TYPE_CHECKING:
    from collections.abc import Callable

    from iterum_sidecar.pipeline.problems import Findings, KeyPath

__all__ = ["FORMATS", "parse"]

#: A YAML file of a few lines can stand for as many values as it likes, by aliases of aliases.
MOST_VALUES = 200_000
_TOO_DEEP = "is nested too deeply"
_COMMA_AT_END = re.compile(r",\s*[}\]]")
_TOML_PLACE = re.compile(r" \(at line (\d+), column (\d+)\)\Z")


class _Object(dict[Any, Any]):
    """An object as it was read, with the keys that it has more than once."""

    repeated: tuple[Any, ...] = ()


class _SyntaxWrong(Exception):
    """The text is not in its format; line and column count from 1."""

    def __init__(self, message: str, remedy: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.place = f":{line}:{column}" if line else ""


def parse(text: str, extension: str, findings: Findings) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return the plain values of a text, and add to `findings` what JSON cannot say.

    `extension` is one of `FORMATS`; with any other the text is read as JSON.

    Raises:
        PipelineRefused: the text is not in its format; the place has the line and the column.
    """
    read = FORMATS.get(extension, _read_json)
    try:
        values = read(text)
        return _Plain(findings).plain(values, ())
    except _SyntaxWrong as error:
        guess = (
            ""
            if extension in FORMATS
            else f" (read as JSON, for its name ends in none of {', '.join(FORMATS)})"
        )
        file, message, remedy = findings.file + error.place, error.message + guess, error.remedy
    except RecursionError:
        file, message, remedy = (
            findings.file,
            _TOO_DEEP,
            "a pipeline needs few levels; write it flatter",
        )
    problem = Problem(file=file, path=(), message=message, remedy=remedy)
    raise PipelineRefused([problem]) from None


# -- JSON


def _read_json(text: str) -> Any:  # noqa: ANN401 - whatever the file holds
    try:
        return json.loads(text, object_pairs_hook=_object_of)
    except json.JSONDecodeError as error:
        remedy = _json_remedy(text, error.pos, error.msg)
        raise _SyntaxWrong(f"is no JSON: {error.msg}", remedy, error.lineno, error.colno) from None
    except ValueError as error:
        # A number of more digits than Python reads.
        raise _SyntaxWrong(
            f"is no JSON that can be read: {error}", "write a shorter number"
        ) from None


def _object_of(pairs: list[tuple[Any, Any]]) -> _Object:
    made = _Object(pairs)
    if len(made) < len(pairs):
        made.repeated = _repeated([key for key, _ in pairs])
    return made


def _repeated(keys: list[Any]) -> tuple[Any, ...]:
    return tuple(key for key, times in Counter(keys).items() if times > 1)


def _json_remedy(text: str, position: int, expected: str) -> str:
    rest = text[position:].lstrip()
    before = text[:position].rstrip()
    if not rest:
        return "the text ends too early: close every brace, bracket and quotation mark"
    # Python 3.13 and later stop at the comma, earlier ones behind it.
    if _COMMA_AT_END.match(rest) or (rest[0] in "}]" and before.endswith(",")):
        return "remove the comma before the closing brace or bracket"
    if rest.startswith(("//", "/*", "#")):
        return "JSON has no comments: remove it, or write the pipeline as TOML, which has them"
    if rest[0] == "'":
        return 'JSON has texts between double quotation marks: "…"'
    if "','" in expected and rest[0] in '"{[':
        return "put a comma between the two"
    return "correct the text there"


# -- TOML


def _read_toml(text: str) -> Any:  # noqa: ANN401 - whatever the file holds
    try:
        return tomllib.loads(text)
    except ValueError as error:
        message = str(error)
        place = _TOML_PLACE.search(message)
        line, column = (int(place[1]), int(place[2])) if place else (0, 0)
        raise _SyntaxWrong(
            f"is no TOML: {_TOML_PLACE.sub('', message)}", "correct the text there", line, column
        ) from None


# -- YAML


def _read_yaml(text: str) -> Any:  # noqa: ANN401 - whatever the file holds
    try:
        yaml = importlib.import_module("yaml")
    except ImportError:
        raise _SyntaxWrong(
            "is YAML, and PyYAML, which reads it, is not installed",
            "pip install 'iterum-sidecar[local]', or write the pipeline as JSON or TOML",
        ) from None
    try:
        return yaml.load(text, Loader=_yaml_loader(yaml))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        raise _SyntaxWrong(
            f"is no YAML: {what}", "correct the text there; YAML goes by indentation", line, column
        ) from None
    except (ValueError, TypeError) as error:
        # A date that is none, a number too long, a key that is a list.
        raise _SyntaxWrong(
            f"is YAML that cannot be read: {error}",
            "put what is meant as a text in quotation marks",
        ) from None


def _yaml_loader(yaml: Any) -> Any:  # noqa: ANN401 - PyYAML has no types
    """Make a safe loader whose objects know which of their keys are there twice; PyYAML takes the last one silently."""
    loader: Any = type("Loader", (yaml.SafeLoader,), {})

    def construct(maker: Any, node: Any) -> _Object:  # noqa: ANN401 - PyYAML has no types
        # Before the next line: a key of an object that is merged in (`<<`) may be there again, that is how one is replaced.
        keys = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        made = _Object(maker.construct_mapping(node, deep=True))
        made.repeated = _repeated([maker.construct_object(key, deep=True) for key in keys])
        return made

    loader.add_constructor("tag:yaml.org,2002:map", construct)
    return loader


# -- what JSON can say


class _Plain:
    """Turns what was read into dicts, lists, texts, numbers, truth values and null."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._left = MOST_VALUES

    def plain(self, value: Any, path: KeyPath) -> Any:  # noqa: ANN401 - whatever the file holds
        self._left -= 1
        if self._left < 0:
            raise _SyntaxWrong(
                f"has more than {MOST_VALUES:,} values", "put what is so large into a config file"
            )
        if isinstance(value, dict):
            return self._object(value, path)
        if isinstance(value, list):
            return [self.plain(each, (*path, number)) for number, each in enumerate(value)]
        if isinstance(value, str):
            return self._text(value, path)
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        self._findings.error(
            path,
            f"{value} ({type(value).__name__}) is nothing that JSON has, and so no container could be told",
            "write it as a text, in quotation marks",
        )
        return str(value)

    def _object(self, value: dict[Any, Any], path: KeyPath) -> dict[str, Any]:
        for key in value.repeated if isinstance(value, _Object) else ():
            self._findings.error(
                (*path, str(key)),
                f"the key {quoted(str(key))} is there more than once, and only the last would count",
                "remove all but one",
            )
        made: dict[str, Any] = {}
        for key, each in value.items():
            if not isinstance(key, str):
                self._findings.error(
                    (*path, str(key)),
                    f"the key {key} is no text but {type(key).__name__}",
                    "put the key in quotation marks",
                )
            name = self._text(str(key), path)
            made[name] = self.plain(each, (*path, name))
        return made

    def _text(self, value: str, path: KeyPath) -> str:
        if value.isascii():
            return value
        try:
            value.encode()
        except UnicodeEncodeError:
            self._findings.error(
                path,
                "has half of a character (a lone surrogate), which cannot be written as UTF-8",
                "write the character itself",
            )
            return value.encode(errors="replace").decode()
        return value


#: How a text is read, by the end of its file's name.
FORMATS: dict[str, Callable[[str], Any]] = {
    ".json": _read_json,
    ".toml": _read_toml,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
}
