"""Whatever a pipeline file holds ends in a pipeline or in problems, never in another error."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from iterum_sidecar.pipeline.lint import lint_file, lint_for_local
from iterum_sidecar.pipeline.problems import report
from tests.unit.pipeline.made import step_values, values

WORDS = st.sampled_from(["first", "last", "errors", "lineage", "edges", "fragmenter", "a/b", ""])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | WORDS, inner, max_size=3)
    ),
    max_leaves=8,
)
FULL = values(
    step_values(config={"queue_mapping": {"bad": "errors"}, "config_files": {"w": "w"}}),
    step_values(name="b", input_channel="errors", image="b:1", prefetch_count=5, version=1),
    config={"queue_mapping": {}, "config_files": {}},
)


@given(data=st.data())
def test_a_right_file_with_some_of_its_values_replaced(data: st.DataObject) -> None:
    spoilt: Any = copy.deepcopy(FULL)
    for _ in range(data.draw(st.integers(1, 3))):
        at: Any = spoilt
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = data.draw(st.sampled_from(keys)) if keys else None
            if key is None or not isinstance(at[key], dict | list) or data.draw(st.booleans()):
                break
            at = at[key]
        if key is not None:
            at[key] = data.draw(ANYTHING)
    check(json.dumps(spoilt), "pipeline.json")


@given(text=st.text() | ANYTHING.map(json.dumps), ending=st.sampled_from(["json", "toml", "yaml"]))
def test_any_text(text: str, ending: str) -> None:
    check(text.encode(errors="replace").decode(), f"pipeline.{ending}")


def check(text: str, name: str) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory, name)
        path.write_text(text)
        made, problems = lint_file(path)
        if made is None:
            assert any(problem.severity == "error" for problem in problems)
        else:
            problems += lint_for_local(made, path.parent, None)
            for step in made.steps:
                json.loads(made.iterum_config(step, "hash"))
        text = report(problems)
        assert all(problem.place in text and problem.remedy in text for problem in problems)
        assert all(character.isprintable() or character == "\n" for character in text)
