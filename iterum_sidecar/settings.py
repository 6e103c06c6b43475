"""The environment as one frozen struct: read once, every problem reported at once, before anything is opened.

`variables.py` has the tables of them all. Those beyond the contract have a second way in, the object `"sidecar"` in
ITERUM_CONFIG, because Iterum's manager passes no variables of others; a variable wins over it. Secrets have another: a
file, which is read here too, so that reading the settings again reads the secrets again (`secret_source.py`).
"""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from iterum_sidecar.exit_codes import BadConfiguration
from iterum_sidecar.secret_files import SecretUnreadable, read_secret
from iterum_sidecar.variables import (
    CONTRACT,
    EXTENSIONS,
    IterumConfig,
    Secret,
    Variable,
    WrongValue,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Settings", "read_settings"]

#: sizeof(sockaddr_un.sun_path) less its closing NUL (unix(7)).
MAX_SOCKET_PATH_BYTES = 107

#: What the extra `otel` brings, which depends on all else that it brings.
_OTLP_EXPORTER = "opentelemetry.exporter.otlp.proto.http"

#: What Kubernetes puts into the environment for a service whose name begins with "sidecar" (its documentation, "Discovering services").
_SERVICE_LINK = re.compile(
    r"SIDECAR_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_[A-Z]+(_(PROTO|PORT|ADDR))?)?)\Z"
)


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
    manager_url: Secret
    """A Secret because a URL may hold a password."""
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
    fragment_timeout: float
    drain_seconds: float
    handout_depth: int
    volume_budget: int | None
    """Bytes of input files that may be on the volume; 0: no bound, None: half of what is free at the start."""
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
    client_key: str
    broker_server_name: str
    store_server_name: str
    tls_verify: bool
    queue_durable: bool
    queue_type: str
    lineage: bool
    fail_on_dead_letters: bool
    log_level: str
    log_format: str
    http_address: tuple[str | None, int] | None
    """Where probes, status and metrics are served: host (None: every interface) and port; None: nowhere."""
    tracing: bool
    """Whether traces are made, and sent where OpenTelemetry's own variables say."""

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


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Return the settings that the environment describes, with the secrets that its files hold now.

    Raises:
        BadConfiguration: with one line for every variable that is missing or wrong; no value of a secret is shown.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    raw: dict[str, Any] = {}
    for variable in CONTRACT:
        raw[variable.name] = _read(variable, environment, problems, values)
    config = raw["ITERUM_CONFIG"] or IterumConfig()
    _read_extensions(environment, config.sidecar, problems, values)
    _settle_store(raw, values)
    values["queue_mapping"] = config.queue_mapping or {}
    values["config_files"] = config.config_files or {}
    values["lineage"] = values.get("lineage") != "off"
    values["tracing"] = values.get("tracing") == "otlp"
    _check_together(values, problems)
    if problems:
        raise BadConfiguration(problems)
    return Settings(**values)


def _read(
    variable: Variable, given: Mapping[str, str], problems: list[str], values: dict[str, Any]
) -> Any:  # noqa: ANN401 - as many types as variables
    text, shown = given.get(variable.name, ""), variable.name
    path = given.get(variable.file, "")
    if path and text:
        problems.append(f"{variable.name} and {variable.file} are both set: set one of them")
        return None
    if path:
        # Whoever gives the secret itself where its path belongs need not find it in the log.
        is_path = path.startswith("/") and "@" not in path
        shown = f"{variable.file} {path[:200]!r}" if is_path else variable.file
        try:
            text = read_secret(path)
        except SecretUnreadable as error:
            problems.append(f"{shown} {error}: {variable.expected}")
            return None
    if text == "":
        if variable.default is None:
            other = (
                f"; or set {variable.file} to the path of a file with it" if variable.file else ""
            )
            problems.append(f"{variable.name} is missing: {variable.expected}{other}")
            return None
        text = variable.default
    try:
        # Bytes that are not UTF-8 can be in a variable (PEP 383), and in no message, path or name of ours.
        text.encode()
        value = variable.read(text)
    except UnicodeEncodeError:
        problems.append(f"{shown} is not what it should be (it is not UTF-8): {variable.expected}")
        return None
    except ValueError as error:
        # Where a secret may stand (a key, a URL with a password, the user's own configuration) nothing is repeated.
        secret = variable.secret or "@" in text
        repeated = "" if secret else f" {text[:80]!r}"
        detail = f" ({error})" if isinstance(error, WrongValue) and str(error) else ""
        problems.append(f"{shown}{repeated} is not what it should be{detail}: {variable.expected}")
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
    problems += [
        f"{name} is unknown{_nearest(name, known)}"
        for name in environment
        if name.startswith("SIDECAR_") and name not in known and not _SERVICE_LINK.match(name)
    ]
    keys = {name.removeprefix("SIDECAR_").lower(): name for name in known}
    problems += [
        f'ITERUM_CONFIG: "sidecar" has the unknown key {key[:80]!r}{_nearest(key, keys)}'
        for key in config
        if key not in keys
    ]
    given: dict[str, str] = {}
    usable: list[Variable] = []
    for key, name in keys.items():
        given[name] = environment.get(name, "")
        value = config.get(key)
        if given[name] == "" and value is not None:
            if not isinstance(value, str | int | float):
                problems.append(
                    f'{name}: "{key}" of "sidecar" in ITERUM_CONFIG is not what it should be: {known[name].expected}'
                )
                continue
            given[name] = str(value).lower() if isinstance(value, bool) else str(value)
        usable.append(known[name])
    for variable in usable:
        _read(variable, given, problems, values)


def _nearest(name: str, known: Mapping[str, object]) -> str:
    from difflib import get_close_matches

    # A name that was cut short is less like its whole than like some other short one.
    longer = [each for each in known if each.startswith(f"{name}_")]
    nearest = longer or get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _settle_store(raw: dict[str, Any], values: dict[str, Any]) -> None:
    if raw["MINIO_URL"] is None:
        return
    host, port, tls = raw["MINIO_URL"]
    values["store_host"] = host
    values["store_tls"] = bool(raw["MINIO_USE_SSL"]) if tls is None else tls
    values["store_port"] = port or (443 if values["store_tls"] else 80)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package that it is in is missing
        return False


def _check_together(values: dict[str, Any], problems: list[str]) -> None:
    if values.get("client_key") and not values.get("client_certificate"):
        problems.append(
            "SIDECAR_CLIENT_KEY is set without SIDECAR_CLIENT_CERTIFICATE: set both, or neither"
        )
    if values["tracing"] and not _is_installed(_OTLP_EXPORTER):
        problems.append(
            "SIDECAR_TRACING is otlp, and what sends traces is not installed:"
            " pip install 'iterum-sidecar[otel]', or set it to off"
        )
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
    names = [os.path.normpath(socket) for _, socket in sockets if socket]
    if len(names) == 2 and names[0] == names[1]:
        problems.append(
            "TRANSFORMATION_STEP_INPUT and TRANSFORMATION_STEP_OUTPUT are the same socket"
        )
