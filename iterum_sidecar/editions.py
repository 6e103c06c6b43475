"""Editions: which message of a fragment's ID a delivery is of, and whether this sidecar has dealt with that one before.

A message comes again when its acknowledgement was lost with a connection. One that somebody has put back by hand, and one
that was struck and published with a higher count, are other editions: they are worked.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from iterum_sidecar.entries import DeadLetterKind
from iterum_sidecar.messages import MessageRefused, decode_remote_fragment, signature_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from typing import Any

    from iterum_sidecar.brokers.port import Delivery
    from iterum_sidecar.cargo import FragmentLedger
    from iterum_sidecar.messages import RemoteFragment

__all__ = [
    "ATTEMPTS_HEADER",
    "RETRIES_HEADER",
    "TIME_HEADER",
    "comes_again",
    "count_in",
    "fragment_edition",
    "refusal_edition",
    "was_worked",
]

#: The header in which a fragment carries how often the transformation has died on it.
ATTEMPTS_HEADER = "x-iterum-attempts"
#: The header that counts how often somebody has put a dead letter back (`iterum-sidecar dead-letters retry`).
RETRIES_HEADER = "x-iterum-retries"
#: The header that a dead letter has. What somebody has put back with it, by other means, is no message that has come again.
TIME_HEADER = "x-iterum-time"


def count_in(headers: Mapping[str, Any], name: str) -> int:
    """Return the count that a header carries; 0 if it carries none."""
    value = headers.get(name, 0)
    return value if isinstance(value, int) and value > 0 else 0


def fragment_edition(message: RemoteFragment, headers: Mapping[str, Any]) -> Hashable:
    """Return which message of its ID describes this fragment; another fragment of the ID, with other files, is another."""
    return (
        message.metadata.fragment_id,
        hash(signature_of(message)),
        count_in(headers, ATTEMPTS_HEADER),
        count_in(headers, RETRIES_HEADER),
        str(headers.get(TIME_HEADER)),
    )


def refusal_edition(delivery: Delivery, kind: DeadLetterKind) -> Hashable:
    """Return which message it is that becomes a dead letter of `kind` for what it says."""
    body = hashlib.sha256(delivery.body).digest()
    headers = delivery.headers
    return kind, body, count_in(headers, RETRIES_HEADER), str(headers.get(TIME_HEADER))


def comes_again(delivery: Delivery, edition: Hashable, ledger: FragmentLedger) -> bool:
    """Tell whether it has become a dead letter or was struck here, and its acknowledgement was lost.

    An edition that is new to the broker may be what somebody has put back by hand, but never if it was struck: only we make those.
    """
    again = delivery.redelivered or count_in(delivery.headers, ATTEMPTS_HEADER) > 0
    return again and ledger.was_dismissed(edition)


def was_worked(delivery: Delivery, ledger: FragmentLedger) -> bool:
    """Tell whether nothing is left to do for it: it was settled here, or `comes_again`."""
    try:
        message = decode_remote_fragment(delivery.body)
    except MessageRefused:
        return comes_again(delivery, refusal_edition(delivery, DeadLetterKind.UNREADABLE), ledger)
    if ledger.was_settled(message.metadata.fragment_id, signature_of(message)):
        return True
    editions = (
        fragment_edition(message, delivery.headers),
        refusal_edition(delivery, DeadLetterKind.CONFLICT),
    )
    return any(comes_again(delivery, edition, ledger) for edition in editions)
