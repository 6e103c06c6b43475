"""pamqp's methods that name a queue, without its narrow idea of a name.

pamqp allows letters, digits and some punctuation; RabbitMQ takes any text of at most 255 bytes in UTF-8, which is
checked when the method is encoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pamqp import commands

if TYPE_CHECKING:
    from pamqp.base import Frame


class DeclareQueue(commands.Queue.Declare):
    """queue.declare for a queue of any name."""

    def validate(self) -> None:
        """Accept every name."""


class DeleteQueue(commands.Queue.Delete):
    """queue.delete for a queue of any name."""

    def validate(self) -> None:
        """Accept every name."""


class Consume(commands.Basic.Consume):
    """basic.consume from a queue of any name."""

    def validate(self) -> None:
        """Accept every name."""


def name_of(class_id: int, method_id: int) -> str | None:
    """Return the name of a method as the broker's log writes it, such as `queue.declare`; None if there is none."""
    method: type[Frame] | None = commands.INDEX_MAPPING.get(class_id << 16 | method_id)
    return None if method is None else spec_name(method.name)


def spec_name(name: str) -> str:
    """Turn pamqp's `Queue.DeclareOk` into the specification's `queue.declare-ok`."""
    class_name, _, method_name = name.partition(".")
    words = "".join(f"-{letter}" if letter.isupper() else letter for letter in method_name)
    return f"{class_name}.{words.removeprefix('-')}".lower()
