"""What the settings refuse, and what they say of it."""

from __future__ import annotations

import json

import pytest

from iterum_sidecar.exit_codes import BadConfiguration, ExitCode
from iterum_sidecar.settings import read_settings
from iterum_sidecar.variables import EXTENSIONS
from tests.unit.test_settings import REQUIRED


def problems(**changes: str) -> list[str]:
    with pytest.raises(BadConfiguration) as refusal:
        read_settings(REQUIRED | changes)
    for problem in refusal.value.problems:
        assert problem in str(refusal.value)
        assert "\n" not in problem
    return refusal.value.problems


def only_problem(**changes: str) -> str:
    (problem,) = problems(**changes)
    return problem


def test_everything_that_is_missing_is_named_at_once_with_what_it_should_be() -> None:
    with pytest.raises(BadConfiguration) as refusal:
        read_settings({})
    assert [problem.split(" ")[0] for problem in refusal.value.problems] == list(REQUIRED)
    assert all(" is missing: " in problem for problem in refusal.value.problems)
    assert refusal.value.exit_code is ExitCode.CONFIGURATION
    assert not refusal.value.retryable


@pytest.mark.parametrize("name", REQUIRED)
def test_an_empty_variable_is_a_missing_one(name: str) -> None:
    assert only_problem(**{name: ""}).startswith(f"{name} is missing: ")


def test_wrong_missing_and_unknown_ones_are_named_together() -> None:
    found = problems(
        ITERUM_NAME="",
        MINIO_USE_SSL="yes",
        MQ_PREFETCH_COUNT="-1",
        SIDECAR_ATTEMPTS="0",
        SIDECAR_ATEMPTS="1",
        ITERUM_CONFIG='{"sidecar":{"no":1}}',
    )
    assert [problem.split(" ")[0].rstrip(":") for problem in found] == [
        "ITERUM_NAME",
        "MQ_PREFETCH_COUNT",
        "MINIO_USE_SSL",
        "SIDECAR_ATEMPTS",
        "ITERUM_CONFIG",
        "SIDECAR_ATTEMPTS",
    ]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("TRANSFORMATION_STEP_INPUT", ["in", "in.sock/", "../in.sock", "a/../in.sock"]),
        ("TRANSFORMATION_STEP_OUTPUT", ["out.SOCK", "a/../../out.sock"]),
        ("ITERUM_CONFIG_PATH", ["/", ".", "..", "a/../b", "../config", "//"]),
        ("ITERUM_CONFIG", ["[]", "null", "1", "{", '{"queue_mapping":[]}', "\udcff"]),
        ("MANAGER_URL", ["manager:3001", "ftp://manager", "http://", "http:manager"]),
        ("MANAGER_URL", ["http://manager:99999", "http://manager:port"]),
        ("MQ_BROKER_URL", ["rabbit:5672", "http://rabbit", "amqp://", "amqp://rabbit:99999"]),
        ("MQ_BROKER_URL", ["amqp://rabbit:port", "amqp:rabbit"]),
        ("MQ_PREFETCH_COUNT", ["-1", "65536", "1.0", " 5", "5\n", "٣", "1_0", "0x5", "many"]),
        ("MQ_PREFETCH_COUNT", ["9" * 5000]),
        ("MINIO_URL", ["ftp://minio", "minio:port", "minio:99999", "http://", ":9000"]),
        ("MINIO_URL", ["minio/bucket", "http://minio/bucket", "minio?x=1", "user:pw@minio"]),
        ("MINIO_USE_SSL", ["yes", "tRUE", "2", "on", " true"]),
        ("SIDECAR_ATTEMPTS", ["0", "1001", "1.5", "three"]),
        ("SIDECAR_DRAIN_SECONDS", ["-1", "inf", "nan", "1e3", "10s", ".5", "5."]),
        ("SIDECAR_HANDOUT_DEPTH", ["0", "4097"]),
        (
            "SIDECAR_VOLUME_BUDGET",
            ["-1", "1.5", "1.5G", "10GB", "10 G", "G", "half", "10ki", "1e9"],
        ),
        ("SIDECAR_FRAME_LIMIT", ["1023", "2147483649", "16M"]),
        ("SIDECAR_KILL_ON_ERROR", ["no"]),
        ("SIDECAR_QUEUE_TYPE", ["Quorum", "stream"]),
        ("SIDECAR_LINEAGE", ["on", "true"]),
        ("SIDECAR_S3_ADDRESSING", ["host"]),
        ("SIDECAR_BROKER_SERVER_NAME", ["a..b", "https://rabbit", "rabbit:5671", " "]),
        ("SIDECAR_STORE_SERVER_NAME", ["a b", "minio/"]),
        ("SIDECAR_TLS_VERIFY", ["no", "off"]),
        ("MINIO_ACCESS_KEY", ["key\r", "clé"]),
        ("SIDECAR_S3_SESSION_TOKEN", ["token\n"]),
        ("SIDECAR_LOG_LEVEL", ["INFO", "trace"]),
        ("SIDECAR_LOG_FORMAT", ["xml"]),
        ("SIDECAR_HTTP_ADDRESS", ["8080", "host", "host:", ":0", ":65536", "::1:80", "[::1]"]),
        ("SIDECAR_HTTP_ADDRESS", ["http://host:80", "host:80/", "a b:80", "[host]:80", ":٣"]),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(name: str, values: list[str]) -> None:
    for value in values:
        problem = only_problem(**{name: value})
        assert problem.startswith(name)
        assert "is not what it should be" in problem
        assert len(problem) < 400


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attempts", 0),
        ("attempts", 2.0),
        ("attempts", True),
        ("attempts", [1]),
        ("drain_seconds", -1),
        ("drain_seconds", "soon"),
        ("kill_on_error", 5),
        ("log_level", {"level": "info"}),
        ("s3_region", ["eu-west-1"]),
        ("ca_file", {"path": "/ca.pem"}),
        ("s3_session_token", ["token"]),
    ],
)
def test_a_value_of_the_wrong_kind_in_the_config_is_refused_by_name(
    key: str, value: object
) -> None:
    problem = only_problem(ITERUM_CONFIG=json.dumps({"sidecar": {key: value}}))
    assert f"SIDECAR_{key.upper()}" in problem


@pytest.mark.parametrize("sidecar", ["[]", "5", '"attempts"'])
def test_what_is_no_object_is_no_sidecars_config(sidecar: str) -> None:
    problem = only_problem(ITERUM_CONFIG=f'{{"sidecar":{sidecar}}}')
    assert "`$.sidecar`" in problem


def test_a_config_nested_too_deep_is_refused() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    assert only_problem(ITERUM_CONFIG=f'{{"mine":{deep}}}').startswith("ITERUM_CONFIG")


@pytest.mark.parametrize("file", ["", "/", "..", "../x", "a/../../x", "a\0b"])
def test_a_config_file_that_leads_out_of_its_directory_is_refused(file: str) -> None:
    config = json.dumps({"config_files": {"model": file}})
    assert "config file 'model' leads out" in only_problem(ITERUM_CONFIG=config)


def test_a_clients_key_without_its_certificate_is_refused() -> None:
    assert "SIDECAR_CLIENT_CERTIFICATE" in only_problem(SIDECAR_CLIENT_KEY="/tls.key")


# -- unknown names


@pytest.mark.parametrize("known", [variable.name for variable in EXTENSIONS])
def test_an_unknown_name_suggests_the_nearest(known: str) -> None:
    misspelled = known[:-2] + known[-1]
    assert only_problem(**{misspelled: "1"}) == f"{misspelled} is unknown; did you mean {known}?"
    key, wrong = known[8:].lower(), misspelled[8:].lower()
    problem = only_problem(ITERUM_CONFIG=json.dumps({"sidecar": {wrong: 1}}))
    assert problem == (
        f"ITERUM_CONFIG: \"sidecar\" has the unknown key '{wrong}'; did you mean {key}?"
    )


def test_a_name_that_was_cut_short_suggests_its_whole() -> None:
    assert only_problem(SIDECAR_DRAIN="1").endswith("; did you mean SIDECAR_DRAIN_SECONDS?")


def test_seconds_with_a_unit_are_told_that_they_have_none() -> None:
    problem = only_problem(SIDECAR_DRAIN_SECONDS="30s")
    assert "'30s' is not what it should be (a number without a unit is needed)" in problem


def test_an_unknown_key_that_is_near_to_none_is_told_without_a_guess() -> None:
    problem = only_problem(ITERUM_CONFIG='{"sidecar":{"zzz":1}}')
    assert problem == "ITERUM_CONFIG: \"sidecar\" has the unknown key 'zzz'"


@pytest.mark.parametrize("name", ["SIDECAR_SERVICE_TIMEOUTS", "SIDECAR_PORTS", "SIDECAR_HOST"])
def test_what_is_only_like_a_service_link_is_unknown(name: str) -> None:
    assert only_problem(**{name: "1"}).startswith(f"{name} is unknown")


def test_variables_of_others_are_ignored() -> None:
    assert read_settings(REQUIRED | {"MY_SIDECAR_X": "1", "sidecar_x": "1"}).attempts == 3


# -- the socket's path


@pytest.mark.parametrize("which", ["INPUT", "OUTPUT"])
def test_a_sockets_path_of_108_bytes_is_refused(which: str) -> None:
    name = "é" + "a" * (108 - len("/data-volume/") - 2 - len(".sock")) + ".sock"
    assert len(f"/data-volume/{name}".encode()) == 108
    problem = only_problem(**{f"TRANSFORMATION_STEP_{which}": name})
    assert problem.startswith(f"TRANSFORMATION_STEP_{which}: ")
    assert "107 bytes" in problem


def test_a_socket_outside_the_volume_is_refused() -> None:
    problem = only_problem(TRANSFORMATION_STEP_INPUT="/run/input.sock")
    assert problem.startswith("TRANSFORMATION_STEP_INPUT")


@pytest.mark.parametrize("name", ["output.sock", "./output.sock"])
def test_one_socket_cannot_be_both(name: str) -> None:
    assert "are the same socket" in only_problem(TRANSFORMATION_STEP_INPUT=name)


# -- secrets

SECRET = "hunter2"


@pytest.mark.parametrize(
    "changes",
    [
        {"MQ_BROKER_URL": f"http://user:{SECRET}@rabbit"},
        {"MQ_BROKER_URL": f"amqp://user:{SECRET}@rabbit:{SECRET}"},
        {"MQ_BROKER_URL": f"amqp://{SECRET}"[:-1] + ":x"},
        {"MANAGER_URL": f"ftp://user:{SECRET}@manager"},
        {"MINIO_URL": f"http://user:{SECRET}@minio:9000"},
        {"MINIO_URL": f"user:{SECRET}@minio:9000"},
        {"ITERUM_CONFIG": f'{{"sidecar":{{"s3_session_token":"{SECRET}"}}'},
        {"ITERUM_CONFIG": f'{{"sidecar":{{"s3_session_token":{SECRET}}}}}'},
        {"ITERUM_CONFIG": f'{{"sidecar":["{SECRET}"]}}'},
        {"ITERUM_CONFIG": f'{{"sidecar":{{"s3_session_tokn":"{SECRET}"}}}}'},
        {"ITERUM_CONFIG": f'{{"sidecar":{{"s3_session_token":"{SECRET}","attempts":0}}}}'},
        {"ITERUM_CONFIG": f'{{"queue_mapping":{{"x":["{SECRET}"]}}}}'},
        {"ITERUM_CONFIG": f"{SECRET}\udcff"},
        {"SIDECAR_S3_SESION_TOKEN": SECRET},
        {"MINIO_SECRET_KEY": SECRET, "MINIO_USE_SSL": "maybe"},
    ],
)
def test_no_secret_shows_in_an_error(changes: dict[str, str]) -> None:
    with pytest.raises(BadConfiguration) as refusal:
        read_settings(REQUIRED | changes)
    shown = f"{refusal.value} {refusal.value!r} {refusal.getrepr(showlocals=False, chain=True)}"
    assert SECRET not in str(refusal.value)
    assert SECRET not in repr(refusal.value)
    assert "bad configuration" in shown
