"""AWS Signature Version 4 for S3, without I/O.

The rules are those of the "Authenticating Requests: Using the Authorization Header" chapter of the
S3 API reference: a path is percent-encoded once and never normalised (`..` and `//` belong to the
key), query parameters are sorted by their encoded names, and the hash of the body is a signed
header.

A request costs one SHA-256 and one HMAC: everything that requests of one kind share is laid out
once in a template, the date is written once a second and the signing key is derived once a day.
"""

from __future__ import annotations

import hmac
import string
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["EMPTY_SHA256", "Credentials", "Signer", "canonical_query", "quote", "quote_key"]

EMPTY_SHA256: Final = sha256(b"").hexdigest()

# The characters that RFC 3986 calls unreserved, which SigV4 leaves as they are.
_UNRESERVED: Final = frozenset((string.ascii_letters + string.digits + "-._~").encode())
_QUOTED: Final = [chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in range(256)]
_ASCII: Final = {byte: _QUOTED[byte] for byte in range(128) if byte not in _UNRESERVED}
_ASCII_KEY: Final = {byte: text for byte, text in _ASCII.items() if byte != ord("/")}

# Bounds the templates when virtual-hosted addresses make a host name for each bucket: buckets are
# named in messages, so their number is not ours to choose.
_TEMPLATES_MAX: Final = 512


def quote(text: str) -> str:
    """Percent-encode `text` for a query or a single path segment; `/` is encoded too.

    Raises:
        UnicodeEncodeError: `text` holds a lone surrogate and so has no UTF-8 form.
    """
    if text.isascii():
        return text.translate(_ASCII)
    return "".join([_QUOTED[byte] for byte in text.encode()])


def quote_key(key: str) -> str:
    """Percent-encode an object's key for a path; `/` stays, and so do `//`, `.` and `..`.

    Raises:
        UnicodeEncodeError: `key` holds a lone surrogate and so has no UTF-8 form.
    """
    if key.isascii():
        return key.translate(_ASCII_KEY)
    return quote(key).replace("%2F", "/")


def canonical_query(parameters: Mapping[str, str]) -> str:
    """Write query parameters as they are sent and signed: encoded, sorted, each with its `=`."""
    encoded = sorted((quote(name), quote(value)) for name, value in parameters.items())
    return "&".join(f"{name}={value}" for name, value in encoded)


@final
@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """An access key with its secret; only the access key shows in `repr`.

    Raises:
        ValueError: the access key or the session token holds a character that no header may hold.
    """

    access_key: str
    secret_key: str
    session_token: str | None = None

    def __post_init__(self) -> None:
        for name, value in (
            ("access key", self.access_key),
            ("session token", self.session_token or ""),
        ):
            # A secret read from a file likes to bring its newline along; in a header that would
            # begin a line of its own. The value itself must not be shown.
            if not (value.isascii() and value.isprintable()):
                raise ValueError(f"the {name} holds a character that no header may hold")

    def __repr__(self) -> str:
        return f"Credentials({self.access_key!r}, …)"


@final
class _Template:
    """What all requests of one method, host and set of extra headers have in common.

    `canonical` takes path, query, payload hash, date and payload hash again; `head` takes target,
    payload hash, date, scope, signature and whatever unsigned header lines follow.
    """

    __slots__ = ("canonical", "head")

    def __init__(
        self,
        method: str,
        host: str,
        extra: tuple[tuple[str, str], ...],
        credentials: Credentials,
    ) -> None:
        signed = {name: value.replace("%", "%%") for name, value in extra}
        signed |= {"host": host.replace("%", "%%")}
        if credentials.session_token is not None:
            signed["x-amz-security-token"] = credentials.session_token.replace("%", "%%")
        signed |= {"x-amz-content-sha256": "%s", "x-amz-date": "%s"}
        names = sorted(signed)
        listed = ";".join(names)
        headers = "".join(f"{name}:{signed[name]}\n" for name in names)
        self.canonical = f"{method}\n%s\n%s\n{headers}\n{listed}\n%s"
        lines = "".join(f"{name}: {signed[name]}\r\n" for name in names)
        access_key = credentials.access_key.replace("%", "%%")
        self.head = (
            f"{method} %s HTTP/1.1\r\n{lines}"
            f"authorization: AWS4-HMAC-SHA256 Credential={access_key}/%s, "
            f"SignedHeaders={listed}, Signature=%s\r\n%s\r\n"
        )


@final
class Signer:
    """Writes the heads of signed requests.

    `clock` gives seconds since the epoch. `offset` is added to it: a server's time minus ours, for
    a machine whose clock is wrong by more than the fifteen minutes that S3 allows.
    """

    def __init__(
        self,
        credentials: Credentials,
        region: str = "us-east-1",
        service: str = "s3",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.region = region
        self.offset = 0.0
        self.credentials = credentials
        self._service = service
        self._clock = clock
        self._templates: dict[tuple[str, str, tuple[tuple[str, str], ...]], _Template] = {}
        self._second = -1
        self._date = ""
        self._scope = ""
        self._to_sign = ""
        self._key = hmac.new(b"", digestmod="sha256")

    def __repr__(self) -> str:
        return f"Signer({self.credentials!r}, {self.region!r})"

    def head(
        self,
        method: str,
        host: str,
        path: str,
        query: str = "",
        payload_hash: str = EMPTY_SHA256,
        extra: tuple[tuple[str, str], ...] = (),
        unsigned: str = "",
    ) -> bytes:
        """Return the signed head of a request, its closing empty line included.

        `path` and `query` are already encoded (`quote_key`, `canonical_query`); `extra` are further
        headers to be signed, names in lower case; `unsigned` are whole header lines, each ended by
        CR LF.
        """
        now = int(self._clock() + self.offset)
        if now != self._second:
            self._turn_to(now)
        template = self._templates.get((method, host, extra)) or self._lay_out(method, host, extra)
        date = self._date
        canonical = template.canonical % (path, query, payload_hash, date, payload_hash)
        mac = self._key.copy()
        mac.update((self._to_sign + sha256(canonical.encode()).hexdigest()).encode())
        target = f"{path}?{query}" if query else path
        return (
            template.head % (target, payload_hash, date, self._scope, mac.hexdigest(), unsigned)
        ).encode()

    def _lay_out(self, method: str, host: str, extra: tuple[tuple[str, str], ...]) -> _Template:
        if len(self._templates) >= _TEMPLATES_MAX:
            self._templates.clear()
        template = _Template(method, host, extra, self.credentials)
        self._templates[method, host, extra] = template
        return template

    def _turn_to(self, second: int) -> None:
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        day = date[:8]
        if day != self._date[:8]:
            self._scope = f"{day}/{self.region}/{self._service}/aws4_request"
            key = f"AWS4{self.credentials.secret_key}".encode()
            for part in self._scope.split("/"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key = hmac.new(key, digestmod="sha256")
        self._second = second
        self._date = date
        self._to_sign = f"AWS4-HMAC-SHA256\n{date}\n{self._scope}\n"
