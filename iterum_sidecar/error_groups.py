"""The errors in a group of groups, for those who tell a person about them."""

from __future__ import annotations

from typing import TypeVar

__all__ = ["leaves", "leaves_of"]

ErrorT = TypeVar("ErrorT", bound=BaseException)


def leaves(error: BaseException) -> list[BaseException]:
    """Return the errors that a group consists of, however deep they are, in their order; an error alone is a list of one."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    return [error]


def leaves_of(error: BaseException, kind: type[ErrorT]) -> list[ErrorT]:
    """Return those of the errors that are of a kind."""
    return [leaf for leaf in leaves(error) if isinstance(leaf, kind)]
