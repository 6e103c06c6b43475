"""The reason that is told of a failure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.step import Fragment, transform
from iterum_sidecar.step.calling import call, describe

if TYPE_CHECKING:
    from collections.abc import Callable


def reason_of(function: Callable[[object], object]) -> str:
    try:
        function(None)
    except Exception as error:
        return describe(error, function)
    raise AssertionError("it did not fail")


def test_it_names_type_text_and_place() -> None:
    def edges(_: object) -> None:
        raise RuntimeError("no edges here")

    line = edges.__code__.co_firstlineno + 1
    assert reason_of(edges) == f"RuntimeError: no edges here (test_failures.py:{line} in edges)"


def test_the_place_is_in_the_functions_own_file() -> None:
    def edges(_: object) -> None:
        json.loads("{")

    line = edges.__code__.co_firstlineno + 1
    assert reason_of(edges).endswith(f"(test_failures.py:{line} in edges)")


def test_a_fault_of_what_it_gave_back_is_placed_at_its_definition() -> None:
    @transform
    def edges(fragment: Fragment) -> int:
        return 7

    class Work:
        class _making:
            @staticmethod
            def discard() -> None: ...

    with pytest.raises(TypeError) as caught:
        call(edges.function, Work)  # type: ignore[arg-type]  # it is looked at only to be discarded
    line = edges.function.__code__.co_firstlineno
    # A step's own traceback begins in the client; this one begins here.
    error = caught.value.with_traceback(caught.tb.tb_next)
    assert describe(error, edges.function).endswith(f"(test_failures.py:{line} in edges)")


def test_it_is_one_line_of_at_most_1000_characters_and_keeps_the_place() -> None:
    def edges(_: object) -> None:
        raise ValueError("many\nlines " * 500)

    reason = reason_of(edges)
    assert len(reason) == 1000
    assert "\n" not in reason
    assert reason.startswith("ValueError: many lines many")
    assert reason.endswith(" in edges)")
    assert "… (" in reason


def test_a_text_that_cannot_be_had_or_sent_is_no_second_failure() -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def silent(_: object) -> None:
        raise Unprintable

    def surrogate(_: object) -> None:
        raise ValueError("\udcff")

    def empty(_: object) -> None:
        raise ValueError

    assert "Unprintable: (it has no text that can be read)" in reason_of(silent)
    assert reason_of(surrogate).startswith("ValueError: ? (")
    assert reason_of(empty).startswith("ValueError (test_failures.py")
