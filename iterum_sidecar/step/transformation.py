"""The decorator that makes a step of a function."""

from __future__ import annotations

import inspect
import os
import sys
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, overload

from iterum_sidecar.messages import MOST_GATHERED

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Transform", "transform"]

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class Transform(Generic[P, R_co]):
    """A function that is a step. Call it like the function itself, or `run` it beside a sidecar."""

    def __init__(
        self,
        function: Callable[P, R_co],
        *,
        concurrency: int = 1,
        gather: int | Literal["all"] | None = None,
    ) -> None:
        """See `transform`, which is the usual way to make one.

        Raises:
            TypeError: it cannot be called with a fragment alone.
            ValueError: a number that cannot be.
        """
        _check_callable(function)
        if type(concurrency) is not int or concurrency < 1:
            raise ValueError(f"concurrency is a whole number from 1 on, not {concurrency!r}")
        if gather is not None and gather != "all" and (type(gather) is not int or gather < 1):
            raise ValueError(f'gather is a whole number from 1 on, or "all", not {gather!r}')
        self.function = function
        """The function itself."""
        self.concurrency = concurrency
        """On how many fragments, or batches, it works at a time."""
        self.gather: int | None = MOST_GATHERED if gather == "all" else gather
        """How many fragments make a batch; None when it works on one fragment at a time."""
        self.is_async = _is_async(function)
        """Whether it is an async function or an async generator."""
        # The attributes of an object that is called like a function are not the step's own.
        update_wrapper(self, function, updated=())
        self.__name__ = _name(function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function itself."""
        return self.function(*args, **kwargs)

    def run(self, *, backend: Literal["asyncio", "trio"] = "asyncio") -> None:
        """Work on what the sidecar hands out, and return when it says that nothing more comes.

        An exception in the function fails its fragment, with its traceback on standard error, and the next one is worked.
        `backend` is the event loop of an async function.

        Raises:
            SystemExit: 2 without a sidecar's environment; 1 when no sidecar came, or it did not come back, and when the
                function failed beside a sidecar that can only be told by that; 130 after Ctrl-C.
        """
        from iterum_sidecar.step.attempts import GivenUp
        from iterum_sidecar.step.surroundings import SurroundingsMissing, read_surroundings

        try:
            surroundings = read_surroundings(os.environ, self.__name__)
            if self.is_async:
                from iterum_sidecar.step.on_anyio import run_on_anyio

                run_on_anyio(self, surroundings, backend)
            else:
                from iterum_sidecar.step.blocking import run_blocking

                run_blocking(self, surroundings)
        except SurroundingsMissing as error:
            print(error, file=sys.stderr)
            raise SystemExit(2) from None
        except GivenUp as error:
            print(error, file=sys.stderr)
            raise SystemExit(1) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    def __repr__(self) -> str:
        return f"<Transform {self.__name__}>"


@overload
def transform(function: Callable[P, R], /) -> Transform[P, R]: ...


@overload
def transform(
    *, concurrency: int = 1, gather: int | Literal["all"] | None = None
) -> Callable[[Callable[P, R]], Transform[P, R]]: ...


def transform(
    function: Callable[..., Any] | None = None,
    /,
    *,
    concurrency: int = 1,
    gather: int | Literal["all"] | None = None,
) -> Any:
    """Make a step of a function that takes a fragment.

    It may be a plain function, a generator, an async function or an async generator. What it returns or yields are its
    results: None, `fragment.result(path)`, a path, or an iterable of those; `with fragment.create(name)` makes one too.
    They are sent when it has ended well, and none of them when it fails.

    `concurrency` is how many fragments it works on at a time: in threads, or tasks if it is async. With `gather` it is
    called with a `Batch` of so many fragments; the last one holds what is left, and `"all"` is one batch of everything
    that this process gets.

    Raises:
        TypeError: it cannot be called with a fragment alone.
        ValueError: a number that cannot be.
    """
    if function is None:
        return partial(Transform, concurrency=concurrency, gather=gather)
    return Transform(function, concurrency=concurrency, gather=gather)


def _check_callable(function: object) -> None:
    """Refuse, where it is decorated, what would fail on every fragment.

    Raises:
        TypeError: the text says why, and what to do instead.
    """
    if isinstance(function, Transform):
        raise TypeError(f"{function.__name__} is a step already; it needs no second @transform")
    if inspect.isclass(function):
        raise TypeError(
            f"@transform is for a function, not for the class {function.__name__}: give it an object of the class that"
            f" can be called, transform({function.__name__}(…))"
        )
    if not callable(function):
        raise TypeError(f"@transform is for a function, not for {function!r}")
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # some functions written in C do not tell
    try:
        signature.bind(None)
    except TypeError:
        name, names = _name(function), list(signature.parameters)
        if names[:1] == ["self"]:
            remedy = f"of a method, make a step with its object, transform(thing.{name})"
        elif names:
            remedy = "give the others defaults, or values by functools.partial"
        else:
            remedy = "let it take one"
        raise TypeError(
            f"a step is called with one argument, its fragment or batch, and {name}({', '.join(names)}) cannot be: {remedy}"
        ) from None


def _innermost(function: object) -> object:
    """Return what is called in the end, without each `partial` and `staticmethod` around it."""
    while isinstance(function, (partial, staticmethod)):
        function = function.func if isinstance(function, partial) else function.__func__
    return function


def _name(function: object) -> str:
    inner = _innermost(function)
    return str(getattr(inner, "__name__", type(inner).__name__))


def _is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives something to be awaited, or iterated asynchronously."""
    inner = _innermost(function)
    if not inspect.isroutine(inner) and not inspect.isclass(inner):
        inner = type(inner).__call__
    return inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)
