"""Where a broker is and who we are there, from an AMQP URL."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionParameters:
    """The address of a broker and the credentials for it; the password never appears in `repr`.

    `port` lies in 1 to 65535; `tls` says whether TLS is spoken there, and `server_name` is the name that the certificate
    must be for (empty: `host`).
    """

    host: str = "localhost"
    port: int = 5672
    user: str = "guest"
    password: str = field(default="guest", repr=False)
    vhost: str = "/"
    tls: bool = False
    server_name: str = ""

    @classmethod
    def from_url(cls, url: str, *, server_name: str = "") -> ConnectionParameters:
        """Read `amqp://user:password@host:port/vhost`, or `amqps://` for TLS.

        Every part but the scheme may be absent: `guest`, `guest`, `localhost`, and port 5672 or 5671 stand in.
        An absent virtual host and `/` both mean `/`. User, password and virtual host are percent-decoded.
        A query is ignored. Raises ValueError, which never quotes the URL, since a password may be anywhere in it.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError("not an AMQP URL: its host or port cannot be read") from None
        if parts.scheme not in DEFAULT_PORTS:
            raise ValueError("not an AMQP URL: it must begin with amqp:// or amqps://")
        if not url[len(parts.scheme) :].startswith("://"):
            raise ValueError("not an AMQP URL: '//' must follow the scheme")
        if parts.fragment:
            raise ValueError("not an AMQP URL: a '#' in a password must be written as %23")
        if port == 0:
            raise ValueError("not an AMQP URL: port 0 cannot be connected to")
        return cls(
            host=unquote(parts.hostname or "localhost"),
            port=port or DEFAULT_PORTS[parts.scheme],
            user="guest" if parts.username is None else unquote(parts.username),
            password="guest" if parts.password is None else unquote(parts.password),
            vhost=unquote(parts.path[1:]) or "/",
            tls=parts.scheme == "amqps",
            server_name=server_name,
        )
