"""The variables that the sidecar reads: what each is called, what it should be, and how it is read.

`CONTRACT` are those of the wire contract's section 1, with the files that three of them may be read from; `EXTENSIONS` are
those beyond it. They are tables, so that the error for a wrong one, `docs/operating.md` and its test all say the same; which
is also why this file is long.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct, field

from iterum_sidecar.framing import DEFAULT_FRAME_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CONTRACT", "EXTENSIONS", "IterumConfig", "Secret", "Variable", "WrongValue"]

_GO_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}


#: What bytes may be counted in (Kubernetes' "Resource Management", and K for k).
_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}
#: A short string of AMQP 0-9-1.
LONGEST_QUEUE_NAME = 255
#: NAME_MAX of every file system that is in use (limits.h), in bytes.
LONGEST_COMPONENT = 255
#: A name of labels of up to 63 characters (RFC 1035), or an address.
_HOST = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*")


class Secret(str):
    """A string that shows itself only where it is used: its `repr` is a row of stars."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Variable(NamedTuple):
    """One variable: its name, the fields that it fills, how it is read, its default (None: required), and what it should be.

    `file` names the variable that holds the path of a file to read it from instead; empty where there is none.
    """

    name: str
    fields: tuple[str, ...]
    read: Callable[[str], Any]
    default: str | None
    expected: str
    file: str = ""

    @property
    def secret(self) -> bool:
        """Whether a value that is wrong must not be repeated: it is a secret, or may hold one."""
        return self.read in {_secret, _header_secret, _broker_url, _iterum_config}


class WrongValue(ValueError):
    """A value that is not what its variable should be."""


def _text(value: str) -> str:
    return value


def _secret(value: str) -> Secret:
    return Secret(value)


def _header_secret(value: str) -> Secret:
    """Read a secret that is sent in a header as it is, such as an access key."""
    if not (value.isascii() and value.isprintable()):
        raise WrongValue("it holds a character that no header may hold")
    return Secret(value)


def _bucket(value: str) -> str:
    """Read a bucket's name, of the characters that need no quoting in a URL."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,255}", value) or not value.strip("."):
        raise WrongValue
    return value


def _region(value: str) -> str:
    """Read a region's name, which is a part of every signature."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value):
        raise WrongValue
    return value


def _host_name(value: str) -> str:
    if value and not _HOST.fullmatch(value):
        raise WrongValue
    return value


def _socket_name(value: str) -> str:
    if (
        not value.endswith(".sock")
        or value.startswith("/")
        or "\0" in value
        or ".." in value.split("/")
    ):
        raise WrongValue
    return value


def _queue(longest: int) -> Callable[[str], str]:
    """Read a queue's name, which may be a short string of AMQP (255 bytes) less what we append to it."""

    def read(value: str) -> str:
        if not 0 < len(value.encode()) <= longest:
            raise WrongValue
        return value

    return read


def _listening_address(value: str) -> tuple[str | None, int] | None:
    """Read `host:port`, `[IPv6]:port` or `:port`; the host is None for every interface."""
    if value == "":
        return None
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]*)):([0-9]{1,5})", value)
    if found is None or not 0 < int(found[3]) < 65_536:
        raise WrongValue
    return _host_name(found[1] or found[2] or "") or None, int(found[3])


def _relative_directory(value: str) -> str:
    parts = [part for part in value.split("/") if part not in {"", "."}]
    if not parts or ".." in parts or "\0" in value:
        raise WrongValue
    return "/".join(parts)


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,20}", value) or not low <= int(value) <= high:
            raise WrongValue
        return int(value)

    return read


def _bytes(value: str) -> int | None:
    """Read a number of bytes with one of Kubernetes' units or none; None for an empty value."""
    if value == "":
        return None
    found = re.fullmatch(r"([0-9]{1,18})([kKMGTP]|[KMGTP]i)?", value)
    if found is None:
        raise WrongValue
    return int(found[1]) * _UNITS[found[2] or ""]


def _seconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        raise WrongValue("a number without a unit is needed")
    return float(value)


def _go_boolean(value: str) -> bool:
    if value == "":
        return False
    try:
        return _GO_BOOLEANS[value]
    except KeyError:
        raise WrongValue from None


def _choice(*choices: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in choices:
            raise WrongValue
        return value

    return read


def _broker_url(value: str) -> Secret:
    from iterum_sidecar.amqp.parameters import ConnectionParameters

    if not urlsplit(value).hostname:
        raise WrongValue
    try:
        ConnectionParameters.from_url(value)
    except ValueError as error:
        raise WrongValue(str(error)) from None
    return Secret(value)


def _store_address(value: str) -> tuple[str, int | None, bool | None]:
    """Read `host:port` or a full URL; the port and the scheme are None where the value has none."""
    if not re.fullmatch(r"[A-Za-z0-9._:/\[\]-]+", value):
        raise WrongValue
    parts = urlsplit(value if "://" in value else f"//{value}")
    if (
        parts.scheme not in {"", "http", "https"}
        or not parts.hostname
        or parts.path not in {"", "/"}
    ):
        raise WrongValue
    if parts.query or parts.username is not None:
        raise WrongValue
    return parts.hostname, parts.port, {"": None, "http": False, "https": True}[parts.scheme]


def _manager_url(value: str) -> Secret:
    parts = urlsplit(value)
    if value and (
        parts.scheme not in {"http", "https"} or not _HOST.fullmatch(parts.hostname or "")
    ):
        raise WrongValue
    _ = parts.port  # raises ValueError when it is no port
    return Secret(value.rstrip("/"))


class IterumConfig(Struct):
    """As much of ITERUM_CONFIG as is the sidecar's; the rest is the user's own."""

    queue_mapping: dict[str, str] | None = None
    config_files: dict[str, str] | None = None
    sidecar: dict[str, Any] = field(default_factory=dict)


def _iterum_config(value: str) -> IterumConfig:
    try:
        config = msgspec.json.decode(value or "{}", type=IterumConfig)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise WrongValue(str(error)) from None
    for channel, queue in (config.queue_mapping or {}).items():
        if not 0 < len(queue.encode()) <= LONGEST_QUEUE_NAME:
            raise WrongValue(f"the queue of channel {channel[:80]!r} is not a queue's name")
    _check_config_files(config.config_files or {})
    return config


def _check_config_files(files: dict[str, str]) -> None:
    places: dict[str, str] = {}
    for name, file in files.items():
        try:
            place = _relative_directory(file)
        except WrongValue:
            raise WrongValue(f"config file {name[:80]!r} leads out of its directory") from None
        if any(len(part.encode()) > LONGEST_COMPONENT for part in place.split("/")):
            raise WrongValue(f"config file {name[:80]!r} has a longer name than any file may have")
        places[place] = name
    for place, name in places.items():
        for parent in (place[: end.start()] for end in re.finditer("/", place)):
            if parent in places:
                raise WrongValue(
                    f"config file {places[parent][:80]!r} is a directory of config file {name[:80]!r}"
                )


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
    Variable(
        "PIPELINE_HASH",
        ("pipeline_hash",),
        _queue(LONGEST_QUEUE_NAME - len("-lineage")),
        None,
        "the hash of this pipeline run",
    ),
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
        file="MQ_BROKER_URL_FILE",
    ),
    Variable(
        "MQ_BROKER_URL_FILE",
        (),
        _text,
        "",
        "the path of a file that holds what MQ_BROKER_URL would",
    ),
    Variable(
        "MQ_INPUT_QUEUE",
        ("input_queue",),
        _queue(LONGEST_QUEUE_NAME - len("-dead-letter")),
        None,
        "the name of the queue that this step reads",
    ),
    Variable(
        "MQ_OUTPUT_QUEUE",
        ("output_queue",),
        _queue(LONGEST_QUEUE_NAME),
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
        _header_secret,
        None,
        "the access key of the object store",
        file="MINIO_ACCESS_KEY_FILE",
    ),
    Variable(
        "MINIO_ACCESS_KEY_FILE",
        (),
        _text,
        "",
        "the path of a file that holds the access key",
    ),
    Variable(
        "MINIO_SECRET_KEY",
        ("store_secret_key",),
        _secret,
        None,
        "the secret key of the object store",
        file="MINIO_SECRET_KEY_FILE",
    ),
    Variable(
        "MINIO_SECRET_KEY_FILE",
        (),
        _text,
        "",
        "the path of a file that holds the secret key",
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
        _bucket,
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
        "SIDECAR_FRAGMENT_TIMEOUT",
        ("fragment_timeout",),
        _seconds,
        "0",
        "seconds that a connection of the transformation has to finish a fragment; 0: as long as it likes",
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
        "SIDECAR_VOLUME_BUDGET",
        ("volume_budget",),
        _bytes,
        "",
        "bytes, such as 10G or 512Mi: input files on the volume at a time; 0: no bound; empty: half of what is free at the start",
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
        "true or false: send the kill message when the sidecar ends before the step is done, by an error or a stop",
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
        "SIDECAR_S3_REGION", ("s3_region",), _region, "us-east-1", "the region of the object store"
    ),
    Variable(
        "SIDECAR_S3_SESSION_TOKEN",
        ("s3_session_token",),
        _header_secret,
        "",
        "the session token that belongs to temporary credentials",
        file="SIDECAR_S3_SESSION_TOKEN_FILE",
    ),
    Variable(
        "SIDECAR_S3_SESSION_TOKEN_FILE",
        (),
        _text,
        "",
        "the path of a file that holds the session token",
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
        "a PEM file of the authorities that broker, store and manager are verified by; empty: the system's",
    ),
    Variable(
        "SIDECAR_CLIENT_CERTIFICATE",
        ("client_certificate",),
        _text,
        "",
        "a PEM file with the client's certificate, for whoever asks for one",
    ),
    Variable(
        "SIDECAR_CLIENT_KEY",
        ("client_key",),
        _text,
        "",
        "a PEM file with the key of the client's certificate; empty: it is in the same file",
    ),
    Variable(
        "SIDECAR_BROKER_SERVER_NAME",
        ("broker_server_name",),
        _host_name,
        "",
        "the name that the broker's certificate must be for; empty: the host of its URL",
    ),
    Variable(
        "SIDECAR_STORE_SERVER_NAME",
        ("store_server_name",),
        _host_name,
        "",
        "the name that the store's certificate must be for; empty: the host of its URL",
    ),
    Variable(
        "SIDECAR_TLS_VERIFY",
        ("tls_verify",),
        _go_boolean,
        "true",
        "true or false: verify the certificates of broker, store and manager",
    ),
    Variable(
        "SIDECAR_QUEUE_DURABLE",
        ("queue_durable",),
        _go_boolean,
        "false",
        "true or false: declare missing queues durable",
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
        "true or false: a finished step with dead letters ends with a code of its own",
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
    Variable(
        "SIDECAR_HTTP_ADDRESS",
        ("http_address",),
        _listening_address,
        "",
        "host:port, or :port for every interface, to serve probes, status and metrics at; empty: nowhere",
    ),
    Variable(
        "SIDECAR_TRACING",
        ("tracing",),
        _choice("off", "otlp"),
        "off",
        "off or otlp: whether traces are made and sent to a collector (the extra `otel` must be installed)",
    ),
)
