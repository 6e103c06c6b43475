from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.check.findings import Findings, Outcome
from iterum_sidecar.check.variables import look_at_variables
from iterum_sidecar.variables import CONTRACT, EXTENSIONS, Variable

from .environment import RIGHT, by_subject, failed, readable

if TYPE_CHECKING:
    from pathlib import Path

REQUIRED = [variable.name for variable in CONTRACT if variable.default is None]


def test_the_environment_of_these_tests_is_right() -> None:
    findings = Findings("variables")
    found = look_at_variables(RIGHT, findings)
    assert (failed(findings), found.wrong) == ({}, frozenset())
    assert sorted(RIGHT) == sorted(REQUIRED)


def test_defaults_that_have_a_price_are_told_unless_another_value_is_set() -> None:
    findings = Findings("variables")
    look_at_variables(RIGHT | {"ITERUM_CONFIG": '{"sidecar": {"drain_seconds": 60}}'}, findings)
    assert by_subject(findings).keys() == {
        "variables",
        "MQ_PREFETCH_COUNT",
        "SIDECAR_SERVICE_TIMEOUT",
        "SIDECAR_VOLUME_BUDGET",
        "SIDECAR_QUEUE_DURABLE",
    }


def test_without_any_variable_each_that_is_required_is_named_and_nothing_else_is_wrong() -> None:
    findings = Findings("variables")
    found = look_at_variables({}, findings)
    assert list(failed(findings)) == REQUIRED
    assert found.wrong == set(REQUIRED)
    assert failed(findings)["MINIO_URL"].remedy == (
        "set it to host:port of the object store, or its http(s) URL"
    )


@pytest.mark.parametrize("name", REQUIRED)
def test_one_that_is_missing_spoils_no_other(name: str) -> None:
    assert readable(**{name: ""}).wrong == {name}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MQ_BROKER_URL", "http://user:hunter2@host"),
        ("MQ_PREFETCH_COUNT", "many"),
        ("MINIO_USE_SSL", "perhaps"),
        ("MANAGER_URL", "host"),
        ("ITERUM_CONFIG", "{"),
        ("ITERUM_CONFIG", '{"sidecar": {"attemps": 1}}'),
        ("SIDECAR_ATTEMPTS", "0"),
        ("SIDECAR_QUEUE_TYPE", "stream"),
    ],
)
def test_one_that_is_wrong_is_named_with_its_remedy_and_the_others_are_read(
    name: str, value: str
) -> None:
    findings = Findings("variables")
    found = look_at_variables(RIGHT | {name: value}, findings)
    assert failed(findings).keys() == {name}
    assert failed(findings)[name].remedy
    assert found.wrong == {name}
    assert found.settings.output_bucket == RIGHT["MINIO_OUTPUT_BUCKET"]


def test_a_value_with_a_colon_is_told_whole() -> None:
    findings = Findings("variables")
    look_at_variables(RIGHT | {"MANAGER_URL": "ftp: host"}, findings)
    (finding,) = failed(findings).values()
    assert finding.detail == "'ftp: host' is not what it should be"
    expected = next(each.expected for each in CONTRACT if each.name == "MANAGER_URL")
    assert finding.remedy == f"set it to {expected}"


def test_the_remedy_for_a_file_never_asks_for_the_secret_in_the_place_of_its_path() -> None:
    findings = Findings("variables")
    look_at_variables(RIGHT | {"MINIO_SECRET_KEY": "", "MINIO_SECRET_KEY_FILE": "/"}, findings)
    (finding,) = failed(findings).values()
    assert finding.detail == "'/' cannot be read (Is a directory)"
    assert finding.remedy == (
        "set it to the path of a file that holds the secret key of the object store"
    )


def test_a_secret_that_is_given_twice_is_to_be_given_once() -> None:
    findings = Findings("variables")
    look_at_variables(RIGHT | {"MINIO_SECRET_KEY_FILE": "/key"}, findings)
    (finding,) = failed(findings).values()
    assert finding.detail == "and MINIO_SECRET_KEY_FILE are both set"
    assert finding.remedy == "set one of them"


def test_an_unknown_name_is_told_and_spoils_nothing() -> None:
    findings = Findings("variables")
    found = look_at_variables(RIGHT | {"SIDECAR_ATTEMPS": "1"}, findings)
    assert "did you mean SIDECAR_ATTEMPTS?" in failed(findings)["SIDECAR_ATTEMPS"].detail
    assert found.wrong == frozenset()


def test_a_path_that_is_too_long_spoils_the_sockets_and_not_the_volume() -> None:
    volume = "/" + "v" * 80
    found = readable(DATA_VOLUME_PATH=volume, TRANSFORMATION_STEP_INPUT="i" * 40 + ".sock")
    assert found.wrong == {"TRANSFORMATION_STEP_INPUT", "TRANSFORMATION_STEP_OUTPUT"}
    assert found.settings.volume == volume


def test_a_volume_in_which_no_socket_fits_is_wrong_itself() -> None:
    assert readable(DATA_VOLUME_PATH="/" + "v" * 120).wrong == {"DATA_VOLUME_PATH"}


def test_a_key_without_its_certificate_spoils_both() -> None:
    both = {"SIDECAR_CLIENT_CERTIFICATE", "SIDECAR_CLIENT_KEY"}
    assert readable(SIDECAR_CLIENT_KEY="/key.pem").wrong == both
    in_config = readable(ITERUM_CONFIG='{"sidecar": {"client_key": "/key.pem"}}')
    assert in_config.wrong == {"ITERUM_CONFIG"}


def test_a_key_with_its_certificate_is_right_where_something_else_is_wrong() -> None:
    found = readable(
        SIDECAR_CLIENT_CERTIFICATE="/certificate.pem", SIDECAR_CLIENT_KEY="/key.pem", ITERUM_NAME=""
    )
    assert found.wrong == {"ITERUM_NAME"}
    assert found.settings.client_key == "/key.pem"


def test_a_secret_in_a_file_is_read_from_there(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-the-file\n", encoding="utf-8")
    variables = {"MINIO_SECRET_KEY": "", "MINIO_SECRET_KEY_FILE": str(file), "ITERUM_NAME": ""}
    found = readable(**variables)
    assert found.wrong == {"ITERUM_NAME"}
    assert found.settings.store_secret_key == "from-the-file"


def test_a_file_that_cannot_be_read_and_a_secret_given_twice_spoil_that_secret_alone() -> None:
    both = readable(MINIO_SECRET_KEY_FILE="/nowhere")
    assert "MINIO_SECRET_KEY" in both.wrong
    assert both.lacks("MINIO_ACCESS_KEY", "MINIO_URL") == ""
    missing = readable(MINIO_SECRET_KEY="", MINIO_SECRET_KEY_FILE="/nowhere")
    assert missing.wrong == {"MINIO_SECRET_KEY", "MINIO_SECRET_KEY_FILE"}


def test_a_file_of_authorities_that_cannot_be_used_fails_and_spoils_what_speaks_tls() -> None:
    findings = Findings("variables")
    variables = {"MQ_BROKER_URL": "amqps://host", "SIDECAR_CA_FILE": "/nowhere"}
    found = look_at_variables(RIGHT | variables, findings)
    assert failed(findings).keys() == {"SIDECAR_CA_FILE"}
    assert found.lacks("SIDECAR_CA_FILE")


def test_certificates_that_are_not_verified_are_a_warning() -> None:
    findings = Findings("variables")
    variables = {"MQ_BROKER_URL": "amqps://host", "SIDECAR_TLS_VERIFY": "false"}
    look_at_variables(RIGHT | variables, findings)
    assert by_subject(findings, Outcome.WARNING).keys() == {"SIDECAR_TLS_VERIFY"}


def test_the_reason_not_to_look_names_what_is_wrong() -> None:
    found = readable(MINIO_URL="", MINIO_ACCESS_KEY="")
    assert found.lacks("MQ_BROKER_URL") == ""
    assert (
        found.lacks("MINIO_URL", "MQ_BROKER_URL") == "not looked at: MINIO_URL is missing or wrong"
    )
    assert found.lacks("MINIO_URL", "MINIO_ACCESS_KEY") == (
        "not looked at: MINIO_URL, MINIO_ACCESS_KEY are missing or wrong"
    )


@pytest.mark.parametrize("variable", [*CONTRACT, *EXTENSIONS], ids=lambda variable: variable.name)
def test_whatever_is_in_a_variable_nothing_is_raised(variable: Variable) -> None:
    for value in ("\x00", "🙂" * 300, "{}", "-1", "://", "["):
        readable(**{variable.name: value})
