"""A certificate authority of one's own, for servers that are to speak TLS."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Tls", "make_tls"]


@dataclasses.dataclass(frozen=True)
class Tls:
    """Files in PEM form: the authority's certificate, and a server's and a client's with their keys."""

    authority: Path
    certificate: Path
    key: Path
    client_certificate: Path
    client_key: Path


def make_tls(
    directory: Path,
    *,
    names: Sequence[str] = ("localhost", "127.0.0.1"),
    not_after: dt.datetime | None = None,
) -> Tls:
    """Make an authority, and certificates by it for a client and for a server of these names, valid until then."""
    directory.mkdir(parents=True, exist_ok=True)
    tls = Tls(
        *(
            directory / f"{name}.pem"
            for name in ("authority", "server", "key", "client", "client-key")
        )
    )
    authority = trustme.CA()
    server = authority.issue_cert(*names, not_after=not_after)
    client = authority.issue_cert("client@example.org", common_name="client")
    authority.cert_pem.write_to_path(str(tls.authority))
    server.private_key_pem.write_to_path(str(tls.key))
    client.private_key_pem.write_to_path(str(tls.client_key))
    for path, issued in ((tls.certificate, server), (tls.client_certificate, client)):
        for position, pem in enumerate(issued.cert_chain_pems):
            pem.write_to_path(str(path), append=position > 0)
    for path in (tls.key, tls.client_key):
        path.chmod(0o644)  # a server may run as another user; nothing here is secret
    return tls
