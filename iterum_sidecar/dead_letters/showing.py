"""Dead letters one by one: everything that the broker holds of them."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, TextIO

import msgspec

from iterum_sidecar.dead_letters.errors import NotDone
from iterum_sidecar.dead_letters.letter import in_full, read_letter
from iterum_sidecar.local.progress import count, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iterum_sidecar import amqp
    from iterum_sidecar.dead_letters.choosing import Choosing
    from iterum_sidecar.dead_letters.letter import Letter
    from iterum_sidecar.dead_letters.listing import Form
    from iterum_sidecar.dead_letters.reading import Reading

__all__ = ["Showing"]


class Showing:
    """Holds the letters that are chosen, with their bodies; they are few, as each is named. With `raw` their bodies alone are told."""

    changes: Final = False

    def __init__(self, form: Form, queue: str, *, raw: bool) -> None:
        self._form = form
        self._queue = queue
        self._raw = raw
        self._found: list[tuple[Letter, amqp.Delivery]] = []
        self.problems: list[str] = []

    async def run(self, reading: Reading, choosing: Choosing) -> None:
        """Go through the queue; nothing of it is changed.

        Raises:
            NotDone: there is no such letter, or what was given is the beginning of several IDs.
            ServiceLost.
        """
        async with aclosing(reading.letters()) as letters:
            async for delivery in letters:
                letter = read_letter(delivery)
                if choosing.takes(letter):
                    self._found.append((letter, delivery))
                if choosing.is_ambiguous:
                    self._found.clear()
        choosing.conclude()

    def tell(self, output: TextIO, choosing: Choosing) -> None:
        """Write all of them, as text or as one object of JSON; or a body, byte for byte.

        Raises:
            NotDone: several letters have this ID, and their bodies differ.
        """
        if self._raw:
            output.flush()
            output.buffer.write(self._only_body())
        elif self._form == "json":
            letters = [letter.fields() | in_full(delivery) for letter, delivery in self._found]
            output.write(json.dumps({"queue": self._queue, "letters": letters}) + "\n")
        else:
            output.write("\n".join(_text(*each, self._queue) for each in self._found))

    def _only_body(self) -> bytes:
        bodies = {letter.digest: delivery.body for letter, delivery in self._found}
        if len(bodies) > 1:
            raise NotDone(
                f"{count(len(bodies), 'different letter')} have this ID; name one by its digest: {', '.join(sorted(bodies))}"
            )
        (body,) = bodies.values()
        return body


def _text(letter: Letter, delivery: amqp.Delivery, queue: str) -> str:
    lines = [
        letter.name,
        f"in {printable(queue)}, {count(letter.size, 'byte')}, sha256 {letter.digest.partition(':')[2]}",
        "",
        "headers",
    ]
    told = in_full(delivery)
    lines += _table(told["headers"]) or ["  (none)"]
    lines += ["", "properties", *(_table(told["properties"]) or ["  (none)"]), ""]
    return "\n".join([*lines, *_body(delivery.body), ""])


def _table(values: object) -> list[str]:
    assert isinstance(values, dict)
    names = {printable(name): value for name, value in sorted(values.items())}
    width = max(map(len, names), default=0)
    return [f"  {name:{width}}  {_value(value)}" for name, value in names.items()]


def _value(value: object) -> str:
    return printable(value) if isinstance(value, str) else printable(json.dumps(value))


def _body(body: bytes) -> Iterator[str]:
    """Yield the lines of a body: JSON with indents, with every number and text as it stands there, else an escaped form."""
    if not body:
        yield "body: empty"
        return
    try:
        text = msgspec.json.format(body, indent=2).decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        yield "body, which is no JSON; what is not printable is escaped"
        yield from _escaped(body)
        return
    yield "body"
    # No JSON has a character outside of its strings that needs an escape, and in a string \u is one.
    for line in text.split("\n"):
        yield "".join(each if each.isprintable() else _json_escape(each) for each in line)


def _json_escape(character: str) -> str:
    return json.dumps(character)[1:-1]


def _escaped(body: bytes) -> Iterator[str]:
    text = body.replace(b"\\", b"\\\\").decode(errors="backslashreplace")
    yield from map(printable, text.split("\n"))
