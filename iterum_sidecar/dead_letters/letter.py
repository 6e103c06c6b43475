"""A dead letter as plain data: what a message of the dead-letter queue says of itself, and what it would be again."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import Struct

from iterum_sidecar.messages import FragmentId  # noqa: TC001 - msgspec looks it up

if TYPE_CHECKING:
    from iterum_sidecar import amqp

__all__ = [
    "DIGEST_MARK",
    "FOREIGN",
    "OWN_HEADERS",
    "RETRIES_HEADER",
    "Letter",
    "fresh_headers",
    "fresh_properties",
    "in_full",
    "read_letter",
]

#: What the sidecar puts into the headers of a dead letter (`stages/settle.py`), and what an earlier one of it may have put there.
OWN_HEADERS = frozenset(
    {
        "x-iterum-attempts",
        "x-iterum-error",
        "x-iterum-host",
        "x-iterum-kind",
        "x-iterum-queue",
        "x-iterum-reason",
        "x-iterum-step",
        "x-iterum-time",
    }
)
#: The header in which a fragment carries how often it was put back; a sidecar tells it by that from a delivery that comes again.
RETRIES_HEADER = "x-iterum-retries"
#: What a quorum queue has counted of deliveries from another queue.
_COUNTS_OF_THE_BROKER = frozenset({"x-delivery-count", "x-acquired-count"})

#: The kind of a message that no sidecar has put there.
FOREIGN = "foreign"
#: What stands before the digest of a body where a message has no ID; no ID holds a colon.
DIGEST_MARK = "body:"
#: Characters of an ID, or of what stands for one, in a table.
_SHORT = 12
#: A count is a stranger's word, and one more of it must still fit into a header.
_LARGEST_COUNT = 2**31 - 2


class Letter(NamedTuple):
    """One message of a dead-letter queue, without its body.

    `fragment_id` is empty where the body names none. `moment` is when it became a dead letter, None where nothing tells. `queue` is
    where it came from, empty likewise. `deliveries` counts how often a quorum queue has delivered it before.
    """

    fragment_id: str
    digest: str
    kind: str
    reason: str
    time: str
    moment: datetime | None
    step: str
    queue: str
    host: str
    attempts: int
    retries: int
    deliveries: int
    size: int

    @property
    def name(self) -> str:
        """What it is addressed by: its ID, or the digest of its body, marked."""
        return self.fragment_id or self.digest

    @property
    def short_name(self) -> str:
        """As much of its name as tells it from others."""
        return self.name[:_SHORT]

    def fields(self) -> dict[str, object]:
        """Return what it says of itself for the JSON forms; what is not told is null."""
        return {
            "id": self.fragment_id or None,
            "digest": self.digest,
            "time": self.time or None,
            "kind": self.kind,
            "step": self.step or None,
            "attempts": self.attempts,
            "retries": self.retries,
            "reason": self.reason,
            "queue": self.queue or None,
            "host": self.host or None,
            "bytes": self.size,
        }


class _Named(Struct):
    """As much of a body as names its fragment; the rest may be what made it a dead letter."""

    class Metadata(Struct):
        """The ID alone."""

        fragment_id: FragmentId

    metadata: Metadata


_naming_decoder = msgspec.json.Decoder(_Named)


def read_letter(delivery: amqp.Delivery) -> Letter:
    """Return what a message says of itself; whatever it holds, this raises nothing."""
    headers = delivery.headers
    is_own = "x-iterum-reason" in headers
    death = {} if is_own else _first_death(headers)
    time = _text(headers.get("x-iterum-time", "")) or _iso(death.get("time"))
    return Letter(
        fragment_id=_fragment_id(delivery.body),
        digest=DIGEST_MARK + hashlib.sha256(delivery.body).hexdigest(),
        kind=_text(headers.get("x-iterum-kind", "")) or ("unknown" if is_own else FOREIGN),
        reason=_text(headers["x-iterum-reason"]) if is_own else _foreign_reason(death),
        time=time,
        moment=_moment(time),
        step=_text(headers.get("x-iterum-step", "")),
        queue=_text(headers.get("x-iterum-queue", "")) or _text(death.get("queue", "")),
        host=_text(headers.get("x-iterum-host", "")),
        attempts=_count(headers.get("x-iterum-attempts")),
        retries=_count(headers.get(RETRIES_HEADER)),
        deliveries=max(_count(headers.get(name)) for name in _COUNTS_OF_THE_BROKER),
        size=len(delivery.body),
    )


def fresh_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers that a message had before it became a dead letter, and how often it has been put back by now."""
    kept = {
        name: value
        for name, value in headers.items()
        if name not in OWN_HEADERS and name not in _COUNTS_OF_THE_BROKER
    }
    return kept | {RETRIES_HEADER: _count(headers.get(RETRIES_HEADER)) + 1}


def fresh_properties(properties: amqp.Properties) -> amqp.Properties:
    """Return the properties for a message that is put back: its own, but such as could lose it or have it refused.

    It is persistent, does not expire, and names no user, since a broker refuses one that is not who publishes.
    """
    return properties._replace(
        headers=fresh_headers(properties.headers), delivery_mode=2, expiration=None, user_id=None
    )


def in_full(delivery: amqp.Delivery) -> dict[str, object]:
    """Return everything of a message as JSON can say it: `body` is a text where it is UTF-8, else there is `body_base64`."""
    properties = delivery.properties._asdict()
    headers = properties.pop("headers")
    told: dict[str, object] = {
        "headers": _plain(headers),
        "properties": {
            name: _plain(value) for name, value in properties.items() if value is not None
        },
    }
    try:
        return told | {"body": delivery.body.decode()}
    except UnicodeDecodeError:
        return told | {"body_base64": base64.b64encode(delivery.body).decode("ascii")}


def _fragment_id(body: bytes) -> str:
    try:
        return _naming_decoder.decode(body).metadata.fragment_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _first_death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what RabbitMQ tells of a message that it has dead-lettered itself; empty for all others."""
    deaths = headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[-1], dict):
        return deaths[-1]
    return {}


def _foreign_reason(death: Mapping[str, Any]) -> str:
    if death:
        return (
            f"put here by the broker, not by a sidecar: {_text(death.get('reason', 'no reason'))}"
        )
    return "put here by another program: it has no header x-iterum-reason"


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else str(value)


def _count(value: object) -> int:
    return min(int(value), _LARGEST_COUNT) if isinstance(value, int) and value > 0 else 0


def _iso(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else ""


def _moment(time: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(time)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _plain(value: object) -> object:
    """Return a header's value with nothing in it that JSON does not know."""
    if isinstance(value, bytes | bytearray):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value
