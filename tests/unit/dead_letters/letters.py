"""Dead letters as a broker delivers them, for tests to spoil."""

from __future__ import annotations

import json
from typing import Any

from iterum_sidecar.amqp import Delivery, Properties
from iterum_sidecar.dead_letters.letter import Letter, read_letter

ID = "abcdefgh" * 8
STEP = "0f3a9c51b7de4e60a1c84d2f96b05e7d-edges"
OWN: dict[str, Any] = {
    "x-iterum-kind": "input_missing",
    "x-iterum-reason": "get b/a: HTTP 404 NoSuchKey",
    "x-iterum-time": "2026-11-25T00:34:23.050+00:00",
    "x-iterum-step": STEP,
    "x-iterum-queue": "to-edges",
    "x-iterum-host": "a-pod",
    "x-iterum-attempts": 2,
}


def body_of(fragment_id: object) -> bytes:
    return json.dumps({"files": [], "metadata": {"fragment_id": fragment_id}}).encode()


def delivery(body: bytes = body_of(ID), **headers: object) -> Delivery:
    """A dead letter of a sidecar; a header of None is left away, and `_` in a name stands for `-`."""
    given = OWN | {name.replace("_", "-"): value for name, value in headers.items()}
    kept = {name: value for name, value in given.items() if value is not None}
    return Delivery(body, Properties(headers=kept), 1, False, "", "dead", 1, 1)


def foreign(body: bytes = b"hello", **headers: Any) -> Delivery:  # noqa: ANN401
    """A message of another program."""
    return Delivery(body, Properties(headers=headers), 1, False, "", "dead", 1, 1)


def letter(body: bytes = body_of(ID), **headers: object) -> Letter:
    return read_letter(delivery(body, **headers))
