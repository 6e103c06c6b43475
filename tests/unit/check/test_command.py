from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from iterum_sidecar.check.command import Options, check_pod
from iterum_sidecar.check.findings import AREAS
from iterum_sidecar.cli import main
from iterum_sidecar.exit_codes import CHECK_MEANINGS, ExitCode

PAGE = Path(__file__).parents[3] / "docs" / "check.md"


def test_without_an_environment_every_area_is_told_and_the_variables_fail() -> None:
    output = io.StringIO()
    code = check_pod({}, Options(as_json=True), output)
    whole = json.loads(output.getvalue())
    assert code is ExitCode.CONFIGURATION
    assert whole["summary"]["exit_code"] == ExitCode.CONFIGURATION
    assert list(dict.fromkeys(each["area"] for each in whole["findings"])) == list(AREAS)


def test_text_is_the_form_for_people() -> None:
    output = io.StringIO()
    check_pod({}, Options(), output)
    assert output.getvalue().startswith("FAILED   variables  DATA_VOLUME_PATH")


def test_the_command_line_needs_no_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.environ", {})
    assert main(["check"]) == ExitCode.CONFIGURATION
    assert capsys.readouterr().out.startswith("FAILED   variables  DATA_VOLUME_PATH")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon", "601"])
def test_a_timeout_that_is_none_is_refused(
    seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", f"--timeout={seconds}"])
    assert ended.value.code == ExitCode.USAGE
    assert "a number of seconds, more than 0 and at most 600" in capsys.readouterr().err


@pytest.mark.parametrize(
    "url", ["", "user:hunter2@host", "http://", "http://a:hunter2@[", "ftp://h"]
)
def test_a_management_url_that_is_none_is_refused_and_not_repeated(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", f"--management-url={url}"])
    assert ended.value.code == ExitCode.USAGE
    assert "hunter2" not in capsys.readouterr().err


def test_each_area_has_an_exit_code_that_is_explained() -> None:
    assert set(AREAS.values()) <= CHECK_MEANINGS.keys()


def test_the_page_tells_each_exit_code_as_help_does() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == {
        int(code): meaning for code, meaning in CHECK_MEANINGS.items()
    }
