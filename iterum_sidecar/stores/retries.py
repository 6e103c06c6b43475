"""When a failed request is sent again, and after how long; without I/O and without a clock."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RetryPolicy", "http_date_seconds", "retry_after_seconds"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter, bounded in attempts and in each pause.

    `attempts` counts the first try too and is at least 1; `first` and `cap` are seconds. The
    defaults wait at most 9 s in all, and 1.75 s unless the server asks for more: long enough for
    one overloaded or restarting server, short enough that whoever waits for a whole service to come
    back keeps its own, slower schedule and can say what it waits for.

    Full jitter (a uniform draw between 0 and the exponential bound) follows AWS's article
    "Exponential Backoff And Jitter": of the schemes compared there it makes the fewest calls.
    """

    attempts: int = 4
    first: float = 0.25
    cap: float = 3.0
    draw: Callable[[], float] = random.random
    """Gives numbers in [0, 1)."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {self.attempts}")
        if self.first < 0 or self.cap < 0:
            raise ValueError("pauses cannot be negative")

    def pause(self, failures: int, retry_after: float | None = None) -> float | None:
        """Return the seconds to wait after the `failures`-th failure, or None to give up.

        `retry_after` is the wait that the server asked for. It is honoured up to `cap`, because a
        server that asks for an hour is better reported than obeyed in silence.
        """
        if failures >= self.attempts:
            return None
        # The exponent is bounded: with thousands of attempts 2**n overflows a float.
        pause = self.draw() * min(self.cap, self.first * 2.0 ** min(failures - 1, 62))
        if retry_after is not None:
            pause = max(pause, min(retry_after, self.cap))
        return pause


def retry_after_seconds(value: str, now: float) -> float | None:
    """Read a Retry-After header (RFC 9110, section 10.2.3): seconds or an HTTP date.

    `now` is seconds since the epoch. A date that has passed is 0; what cannot be read is None.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    seconds = http_date_seconds(value)
    return None if seconds is None else max(0.0, seconds - now)


def http_date_seconds(value: str) -> float | None:
    """Read an HTTP date as seconds since the epoch; None when it is none."""
    # Only failures come here, and `email` takes longer to import than all of this package.
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
