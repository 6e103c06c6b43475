"""The settings' values, and the tables of `variables.py` that they are read by; what is refused is in `test_settings_refused.py`."""

from __future__ import annotations

import json

import pytest

from iterum_sidecar.settings import Settings, read_settings
from iterum_sidecar.variables import CONTRACT, EXTENSIONS

REQUIRED = {
    "DATA_VOLUME_PATH": "/data-volume",
    "TRANSFORMATION_STEP_INPUT": "input.sock",
    "TRANSFORMATION_STEP_OUTPUT": "output.sock",
    "ITERUM_NAME": "hash-edges",
    "PIPELINE_HASH": "hash",
    "ITERUM_CONFIG_PATH": "config",
    "MQ_BROKER_URL": "amqp://guest:guest-password@rabbit:5672",
    "MQ_INPUT_QUEUE": "hash-in",
    "MQ_OUTPUT_QUEUE": "hash-out",
    "MINIO_URL": "minio:9000",
    "MINIO_ACCESS_KEY": "the-access-key",
    "MINIO_SECRET_KEY": "the-secret-key",
    "MINIO_OUTPUT_BUCKET": "hash-edges-output",
}
TRUE = ["1", "t", "T", "TRUE", "true", "True"]
FALSE = ["0", "f", "F", "FALSE", "false", "False", ""]


def read(**changes: str) -> Settings:
    return read_settings(REQUIRED | changes)


def read_config(**sidecar: object) -> Settings:
    return read(ITERUM_CONFIG=json.dumps({"sidecar": sidecar}))


def test_the_required_variables_are_enough_and_the_rest_has_its_default() -> None:
    settings = read_settings(REQUIRED)
    assert (settings.volume, settings.step, settings.pipeline_hash) == (
        "/data-volume",
        "hash-edges",
        "hash",
    )
    assert (settings.input_socket, settings.output_socket) == ("input.sock", "output.sock")
    assert (settings.input_queue, settings.output_queue) == ("hash-in", "hash-out")
    assert (settings.store_access_key, settings.store_secret_key) == (
        "the-access-key",
        "the-secret-key",
    )
    assert settings.broker_url == "amqp://guest:guest-password@rabbit:5672"
    assert (settings.prefetch, settings.manager_url, settings.store_tls) == (0, "", False)
    assert (settings.queue_mapping, settings.config_files) == ({}, {})
    assert (settings.attempts, settings.handout_depth, settings.kill_timeout) == (3, 1, 600.0)
    assert (settings.transformation_start_timeout, settings.service_timeout) == (900.0, 0.0)
    assert settings.transformation_return_timeout == 360.0
    assert settings.lineage
    assert settings.kill_on_error
    assert not settings.fail_on_dead_letters
    assert settings.lineage_queue == "hash-lineage"
    assert settings.dead_letter_queue == "hash-in-dead-letter"
    assert settings.config_bucket == "hash-iterum-config"


def test_every_field_is_filled_by_one_variable_at_most_and_each_variable_says_what_it_should_be() -> (
    None
):
    variables = [*CONTRACT, *EXTENSIONS]
    fields = [name for variable in variables for name in variable.fields]
    assert len(set(fields)) == len(fields)
    assert set(fields) <= set(Settings.__struct_fields__)
    assert all(variable.expected for variable in variables)
    assert all(variable.name.startswith("SIDECAR_") for variable in EXTENSIONS)
    assert {variable.name for variable in CONTRACT if variable.default is None} == set(REQUIRED)


def test_an_empty_optional_variable_is_the_same_as_none() -> None:
    optional = [each.name for each in (*CONTRACT, *EXTENSIONS) if each.default is not None]
    assert read(**dict.fromkeys(optional, "")) == read_settings(REQUIRED)


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("", None),
        (":8080", (None, 8080)),
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:8080", ("::1", 8080)),
        ("[::]:8080", ("::", 8080)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_the_forms_of_an_address_to_listen_at(
    value: str, address: tuple[str | None, int] | None
) -> None:
    assert read(SIDECAR_HTTP_ADDRESS=value).http_address == address


def test_settings_cannot_be_changed() -> None:
    settings = read_settings(REQUIRED)
    with pytest.raises(AttributeError):
        settings.attempts = 5  # type: ignore[misc]


@pytest.mark.parametrize(("value", "prefetch"), [("", 0), ("0", 0), ("1", 1), ("65535", 65535)])
def test_an_empty_prefetch_and_0_are_unset(value: str, prefetch: int) -> None:
    assert read(MQ_PREFETCH_COUNT=value).prefetch == prefetch


@pytest.mark.parametrize("value", TRUE)
def test_a_go_boolean_is_true(value: str) -> None:
    assert read(MINIO_USE_SSL=value).store_tls is True
    assert read(SIDECAR_FAIL_ON_DEAD_LETTERS=value).fail_on_dead_letters is True


@pytest.mark.parametrize("value", FALSE)
def test_a_go_boolean_is_false(value: str) -> None:
    assert read(MINIO_USE_SSL=value).store_tls is False
    assert read(SIDECAR_FAIL_ON_DEAD_LETTERS=value).fail_on_dead_letters is False


@pytest.mark.parametrize(
    ("url", "ssl", "host", "port", "tls"),
    [
        ("minio:9000", "", "minio", 9000, False),
        ("minio:9000", "true", "minio", 9000, True),
        ("minio", "", "minio", 80, False),
        ("minio", "1", "minio", 443, True),
        ("http://minio:9000", "", "minio", 9000, False),
        ("http://minio:9000/", "true", "minio", 9000, False),
        ("https://s3.amazonaws.com", "", "s3.amazonaws.com", 443, True),
        ("https://minio:9000", "false", "minio", 9000, True),
        ("http://minio", "", "minio", 80, False),
        ("10.0.0.1:9000", "", "10.0.0.1", 9000, False),
        ("[::1]:9000", "", "::1", 9000, False),
    ],
)
def test_the_forms_of_the_stores_address(
    url: str, ssl: str, host: str, port: int, tls: bool
) -> None:
    settings = read(MINIO_URL=url, MINIO_USE_SSL=ssl)
    assert (settings.store_host, settings.store_port, settings.store_tls) == (host, port, tls)


@pytest.mark.parametrize(
    "url",
    ["amqp://rabbit", "amqp://u:p@rabbit:5672/", "amqps://u:p%2F@rabbit:5671/vhost", "amqp://[::1]:1/%2F"],
)  # fmt: skip
def test_the_forms_of_the_brokers_address(url: str) -> None:
    assert read(MQ_BROKER_URL=url).broker_url == url


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("", ""),
        ("http://manager:3001", "http://manager:3001"),
        ("https://manager/base/", "https://manager/base"),
        ("http://dummy-url", "http://dummy-url"),
    ],
)
def test_the_forms_of_the_managers_address(url: str, kept: str) -> None:
    assert read(MANAGER_URL=url).manager_url == kept


@pytest.mark.parametrize(
    ("value", "kept"), [("config", "config"), ("/config/", "config"), ("./a//b/", "a/b")]
)
def test_the_config_directory_is_kept_plain(value: str, kept: str) -> None:
    assert read(ITERUM_CONFIG_PATH=value).config_directory == kept


# -- ITERUM_CONFIG


def test_the_users_own_keys_are_ignored_and_the_known_ones_kept() -> None:
    config = {
        "queue_mapping": {"errors": "hash-errors"},
        "config_files": {"model": "weights.bin"},
        "threshold": {"anything": [1, None]},
    }
    settings = read(ITERUM_CONFIG=json.dumps(config))
    assert settings.queue_mapping == {"errors": "hash-errors"}
    assert settings.config_files == {"model": "weights.bin"}
    assert settings == read(ITERUM_CONFIG=json.dumps(config | {"threshold": 1}))


def test_null_is_the_same_as_absent_in_the_config() -> None:
    config = '{"queue_mapping":null,"config_files":null}'
    assert read(ITERUM_CONFIG=config) == read_settings(REQUIRED)


BOTH_WAYS = [
    ("attempts", 5, "5", 5),
    ("drain_seconds", 1.5, "1.5", 1.5),
    ("drain_seconds", 2, "2", 2.0),
    ("handout_depth", 4096, "4096", 4096),
    ("volume_budget", 0, "0", 0),
    ("volume_budget", 10**9, "1000000000", 10**9),
    ("volume_budget", "10G", "10G", 10**10),
    ("volume_budget", "512Mi", "512Mi", 512 * 2**20),
    ("volume_budget", "3k", "3K", 3000),
    ("frame_limit", 2**31, "2147483648", 2**31),
    ("kill_timeout", 0, "0", 0.0),
    ("kill_on_error", False, "false", False),
    ("queue_durable", True, "true", True),
    ("queue_type", "quorum", "quorum", "quorum"),
    ("lineage", "off", "off", False),
    ("s3_region", "eu-west-1", "eu-west-1", "eu-west-1"),
    ("s3_session_token", "token", "token", "token"),
    ("s3_addressing", "virtual", "virtual", "virtual"),
    ("ca_file", "/ca.pem", "/ca.pem", "/ca.pem"),
    ("client_certificate", "/tls.crt", "/tls.crt", "/tls.crt"),
    ("broker_server_name", "rabbit.example", "rabbit.example", "rabbit.example"),
    ("store_server_name", "minio", "minio", "minio"),
    ("tls_verify", False, "false", False),
    ("log_level", "debug", "debug", "debug"),
    ("log_format", "json", "json", "json"),
]


@pytest.mark.parametrize(("key", "in_config", "in_variable", "value"), BOTH_WAYS)
def test_each_way_in_leads_to_the_same_value(
    key: str, in_config: object, in_variable: str, value: object
) -> None:
    by_variable = read(**{f"SIDECAR_{key.upper()}": in_variable})
    assert getattr(by_variable, key) == value
    assert read_config(**{key: in_config}) == by_variable
    assert read_config(**{key: in_variable}) == by_variable
    assert by_variable != read_settings(REQUIRED)


@pytest.mark.parametrize("key", [variable.name[8:].lower() for variable in EXTENSIONS])
def test_a_null_in_the_config_leaves_the_default(key: str) -> None:
    assert read_config(**{key: None}) == read_settings(REQUIRED)


def test_a_variable_wins_over_the_config_and_an_empty_one_does_not() -> None:
    config = json.dumps({"sidecar": {"attempts": 5, "kill_on_error": True}})
    settings = read(ITERUM_CONFIG=config, SIDECAR_ATTEMPTS="7", SIDECAR_KILL_ON_ERROR="false")
    assert (settings.attempts, settings.kill_on_error) == (7, False)
    assert read(ITERUM_CONFIG=config, SIDECAR_ATTEMPTS="").attempts == 5


# -- Kubernetes


@pytest.mark.parametrize("service", ["SIDECAR", "SIDECAR_METRICS", "SIDECAR_V2"])
def test_the_service_links_of_kubernetes_are_no_settings(service: str) -> None:
    links = {
        f"{service}_SERVICE_HOST": "10.0.0.11",
        f"{service}_SERVICE_PORT": "6379",
        f"{service}_SERVICE_PORT_HTTP": "6379",
        f"{service}_PORT": "tcp://10.0.0.11:6379",
        f"{service}_PORT_6379_TCP": "tcp://10.0.0.11:6379",
        f"{service}_PORT_6379_TCP_PROTO": "tcp",
        f"{service}_PORT_6379_TCP_PORT": "6379",
        f"{service}_PORT_6379_TCP_ADDR": "10.0.0.11",
    }
    assert read(**links) == read_settings(REQUIRED)


# -- the socket's path


def test_a_sockets_path_of_107_bytes_passes() -> None:
    name = "é" + "a" * (107 - len("/data-volume/") - 2 - len(".sock")) + ".sock"
    assert len(f"/data-volume/{name}".encode()) == 107
    assert read(TRANSFORMATION_STEP_INPUT=name).input_socket == name


# -- secrets


def test_no_secret_shows_in_a_repr_of_the_settings() -> None:
    settings = read(
        MQ_BROKER_URL="amqps://user:broker-password@rabbit/vhost",
        MANAGER_URL="https://user:manager-password@manager/",
        SIDECAR_S3_SESSION_TOKEN="the-session-token",
    )
    for shown in (repr(settings), str(settings), f"{settings}"):
        for secret in ("password", "the-access-key", "the-secret-key", "the-session-token"):
            assert secret not in shown
        assert "hash-edges-output" in shown
