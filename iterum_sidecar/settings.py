"""The environment as one frozen struct: read once, every problem reported at once, before anything is opened.

`CONTRACT` and `EXTENSIONS` are the tables of all variables; `docs/operating.md` is held against them by a test.
Those of `EXTENSIONS` have a second way in, the object `"sidecar"` in ITERUM_CONFIG, because Iterum's manager passes no
variables of others; a variable wins over it.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct, field

from iterum_sidecar.exit_codes import BadConfiguration
from iterum_sidecar.framing import DEFAULT_FRAME_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["CONTRACT", "EXTENSIONS", "Secret", "Settings", "Variable", "read_settings"]

#: sizeof(sockaddr_un.sun_path) less its closing NUL (unix(7)).
MAX_SOCKET_PATH_BYTES = 107

_GO_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
#: What Kubernetes puts into the environment for a service that is itself named "sidecar" (its documentation, "Discovering services").
_SERVICE_LINK = re.compile(r"SIDECAR_(SERVICE_HOST|SERVICE_PORT|PORT)(_|\Z)")


class Secret(str):
    """A string that shows itself only where it is used: its `repr` is a row of stars."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Settings(Struct, frozen=True, kw_only=True):
    """What one sidecar is told about its step and its peers (contract, section 1; design, "Settings")."""

    volume: str
    input_socket: str
    output_socket: str
    step: str
    pipeline_hash: str
    config_directory: str
    queue_mapping: dict[str, str]
    config_files: dict[str, str]
    manager_url: str
    broker_url: Secret
    input_queue: str
    output_queue: str
    prefetch: int
    store_host: str
    store_port: int
    store_tls: bool
    store_access_key: Secret
    store_secret_key: Secret
    output_bucket: str

    attempts: int
    drain_seconds: float
    handout_depth: int
    frame_limit: int
    kill_timeout: float
    kill_on_error: bool
    transformation_start_timeout: float
    transformation_return_timeout: float
    service_timeout: float
    s3_region: str
    s3_session_token: Secret
    s3_addressing: str
    ca_file: str
    client_certificate: str
    queue_durable: bool
    queue_type: str
    lineage: bool
    fail_on_dead_letters: bool
    log_level: str
    log_format: str

    @property
    def lineage_queue(self) -> str:
        """The queue that lineage messages go to (contract, section 3)."""
        return f"{self.pipeline_hash}-lineage"

    @property
    def dead_letter_queue(self) -> str:
        """The queue for what cannot be processed."""
        return f"{self.input_queue}-dead-letter"

    @property
    def config_bucket(self) -> str:
        """The bucket of this pipeline's config files (contract, section 6)."""
        return f"{self.pipeline_hash}-iterum-config"


class Variable(NamedTuple):
    """One variable: its name, the fields that it fills, how it is read, its default (None: required), and what it should be."""

    name: str
    fields: tuple[str, ...]
    read: Callable[[str], Any]
    default: str | None
    expected: str


class _Wrong(ValueError):
    """A value that is not what its variable should be."""


def _text(value: str) -> str:
    return value


def _secret(value: str) -> Secret:
    return Secret(value)


def _socket_name(value: str) -> str:
    if not value.endswith(".sock") or "\0" in value or ".." in value.split("/"):
        raise _Wrong
    return value


def _relative_directory(value: str) -> str:
    parts = [part for part in value.split("/") if part not in {"", "."}]
    if not parts or ".." in parts or "\0" in value:
        raise _Wrong
    return "/".join(parts)


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,20}", value) or not low <= int(value) <= high:
            raise _Wrong
        return int(value)

    return read


def _seconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        raise _Wrong
    return float(value)


def _go_boolean(value: str) -> bool:
    if value == "":
        return False
    try:
        return _GO_BOOLEANS[value]
    except KeyError:
        raise _Wrong from None


def _choice(*choices: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in choices:
            raise _Wrong
        return value

    return read


def _broker_url(value: str) -> Secret:
    parts = urlsplit(value)
    if parts.scheme not in {"amqp", "amqps"} or not parts.hostname:
        raise _Wrong
    _ = parts.port  # raises ValueError when it is no port
    return Secret(value)


def _store_address(value: str) -> tuple[str, int | None, bool | None]:
    """Read `host:port` or a full URL; the port and the scheme are None where the value has none."""
    parts = urlsplit(value if "://" in value else f"//{value}")
    if (
        parts.scheme not in {"", "http", "https"}
        or not parts.hostname
        or parts.path not in {"", "/"}
    ):
        raise _Wrong
    if parts.query or parts.username is not None:
        raise _Wrong
    return parts.hostname, parts.port, {"": None, "http": False, "https": True}[parts.scheme]


def _manager_url(value: str) -> str:
    if value and (urlsplit(value).scheme not in {"http", "https"} or not urlsplit(value).hostname):
        raise _Wrong
    return value.rstrip("/")


class _IterumConfig(Struct):
    queue_mapping: dict[str, str] | None = None
    config_files: dict[str, str] | None = None
    sidecar: dict[str, Any] = field(default_factory=dict)


def _iterum_config(value: str) -> _IterumConfig:
    try:
        config = msgspec.json.decode(value or "{}", type=_IterumConfig)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise _Wrong(str(error)) from None
    for name, file in (config.config_files or {}).items():
        try:
            _relative_directory(file)
        except _Wrong:
            raise _Wrong(f"config file {name!r} leads out of its directory") from None
    return config


CONTRACT: tuple[Variable, ...] = (
    Variable(
        "DATA_VOLUME_PATH", ("volume",), _text, None, "the directory that both containers share"
    ),
    Variable(
        "TRANSFORMATION_STEP_INPUT",
        ("input_socket",),
        _socket_name,
        None,
        "a socket's name in the volume, ending in .sock",
    ),
    Variable(
        "TRANSFORMATION_STEP_OUTPUT",
        ("output_socket",),
        _socket_name,
        None,
        "a socket's name in the volume, ending in .sock",
    ),
    Variable("ITERUM_NAME", ("step",), _text, None, "the name of this step"),
    Variable("PIPELINE_HASH", ("pipeline_hash",), _text, None, "the hash of this pipeline run"),
    Variable(
        "ITERUM_CONFIG",
        (),
        _iterum_config,
        "",
        "a JSON object (queue_mapping, config_files, sidecar, keys of your own)",
    ),
    Variable(
        "ITERUM_CONFIG_PATH",
        ("config_directory",),
        _relative_directory,
        None,
        "a directory for config files, relative to the volume",
    ),
    Variable(
        "MANAGER_URL",
        ("manager_url",),
        _manager_url,
        "",
        "the http(s) URL of the manager; empty: none, serve until stopped",
    ),
    Variable(
        "MQ_BROKER_URL",
        ("broker_url",),
        _broker_url,
        None,
        "amqp://user:password@host:port/vhost, or amqps://",
    ),
    Variable(
        "MQ_INPUT_QUEUE",
        ("input_queue",),
        _text,
        None,
        "the name of the queue that this step reads",
    ),
    Variable(
        "MQ_OUTPUT_QUEUE",
        ("output_queue",),
        _text,
        None,
        "the name of the queue that this step writes",
    ),
    Variable(
        "MQ_PREFETCH_COUNT",
        ("prefetch",),
        _whole(0, 65_535),
        "0",
        "a whole number from 0 to 65535; empty or 0: found by itself",
    ),
    Variable(
        "MINIO_URL", (), _store_address, None, "host:port of the object store, or its http(s) URL"
    ),
    Variable(
        "MINIO_ACCESS_KEY",
        ("store_access_key",),
        _secret,
        None,
        "the access key of the object store",
    ),
    Variable(
        "MINIO_SECRET_KEY",
        ("store_secret_key",),
        _secret,
        None,
        "the secret key of the object store",
    ),
    Variable(
        "MINIO_USE_SSL",
        (),
        _go_boolean,
        "",
        "1 t T TRUE true True, or 0 f F FALSE false False; empty: false",
    ),
    Variable(
        "MINIO_OUTPUT_BUCKET",
        ("output_bucket",),
        _text,
        None,
        "the bucket for this step's output; made if missing",
    ),
)

EXTENSIONS: tuple[Variable, ...] = (
    Variable(
        "SIDECAR_ATTEMPTS",
        ("attempts",),
        _whole(1, 1000),
        "3",
        "a whole number from 1 to 1000: deaths of the transformation on one fragment before it is dead-lettered",
    ),
    Variable(
        "SIDECAR_DRAIN_SECONDS",
        ("drain_seconds",),
        _seconds,
        "25",
        "seconds from SIGTERM or SIGINT to the forced end",
    ),
    Variable(
        "SIDECAR_HANDOUT_DEPTH",
        ("handout_depth",),
        _whole(1, 4096),
        "1",
        "a whole number from 1 to 4096: fragments that one connection holds at a time",
    ),
    Variable(
        "SIDECAR_FRAME_LIMIT",
        ("frame_limit",),
        _whole(1024, 2**31),
        str(DEFAULT_FRAME_LIMIT),
        "bytes, from 1024: the longest frame that the transformation may send",
    ),
    Variable(
        "SIDECAR_KILL_TIMEOUT",
        ("kill_timeout",),
        _seconds,
        "600",
        "seconds that the transformation has to answer the kill message",
    ),
    Variable(
        "SIDECAR_KILL_ON_ERROR",
        ("kill_on_error",),
        _go_boolean,
        "true",
        "a boolean: send the kill message when the sidecar ends with an error",
    ),
    Variable(
        "SIDECAR_TRANSFORMATION_START_TIMEOUT",
        ("transformation_start_timeout",),
        _seconds,
        "900",
        "seconds to wait for the transformation's first connection",
    ),
    Variable(
        "SIDECAR_TRANSFORMATION_RETURN_TIMEOUT",
        ("transformation_return_timeout",),
        _seconds,
        "360",
        "seconds to wait for a transformation that left with work unfinished",
    ),
    Variable(
        "SIDECAR_SERVICE_TIMEOUT",
        ("service_timeout",),
        _seconds,
        "0",
        "seconds to wait for the broker or the store; 0: for ever",
    ),
    Variable(
        "SIDECAR_S3_REGION", ("s3_region",), _text, "us-east-1", "the region of the object store"
    ),
    Variable(
        "SIDECAR_S3_SESSION_TOKEN",
        ("s3_session_token",),
        _secret,
        "",
        "the session token that belongs to temporary credentials",
    ),
    Variable(
        "SIDECAR_S3_ADDRESSING",
        ("s3_addressing",),
        _choice("path", "virtual"),
        "path",
        "path or virtual: where the bucket's name goes in a URL",
    ),
    Variable(
        "SIDECAR_CA_FILE",
        ("ca_file",),
        _text,
        "",
        "a PEM file of the authorities that broker and store are verified by; empty: the system's",
    ),
    Variable(
        "SIDECAR_CLIENT_CERTIFICATE",
        ("client_certificate",),
        _text,
        "",
        "a PEM file with the client's certificate and key, for broker and store",
    ),
    Variable(
        "SIDECAR_QUEUE_DURABLE",
        ("queue_durable",),
        _go_boolean,
        "false",
        "a boolean: declare missing queues durable",
    ),
    Variable(
        "SIDECAR_QUEUE_TYPE",
        ("queue_type",),
        _choice("classic", "quorum"),
        "classic",
        "classic or quorum: the type of queues declared here; quorum queues are durable",
    ),
    Variable(
        "SIDECAR_LINEAGE",
        ("lineage",),
        _choice("queue", "off"),
        "queue",
        "queue or off: whether lineage messages are published",
    ),
    Variable(
        "SIDECAR_FAIL_ON_DEAD_LETTERS",
        ("fail_on_dead_letters",),
        _go_boolean,
        "false",
        "a boolean: a finished step with dead letters ends with a code of its own",
    ),
    Variable(
        "SIDECAR_LOG_LEVEL",
        ("log_level",),
        _choice("debug", "info", "warning", "error"),
        "info",
        "debug, info, warning or error",
    ),
    Variable(
        "SIDECAR_LOG_FORMAT",
        ("log_format",),
        _choice("auto", "text", "json"),
        "auto",
        "auto (text on a terminal, else JSON), text or json",
    ),
)


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Return the settings that the environment describes.

    Raises:
        BadConfiguration: with one line for every variable that is missing or wrong; no value of a secret is shown.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    raw: dict[str, Any] = {}
    for variable in CONTRACT:
        given = environment.get(variable.name, "")
        raw[variable.name] = _read(variable, given, problems, values)
    config = raw["ITERUM_CONFIG"] or _IterumConfig()
    _read_extensions(environment, config.sidecar, problems, values)
    _settle_store(raw, values)
    values["queue_mapping"] = config.queue_mapping or {}
    values["config_files"] = config.config_files or {}
    values["lineage"] = values.get("lineage") != "off"
    _check_together(values, problems)
    if problems:
        raise BadConfiguration(problems)
    return Settings(**values)


def _read(variable: Variable, given: str, problems: list[str], values: dict[str, Any]) -> Any:  # noqa: ANN401 - as many types as variables
    if given == "":
        if variable.default is None:
            problems.append(f"{variable.name} is missing: {variable.expected}")
            return None
        given = variable.default
    try:
        value = variable.read(given)
    except ValueError as error:
        # Where a secret may stand (a key, a URL with a password, the user's own configuration) nothing is repeated.
        secret = variable.read in {_secret, _broker_url, _iterum_config} or "@" in given
        shown = "" if secret else f" {given[:80]!r}"
        detail = f" ({error})" if isinstance(error, _Wrong) and str(error) else ""
        problems.append(
            f"{variable.name}{shown} is not what it should be{detail}: {variable.expected}"
        )
        return None
    for name in variable.fields:
        values[name] = value
    return value


def _read_extensions(
    environment: Mapping[str, str],
    config: dict[str, Any],
    problems: list[str],
    values: dict[str, Any],
) -> None:
    known = {variable.name: variable for variable in EXTENSIONS}
    for name in environment:
        if name.startswith("SIDECAR_") and name not in known and not _SERVICE_LINK.match(name):
            problems.append(f"{name} is unknown{_nearest(name, known)}")
    keys = {name.removeprefix("SIDECAR_").lower(): name for name in known}
    for key in config:
        if key not in keys:
            problems.append(
                f'ITERUM_CONFIG: "sidecar" has the unknown key {key[:80]!r}{_nearest(key, keys)}'
            )
    for key, name in keys.items():
        given = environment.get(name, "")
        if given == "" and config.get(key) is not None:
            value = config[key]
            given = str(value).lower() if isinstance(value, bool) else str(value)
        _read(known[name], given, problems, values)


def _nearest(name: str, known: Mapping[str, object]) -> str:
    from difflib import get_close_matches

    nearest = get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _settle_store(raw: dict[str, Any], values: dict[str, Any]) -> None:
    if raw["MINIO_URL"] is None:
        return
    host, port, tls = raw["MINIO_URL"]
    values["store_host"] = host
    values["store_tls"] = bool(raw["MINIO_USE_SSL"]) if tls is None else tls
    values["store_port"] = port or (443 if values["store_tls"] else 80)


def _check_together(values: dict[str, Any], problems: list[str]) -> None:
    volume = values.get("volume")
    if volume is None:
        return
    sockets = [(name, values.get(name)) for name in ("input_socket", "output_socket")]
    for name, socket in sockets:
        if socket and len(os.fsencode(os.path.join(volume, socket))) > MAX_SOCKET_PATH_BYTES:
            variable = f"TRANSFORMATION_STEP_{name.removesuffix('_socket').upper()}"
            problems.append(
                f"{variable}: its path in the volume is longer than the {MAX_SOCKET_PATH_BYTES} bytes that a Unix socket may have"
            )
    if sockets[0][1] is not None and sockets[0][1] == sockets[1][1]:
        problems.append(
            "TRANSFORMATION_STEP_INPUT and TRANSFORMATION_STEP_OUTPUT are the same socket"
        )
