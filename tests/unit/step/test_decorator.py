"""What `@transform` takes: whatever can be called with a fragment alone works, and all else is refused where it stands."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.step import Fragment, Result, Transform, run_on, transform

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    path = tmp_path / "cat.jpg"
    path.write_text("cat")
    return path


def named(fragment: Fragment, name: str) -> Result:
    return fragment.result(fragment.files[0], name=name)


async def named_async(fragment: Fragment, name: str) -> Result:
    return named(fragment, name)


class Namer:
    """An object that is called like a function, with attributes that a step has too."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.run = self.gather = self.concurrency = self.function = None

    def __call__(self, fragment: Fragment) -> Result:
        return named(fragment, self.name)

    def method(self, fragment: Fragment) -> Result:
        return named(fragment, self.name)

    async def method_async(self, fragment: Fragment) -> Result:
        return named(fragment, self.name)

    @staticmethod
    async def streamed(fragment: Fragment) -> AsyncIterator[Result]:
        yield named(fragment, "x")


class AsyncNamer(Namer):
    async def __call__(self, fragment: Fragment) -> Result:  # type: ignore[override]
        return named(fragment, self.name)


def chosen(fragment: Fragment, name: str = "x", *more: str) -> Result:
    return named(fragment, name)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda fragment: named(fragment, "x"), "<lambda>"),
        (chosen, "chosen"),
        (partial(named, name="x"), "named"),
        (partial(named_async, name="x"), "named_async"),
        (partial(partial(named), name="x"), "named"),
        (Namer("x"), "Namer"),
        (AsyncNamer("x"), "AsyncNamer"),
        (partial(AsyncNamer("x")), "AsyncNamer"),
        (Namer("x").method, "method"),
        (Namer("x").method_async, "method_async"),
        (staticmethod(Namer.streamed), "streamed"),
    ],
)
def test_what_can_be_called_with_a_fragment_is_a_step(
    cat: Path, function: Callable[[Fragment], object], name: str
) -> None:
    step = transform(function)
    assert step.__name__ == name
    assert step.gather is None
    (result,) = run_on(step, cat)
    assert result.files[0].name == "x"


def test_in_a_class_a_static_method_may_be_a_step(cat: Path) -> None:
    class Steps:
        @staticmethod
        @transform
        def shout(fragment: Fragment) -> Result:
            return named(fragment, "x")

    assert len(run_on(Steps.shout, cat)) == 1


def method(self: object, fragment: object) -> None: ...


def two(fragment: object, other: object) -> None: ...


def nothing() -> None: ...


def keyword(fragment: object, *, name: str) -> None: ...


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (method, r"method\(self, fragment\) cannot be: of a method, .* transform\(thing\.method\)"),
        (two, r"two\(fragment, other\) cannot be: give the others defaults"),
        (keyword, r"keyword\(fragment, name\) cannot be: give the others defaults"),
        (nothing, r"nothing\(\) cannot be: let it take one"),
        (Namer, r"not for the class Namer: .* transform\(Namer\(…\)\)"),
        (Namer.method, r"method\(self, fragment\) cannot be"),
        (classmethod(method), r"is for a function, not for <classmethod"),
        (8, "is for a function, not for 8"),
        (transform(chosen), "chosen is a step already"),
    ],
)
def test_what_cannot_is_refused_in_one_sentence(wrong: Callable[..., object], told: str) -> None:
    with pytest.raises(TypeError, match=told) as caught:
        transform(wrong)
    assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match=told):
        transform(concurrency=2)(wrong)


def test_a_function_that_does_not_tell_what_it_takes_is_taken() -> None:
    assert isinstance(transform(max), Transform)


def test_the_refusal_of_a_method_points_at_its_line(tmp_path: Path) -> None:
    program = tmp_path / "step.py"
    program.write_text(
        "from iterum_sidecar.step import transform\n"
        "class Steps:\n"
        "    @transform\n"
        "    def shout(self, fragment): ...\n"
    )
    run = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert f'File "{program}", line 3, in Steps' in run.stderr
    assert run.stderr.splitlines()[-1].startswith("TypeError: a step is called with one argument")
