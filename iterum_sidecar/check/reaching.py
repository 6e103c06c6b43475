"""The way to a peer, step by step, so that each can be told apart: its name, its port, its certificate."""

from __future__ import annotations

import os
import socket
import ssl
import time
from typing import TYPE_CHECKING, NamedTuple

import trio

from iterum_sidecar.tls import tls_advice

if TYPE_CHECKING:
    from iterum_sidecar.check.findings import Findings

__all__ = ["Address", "reach"]

_DAY = 24 * 60 * 60
#: Days before a certificate ends at which it is told: time to renew it without haste.
SOON = 14


class Address(NamedTuple):
    """Where a peer is, by which variable, and how TLS is spoken with it (`context` None: not at all).

    `server_name` is the name that its certificate must be for, and `server_name_variable` what to set where it is for another.
    """

    host: str
    port: int
    variable: str
    context: ssl.SSLContext | None = None
    server_name: str = ""
    server_name_variable: str = ""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


async def reach(address: Address, *, seconds: float, findings: Findings) -> trio.abc.Stream | None:
    """Connect, and add what was found on the way; None where no connection came in `seconds`."""
    with trio.move_on_after(seconds):
        stream = await _connect(address, findings)
        if stream is None or address.context is None:
            return stream
        return await _speak_tls(stream, address, address.context, findings)
    findings.failed(
        "connection",
        f"{address} does not answer within {seconds:g} s",
        f"see to host and port in {address.variable}, to network policies and firewalls",
    )
    return None


async def _connect(address: Address, findings: Findings) -> trio.SocketStream | None:
    try:
        found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        findings.failed(
            "name",
            f"{address.host} cannot be resolved: {reason}",
            f"see to the host in {address.variable}, and to the DNS of this pod",
        )
        return None
    addresses = sorted({str(entry[4][0]) for entry in found})
    try:
        stream = await trio.open_tcp_stream(address.host, address.port)
    except OSError as error:
        findings.failed(
            "connection",
            f"{address} ({', '.join(addresses)}): {_reason(error)}",
            f"start it, or mend host and port in {address.variable}",
        )
        return None
    findings.ok("connection", f"{address} ({', '.join(addresses)}) takes connections")
    return stream


async def _speak_tls(
    stream: trio.SocketStream, address: Address, context: ssl.SSLContext, findings: Findings
) -> trio.abc.Stream | None:
    name = address.server_name or address.host
    encrypted = trio.SSLStream(stream, context, server_hostname=name, https_compatible=True)
    try:
        await encrypted.do_handshake()
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(stream)
        cause = error.__cause__ or error
        reason = getattr(cause, "verify_message", None) or str(cause)
        advice = tls_advice(cause, address.server_name_variable).removeprefix("; ")
        findings.failed(
            "TLS", f"{address}: {reason}", advice or f"see to the port in {address.variable}"
        )
        return None
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    _add_certificate(encrypted, name, findings)
    return encrypted


def _add_certificate(
    encrypted: trio.SSLStream[trio.SocketStream], name: str, findings: Findings
) -> None:
    certificate = encrypted.getpeercert()
    version = encrypted.version()
    if not certificate:
        findings.ok("TLS", f"{version}; the certificate is not verified")
        return
    until = str(certificate["notAfter"])
    days = (ssl.cert_time_to_seconds(until) - time.time()) / _DAY
    detail = f"{version}, a certificate for {name} that is good until {until}"
    if days < SOON:
        findings.warning("TLS", f"{detail}: {days:.0f} days more", "renew it")
    else:
        findings.ok("TLS", detail)


def _reason(error: OSError) -> str:
    """Return what the system said; Trio wraps it, as several addresses may have been tried."""
    cause = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    number = cause.errno if isinstance(cause, OSError) else error.errno
    # A positive number is the system's own; what Trio writes beside it repeats the address.
    return os.strerror(number) if number and number > 0 else error.strerror or str(error)
