"""Pipelines and pipeline files for the tests of the model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from iterum_sidecar.pipeline.lint import lint
from iterum_sidecar.pipeline.model import Combiner, Fragmenter, Pipeline, Step

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from iterum_sidecar.pipeline.problems import Problem


def step(name: str, reads: str, writes: str, **more: Any) -> Step:  # noqa: ANN401 - any field of a step
    more.setdefault("command", ["python"])
    return Step(name=name, input_channel=reads, output_channel=writes, **more)


def pipeline(*steps: Step, first: str = "first", last: str = "last", **more: Any) -> Pipeline:  # noqa: ANN401 - any field of a pipeline
    return Pipeline(
        name="demo",
        fragmenter=more.pop("fragmenter", Fragmenter(output_channel=first)),
        steps=steps,
        combiner=Combiner(input_channel=last),
        source="pipeline.json",
        **more,
    )


def values(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:  # noqa: ANN401 - any key of a pipeline
    """What the file of a right pipeline holds, with its one step replaced by `steps` and its keys by `more`."""
    return {
        "name": "demo",
        "fragmenter": {"output_channel": "first"},
        "steps": list(steps) or [step_values()],
        "combiner": {"input_channel": "last"},
    } | more


def step_values(**more: Any) -> dict[str, Any]:  # noqa: ANN401 - any key of a step
    usual = {"name": "edges", "input_channel": "first", "output_channel": "last"}
    return usual | {"command": ["python"]} | more


def write(directory: Path, content: object, name: str = "pipeline.json") -> Path:
    path = directory / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def told(problems: Sequence[Problem]) -> list[tuple[str, str]]:
    """The places, without the file, and the severities."""
    return [(problem.place.rpartition(": ")[2], problem.severity) for problem in problems]


PROGRAMS = {"cat": "/bin/cat"}


def found(made: Pipeline, directory: Path) -> list[Problem]:
    return lint(made, directory=directory, find_command=PROGRAMS.get)


def only(made: Pipeline, directory: Path) -> tuple[str, str, str]:
    """The place, message and remedy of the one problem, which is an error."""
    (problem,) = found(made, directory)
    assert problem.severity == "error"
    assert problem.place.startswith("pipeline.json: ")
    return problem.place.removeprefix("pipeline.json: "), problem.message, problem.remedy
