from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iterum_sidecar.stores.retries import RetryPolicy, retry_after_seconds

seconds = st.floats(0, 1000)


@given(
    attempts=st.integers(1, 10_000),
    first=seconds,
    cap=seconds,
    draw=st.floats(0, 1, exclude_max=True),
    failures=st.integers(1, 10_000),
    retry_after=st.none() | st.floats(0, 1e9),
)
def test_pauses_are_bounded(
    attempts: int, first: float, cap: float, draw: float, failures: int, retry_after: float | None
) -> None:
    policy = RetryPolicy(attempts=attempts, first=first, cap=cap, draw=lambda: draw)
    pause = policy.pause(failures, retry_after)
    if failures >= attempts:
        assert pause is None
    else:
        assert pause is not None
        assert 0 <= pause <= cap
        assert pause >= min(retry_after or 0, cap)


def test_the_bound_doubles_up_to_the_cap() -> None:
    policy = RetryPolicy(attempts=7, first=0.25, cap=3.0, draw=lambda: 1.0)
    assert [policy.pause(n) for n in range(1, 8)] == [0.25, 0.5, 1.0, 2.0, 3.0, 3.0, None]


def test_jitter_is_full() -> None:
    assert RetryPolicy(draw=lambda: 0.0).pause(1) == 0.0
    assert RetryPolicy(draw=lambda: 0.5).pause(1) == 0.125


def test_a_single_attempt_is_never_repeated() -> None:
    assert RetryPolicy(attempts=1).pause(1, retry_after=1.0) is None


@pytest.mark.parametrize(
    ("attempts", "first", "cap"), [(0, 1.0, 1.0), (1, -1.0, 1.0), (1, 1.0, -1.0)]
)
def test_impossible_policies(attempts: int, first: float, cap: float) -> None:
    with pytest.raises(ValueError, match=r"at least 1|negative"):
        RetryPolicy(attempts=attempts, first=first, cap=cap)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Fri, 24 May 2013 00:00:10 GMT", 10.0),
        ("Thu, 23 May 2013 00:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("²", None),
        ("Fri, 99 May 2013 00:00:10 GMT", None),
    ],
)
def test_retry_after(value: str, expected: float | None) -> None:
    assert retry_after_seconds(value, now=1369353600.0) == expected
