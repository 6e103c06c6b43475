"""TLS settings: the context that they make, what is doubtful, and what mends a failed handshake."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.exit_codes import BadConfiguration
from iterum_sidecar.settings import Settings, read_settings
from iterum_sidecar.tls import ssl_context_of, tls_advice, tls_warnings
from testbed.tls import Tls, make_tls
from tests.unit.test_settings import REQUIRED

if TYPE_CHECKING:
    from pathlib import Path

BROKER = {"MQ_BROKER_URL": "amqps://rabbit"}
STORE = {"MINIO_USE_SSL": "true"}
MANAGER = {"MANAGER_URL": "https://manager"}


def settings_of(*changes: dict[str, str], **variables: str) -> Settings:
    environment = dict(REQUIRED)
    for change in changes:
        environment |= change
    return read_settings(environment | variables)


def only_problem(settings: Settings) -> str:
    with pytest.raises(BadConfiguration) as refusal:
        ssl_context_of(settings)
    (problem,) = refusal.value.problems
    assert "\n" not in problem
    return problem


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"))


def test_who_speaks_no_tls_needs_no_context() -> None:
    assert ssl_context_of(settings_of()) is None
    assert ssl_context_of(settings_of(SIDECAR_CA_FILE="/nowhere.pem")) is None


@pytest.mark.parametrize("peer", [BROKER, STORE])
def test_the_systems_authorities_are_the_default(peer: dict[str, str]) -> None:
    context = ssl_context_of(settings_of(peer))
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_the_manager_alone_needs_a_context_only_where_there_is_something_to_say(tls: Tls) -> None:
    assert ssl_context_of(settings_of(MANAGER)) is None
    context = ssl_context_of(settings_of(MANAGER, SIDECAR_CA_FILE=str(tls.authority)))
    assert context is not None
    assert context.cert_store_stats()["x509_ca"] == 1


def test_without_verification_nobody_is_verified() -> None:
    context = ssl_context_of(settings_of(BROKER, SIDECAR_TLS_VERIFY="false"))
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)


def test_a_clients_certificate_with_its_key_in_one_file_or_in_two(tls: Tls, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(tls.client_certificate.read_bytes() + tls.client_key.read_bytes())
    assert ssl_context_of(settings_of(STORE, SIDECAR_CLIENT_CERTIFICATE=str(both)))
    assert ssl_context_of(
        settings_of(
            STORE,
            SIDECAR_CLIENT_CERTIFICATE=str(tls.client_certificate),
            SIDECAR_CLIENT_KEY=str(tls.client_key),
        )
    )


def test_files_that_cannot_be_used_are_named(tls: Tls, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk", encoding="utf-8")
    certificate = {"SIDECAR_CLIENT_CERTIFICATE": str(tls.client_certificate)}
    for variables, said in (
        ({"SIDECAR_CA_FILE": "/no/ca"}, "SIDECAR_CA_FILE '/no/ca' cannot be read (No such file"),
        ({"SIDECAR_CA_FILE": "\0"}, "SIDECAR_CA_FILE '\\x00' cannot be read (not a path)"),
        ({"SIDECAR_CA_FILE": str(junk)}, f"SIDECAR_CA_FILE '{junk}' holds no certificate"),
        (
            {"SIDECAR_CLIENT_CERTIFICATE": "/no/crt"},
            "SIDECAR_CLIENT_CERTIFICATE '/no/crt' cannot be read (No such file",
        ),
        (
            certificate | {"SIDECAR_CLIENT_KEY": "/no/key"},
            "SIDECAR_CLIENT_KEY '/no/key' cannot be read (No such file",
        ),
        (
            certificate | {"SIDECAR_CLIENT_KEY": str(tls.key)},
            f"SIDECAR_CLIENT_CERTIFICATE '{tls.client_certificate}' and SIDECAR_CLIENT_KEY"
            f" '{tls.key}' cannot be used (KEY_VALUES_MISMATCH)",
        ),
        (
            certificate,
            f"SIDECAR_CLIENT_CERTIFICATE '{tls.client_certificate}', without SIDECAR_CLIENT_KEY,"
            " cannot be used",
        ),
    ):
        assert only_problem(settings_of(STORE, variables)).startswith(said)


# -- what is doubtful


def test_nothing_is_doubtful_by_default() -> None:
    for peers in ((), (BROKER,), (STORE, MANAGER)):
        assert list(tls_warnings(settings_of(*peers))) == []


@pytest.mark.parametrize("peer", [BROKER, STORE, MANAGER])
def test_a_verification_that_is_off_is_told(peer: dict[str, str]) -> None:
    (warning,) = tls_warnings(settings_of(peer, SIDECAR_TLS_VERIFY="false"))
    assert warning.startswith("SIDECAR_TLS_VERIFY is false: no certificate is verified.")
    assert list(tls_warnings(settings_of(SIDECAR_TLS_VERIFY="false"))) == []


@pytest.mark.parametrize(
    ("name", "peers"),
    [
        ("SIDECAR_CA_FILE", ()),
        ("SIDECAR_CLIENT_CERTIFICATE", ()),
        ("SIDECAR_BROKER_SERVER_NAME", (STORE, MANAGER)),
        ("SIDECAR_STORE_SERVER_NAME", (BROKER, MANAGER)),
    ],
)
def test_a_setting_for_nobody_is_told(name: str, peers: tuple[dict[str, str], ...]) -> None:
    (warning,) = tls_warnings(settings_of(*peers, **{name: "something"}))
    assert warning.startswith(f"{name} is set, and nobody that it is for speaks TLS.")
    assert list(tls_warnings(settings_of(BROKER, STORE, **{name: "something"}))) == []


# -- what mends a failed handshake (the real errors are in tests/wire/test_tls.py)


def verification_error(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError()
    error.verify_code = code
    error.verify_message = "the certificate is wrong"
    return error


def other_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError()
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("failure", "mended_by"),
    [
        (verification_error(20), "SIDECAR_CA_FILE"),
        (verification_error(18), "SIDECAR_CA_FILE"),
        (verification_error(62), "set THE_NAME to a name"),
        (verification_error(64), "set THE_NAME to a name"),
        (verification_error(10), "renew the certificate"),
        (verification_error(9), "set the clocks"),
        (verification_error(26), "SIDECAR_CA_FILE"),
        (other_error("TLSV13_ALERT_CERTIFICATE_REQUIRED"), "SIDECAR_CLIENT_KEY"),
        (other_error("SSLV3_ALERT_HANDSHAKE_FAILURE"), "SIDECAR_CLIENT_KEY"),
        (other_error("TLSV1_ALERT_UNKNOWN_CA"), "refuses our certificate"),
        (other_error("SSLV3_ALERT_CERTIFICATE_EXPIRED"), "refuses our certificate"),
        (other_error("WRONG_VERSION_NUMBER"), "no TLS is spoken there"),
    ],
)
def test_what_mends_it_is_found_however_deep_the_cause_lies(
    failure: ssl.SSLError, mended_by: str
) -> None:
    outer = RuntimeError("outer")
    middle = RuntimeError("middle")
    outer.__cause__, middle.__context__ = middle, failure
    advice = tls_advice(outer, "THE_NAME")
    assert advice.startswith("; ")
    assert mended_by in advice


def test_other_failures_get_no_advice() -> None:
    assert tls_advice(OSError("refused"), "x") == ""
    assert tls_advice(ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), "x") == ""
    assert tls_advice(other_error("DATA_AFTER_CLOSE_NOTIFY"), "x") == "; DATA_AFTER_CLOSE_NOTIFY"


def test_what_is_wrong_is_said_once() -> None:
    silent, telling = OSError(), OSError("peer: the certificate is wrong")
    silent.__cause__ = telling.__cause__ = verification_error(10)
    assert tls_advice(silent, "x").startswith("; the certificate is wrong; renew")
    assert tls_advice(telling, "x").startswith("; renew")
