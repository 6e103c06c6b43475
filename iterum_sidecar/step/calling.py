"""Calling the function, taking what it gives back, and saying why it failed."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Generator, Iterable
from typing import TYPE_CHECKING, Any

from iterum_sidecar.step.fragments import making_of
from iterum_sidecar.step.making import Result

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, TracebackType

    from iterum_sidecar.step.session import Session, Work

__all__ = ["call", "call_async", "describe", "report_failure"]

#: Characters of a reason; it becomes a header of the dead letter.
LONGEST_REASON = 1000
#: Characters of it that the place in the source may take.
_LONGEST_PLACE = 300

_OURS = os.path.dirname(os.path.abspath(__file__))

_ONE_RESULT = (Result, str, os.PathLike)
_WHAT_MAY_BE = "None, a result, a path, or an iterable of those"


def call(function: Callable[..., Any], work: Work) -> list[Result]:
    """Call a plain function or a generator and return the results that are to be sent.

    Whatever it raises goes on to the caller, and what it had made is removed.
    """
    try:
        _take_all(work, function(work))
        return making_of(work).finish()
    except BaseException:
        making_of(work).discard()
        raise


async def call_async(function: Callable[..., Any], work: Work) -> list[Result]:
    """Call an async function or an async generator, like `call`."""
    try:
        outcome = function(work)
        if isinstance(outcome, AsyncIterable):
            await _take_each(work, outcome)
        else:
            _take_all(work, await outcome)
        return making_of(work).finish()
    except BaseException:
        making_of(work).discard()
        raise


def _take_all(work: Work, outcome: object) -> None:
    if outcome is None:
        return
    if isinstance(outcome, _ONE_RESULT):
        _take(work, outcome)
        return
    if isinstance(outcome, (Awaitable, AsyncIterable)):
        if hasattr(outcome, "close"):
            outcome.close()  # a coroutine that is not awaited would warn
        raise TypeError(
            "the function is a plain one and gave back something to be awaited: define it with `async def`"
        )
    if not isinstance(outcome, Iterable) or isinstance(outcome, (bytes, dict)):
        raise TypeError(f"the function gave back {_kind(outcome)}; it may give back {_WHAT_MAY_BE}")
    try:
        for item in outcome:
            _take(work, item)
    finally:
        if isinstance(outcome, Generator):
            outcome.close()  # its own `finally` runs now, before what it made is removed


async def _take_each(work: Work, outcome: AsyncIterable[object]) -> None:
    try:
        async for item in outcome:
            _take(work, item)
    finally:
        if isinstance(outcome, AsyncGenerator):
            await outcome.aclose()


def _take(work: Work, item: object) -> None:
    if isinstance(item, Result):
        making_of(work).give(item)
    elif isinstance(item, (str, os.PathLike)):
        if not making_of(work).is_made_by_block(item):
            making_of(work).give(work.result(item))
    elif item is not None:
        raise TypeError(f"the function gave {_kind(item)}; it may give back {_WHAT_MAY_BE}")


def _kind(value: object) -> str:
    return f"{type(value).__name__} {repr(value)[:80]}"


# -- failures


def report_failure(
    session: Session, work: Work, error: Exception, function: Callable[..., Any]
) -> list[bytes]:
    """Write the traceback to the log and return what tells the sidecar.

    Raises:
        SystemExit: this sidecar can be told by nothing but the end of the process; a done would lose the fragment.
    """
    import traceback

    print(f"failed on {work!r}:", file=sys.stderr)
    traceback.print_exception(type(error), error, _without_ours(error.__traceback__))
    sys.stderr.flush()
    told = session.failed(work, describe(error, function))
    if told is None:
        print("this sidecar is told of a failure by the end of the process only", file=sys.stderr)
        raise SystemExit(1)
    return told


def describe(error: BaseException, function: Callable[..., Any]) -> str:
    """Return why the function failed in one line of at most 1,000 characters: `Type: text (file.py:12 in function)`.

    The place is the innermost one in the function's own file, or the innermost that is not the client's, or where the
    function is defined. Of a group of errors, as task groups raise them, the first is told, and how many there are beside it.
    """
    error, others = _first_of(error)
    place = _place(error, function)[:_LONGEST_PLACE]
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(it has no text that can be read)"
    reason = f"{type(error).__qualname__}: {text}" if text else type(error).__qualname__
    place = f"{f' and {others} more' if others else ''}{place}"
    room = LONGEST_REASON - len(place)
    if len(reason) > room:
        reason = f"{reason[: room - 1]}…"
    return f"{reason}{place}".encode(errors="replace").decode()


def _first_of(error: BaseException) -> tuple[BaseException, int]:
    """Return the first error of a group of groups, and how many others there are; an error alone as it is."""
    if not isinstance(error, BaseExceptionGroup):
        return error, 0
    counted = [_first_of(each) for each in error.exceptions]
    return counted[0][0], sum(others + 1 for _, others in counted) - 1


def _place(error: BaseException, function: Callable[..., Any]) -> str:
    own: CodeType | None = getattr(function, "__code__", None)
    innermost = inside = None
    traceback = error.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if own is not None and file == own.co_filename:
            inside = traceback
        elif os.path.dirname(file) != _OURS:
            innermost = traceback
        traceback = traceback.tb_next
    found = inside or innermost
    code = own if found is None else found.tb_frame.f_code
    if code is None:
        return ""
    line = code.co_firstlineno if found is None else found.tb_lineno
    return f" ({os.path.basename(code.co_filename)}:{line} in {code.co_name})"


def _without_ours(traceback: TracebackType | None) -> TracebackType | None:
    """Leave out the frames of this package before the function's own; all of them stay when there is no other."""
    shown = traceback
    while shown is not None and os.path.dirname(shown.tb_frame.f_code.co_filename) == _OURS:
        shown = shown.tb_next
    return shown or traceback
