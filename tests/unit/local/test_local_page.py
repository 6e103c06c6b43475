"""`docs/local-runs.md` against the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from iterum_sidecar.cli import main
from iterum_sidecar.exit_codes import LOCAL_MEANINGS
from iterum_sidecar.local.combiner import RESERVED
from iterum_sidecar.pipeline.reading import read_pipeline

PAGE = (Path(__file__).parents[3] / "docs" / "local-runs.md").read_text(encoding="utf-8")


def test_the_exit_codes_are_those_of_the_code() -> None:
    told = dict(re.findall(r"^\| (\d+) \| (.+) \|$", PAGE, re.MULTILINE))
    assert told == {str(int(code)): meaning for code, meaning in LOCAL_MEANINGS.items()}


def test_the_pipeline_that_is_shown_can_be_read(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "pipeline.json").write_text(shown)
    pipeline = read_pipeline(tmp_path / "pipeline.json")
    assert [step.name for step in pipeline.steps] == ["edges"]
    assert pipeline.unknown_keys == ()


def test_everything_that_a_run_keeps_beside_the_results_is_told() -> None:
    for name in RESERVED:
        assert re.search(rf"^\| `{re.escape(name)}[/`]", PAGE, re.MULTILINE), name


def test_every_option_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["local", "--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert options
    assert {option for option in options if option not in PAGE} == set()
