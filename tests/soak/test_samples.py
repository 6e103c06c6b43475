"""When a life is flat."""

from __future__ import annotations

from .samples import rises, thirds


def test_a_life_that_levels_off_is_flat() -> None:
    values = [(at, min(70.0, 40.0 + at)) for at in map(float, range(0, 300, 2))]
    both = thirds(values)
    assert both is not None
    assert not rises("memory", *both)


def test_a_life_that_grows_on_is_not() -> None:
    values = [(at, 40.0 + at / 10) for at in map(float, range(0, 300, 2))]
    both = thirds(values)
    assert both is not None
    assert rises("memory", *both)


def test_one_more_of_a_few_is_no_growth() -> None:
    values = [(at, 1.0 if at < 100 else 3.0) for at in map(float, range(0, 300, 2))]
    both = thirds(values)
    assert both is not None
    assert not rises("threads", *both)


def test_an_outage_in_the_last_third_is_no_growth() -> None:
    values = [(at, 112.0 if at > 220 else 49.0) for at in map(float, range(0, 300, 2))]
    both = thirds(values)
    assert both is not None
    assert not rises("files", *both)


def test_a_short_life_tells_nothing() -> None:
    assert thirds([(float(at), 40.0) for at in range(0, 58, 2)]) is None
    assert thirds([]) is None
