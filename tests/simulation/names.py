"""Short names for what is on its way: `f3` is the third input fragment, `o1a2b3c` an output, `l1a2b3c` its lineage."""

from __future__ import annotations

import msgspec

__all__ = ["DEAD", "INPUT", "LINEAGE", "OUTPUT", "SIDE", "Names", "fragment_id"]

INPUT, OUTPUT, SIDE, LINEAGE, DEAD = "in", "out", "side", "hash-lineage", "in-dead-letter"
"""The queues; `SIDE` is that of the output channel of the same name."""

_ID_LENGTH = 64


def fragment_id(number: int) -> str:
    """Return the ID of an input fragment."""
    return f"f{number}".ljust(_ID_LENGTH, "-")


class _Metadata(msgspec.Struct):
    fragment_id: str = ""


class _Description(msgspec.Struct):
    metadata: _Metadata | None = None


class _Any(msgspec.Struct):
    metadata: _Metadata | None = None
    description: _Description | None = None


class Names:
    """The names of messages and IDs, each worked out once."""

    def __init__(self) -> None:
        self._of: dict[bytes, str] = {}
        self._decoder = msgspec.json.Decoder(_Any)

    def call(self, body: bytes, name: str) -> None:
        """Give a message a name of its own."""
        self._of[body] = name

    def of(self, body: bytes) -> str:
        """Return the name of a message."""
        name = self._of.get(body)
        if name is None:
            name = self._of[body] = self._work_out(body)
        return name

    def _work_out(self, body: bytes) -> str:
        try:
            message = self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return f"?{body[:12].decode(errors='replace')}"
        if message.description is not None and message.description.metadata is not None:
            return f"l{message.description.metadata.fragment_id[:7]}"
        return self.of_id("" if message.metadata is None else message.metadata.fragment_id)

    @staticmethod
    def of_id(whole: str) -> str:
        """Return the name of a fragment by its ID."""
        return whole.rstrip("-") if whole.endswith("-") else f"o{whole[:7]}"
