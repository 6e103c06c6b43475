"""TLS as the settings say it: the context for all peers, and what mends a handshake that failed."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

from iterum_sidecar.exit_codes import BadConfiguration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iterum_sidecar.settings import Settings

__all__ = [
    "CLIENT_CERTIFICATE_ADVICE",
    "has_tls_settings",
    "ssl_context_of",
    "tls_advice",
    "tls_warnings",
]

# X509_V_ERR_… of OpenSSL's x509_vfy.h, as `SSLCertVerificationError.verify_code` has them.
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_UNKNOWN_AUTHORITY: Final = frozenset({18, 19, 20, 21})
_OTHER_NAME: Final = frozenset({62, 64})

# What `ssl` says in the middle of a handshake that goes on, and of a connection that ended for some other reason.
_NO_FAILURES_OF_TLS: Final = (
    ssl.SSLWantReadError,
    ssl.SSLWantWriteError,
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
)

#: For a peer that ends the connection after the handshake and does not say why, which TLS 1.3 makes possible.
CLIENT_CERTIFICATE_ADVICE: Final = "; it may ask for a client's certificate, or refuse ours: see to SIDECAR_CLIENT_CERTIFICATE and SIDECAR_CLIENT_KEY"


def has_tls_settings(settings: Settings) -> bool:
    """Tell whether TLS is to be spoken otherwise than by the system's authorities alone."""
    return bool(settings.ca_file or settings.client_certificate or not settings.tls_verify)


def ssl_context_of(settings: Settings) -> ssl.SSLContext | None:
    """Return the context for whichever of broker, store and manager speaks TLS, or None if none needs one of ours.

    The manager alone needs one only where the settings have something to say of TLS.

    Raises:
        BadConfiguration: a file cannot be used.
    """
    manager = has_tls_settings(settings) and settings.manager_url.startswith("https:")
    if not (_broker_speaks_tls(settings) or settings.store_tls or manager):
        return None
    context = ssl.create_default_context(cafile=_authorities(settings))
    if settings.client_certificate:
        _load_client_certificate(context, settings.client_certificate, settings.client_key)
    if not settings.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def tls_warnings(settings: Settings) -> Iterator[str]:
    """Yield what is doubtful in the TLS settings, a sentence each."""
    broker, store = _broker_speaks_tls(settings), settings.store_tls
    somebody = broker or store or settings.manager_url.startswith("https:")
    if somebody and not settings.tls_verify:
        yield (
            "SIDECAR_TLS_VERIFY is false: no certificate is verified. Whoever is on the way to broker, store or manager can"
            " read and change everything, passwords and keys included"
        )
    for name, value, is_used in (
        ("SIDECAR_CA_FILE", settings.ca_file, somebody),
        ("SIDECAR_CLIENT_CERTIFICATE", settings.client_certificate, somebody),
        ("SIDECAR_BROKER_SERVER_NAME", settings.broker_server_name, broker),
        ("SIDECAR_STORE_SERVER_NAME", settings.store_server_name, store),
    ):
        if value and not is_used:
            yield (
                f"{name} is set, and nobody that it is for speaks TLS. TLS needs amqps:// in MQ_BROKER_URL, https:// or"
                " MINIO_USE_SSL=true for the store, https:// in MANAGER_URL"
            )


def tls_advice(error: BaseException, server_name: str) -> str:
    """Return what mends the TLS failure that `error` came of, to be put behind its text; empty when it came of none.

    What is wrong stands before it where the text does not say so. `server_name` is what to set where the certificate is for
    another name than the address.
    """
    cause = _ssl_error(error)
    if cause is None:
        return ""
    if isinstance(cause, ssl.SSLCertVerificationError):
        wrong = cause.verify_message.rstrip(".")
        advice = _verification_advice(cause.verify_code, server_name)
    else:
        wrong, advice = cause.reason or "", _handshake_advice(cause.reason or "")
    return "".join(f"; {text}" for text in (wrong, advice) if text and text not in str(error))


def _verification_advice(code: int, server_name: str) -> str:
    if code in _UNKNOWN_AUTHORITY:
        return "set SIDECAR_CA_FILE to a file with the certificate of the authority that issued it"
    if code in _OTHER_NAME:
        return f"set {server_name} to a name that the certificate is for"
    if code == _EXPIRED:
        return "renew the certificate, or SIDECAR_CA_FILE if it is the authority's that has expired"
    if code == _NOT_YET_VALID:
        return "set the clocks: the certificate is not valid yet"
    return "see to the certificate, and to SIDECAR_CA_FILE"


def _handshake_advice(reason: str) -> str:
    """Return what mends a failure that OpenSSL has a word for; those of an alert are the peer's."""
    if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        return "it asks for a client's certificate: set SIDECAR_CLIENT_CERTIFICATE and SIDECAR_CLIENT_KEY"
    if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
        return "it refuses our certificate: see to SIDECAR_CLIENT_CERTIFICATE"
    if reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}:
        return "no TLS is spoken there: see to the port, or leave TLS away"
    return ""


def _ssl_error(error: BaseException | None) -> ssl.SSLError | None:
    """Find the TLS failure among the causes of an error; each layer has wrapped it in an error of its own."""
    while error is not None:
        if isinstance(error, ssl.SSLError) and not isinstance(error, _NO_FAILURES_OF_TLS):
            return error
        error = error.__cause__ or error.__context__
    return None


def _broker_speaks_tls(settings: Settings) -> bool:
    return settings.broker_url.startswith("amqps:")


def _authorities(settings: Settings) -> str | None:
    """Return the file of authorities, or None for the system's, having looked whether it is one."""
    path = settings.ca_file
    if not path:
        return None
    _open("SIDECAR_CA_FILE", path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise BadConfiguration(
            [f"SIDECAR_CA_FILE {path!r} holds no certificate in PEM form"]
        ) from None
    return path


def _load_client_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    _open("SIDECAR_CLIENT_CERTIFICATE", certificate)
    if key:
        _open("SIDECAR_CLIENT_KEY", key)
    try:
        # Without a password of ours OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate, key or None, password="")
    except ssl.SSLError as error:
        files = f"SIDECAR_CLIENT_CERTIFICATE {certificate!r}"
        files += f" and SIDECAR_CLIENT_KEY {key!r}" if key else ", without SIDECAR_CLIENT_KEY,"
        reason = f" ({error.reason})" if error.reason else ""
        raise BadConfiguration(
            [
                f"{files} cannot be used{reason}: a certificate and its key are needed, in PEM form, the key without a passphrase"
            ]
        ) from None


def _open(variable: str, path: str) -> None:
    """See that a file can be read: what OpenSSL says of one that cannot does not name it."""
    try:
        with open(path, "rb"):
            pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise BadConfiguration([f"{variable} {path!r} cannot be read ({reason})"]) from None
