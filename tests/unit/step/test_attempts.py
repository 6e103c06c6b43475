"""When a connection is tried again, and when no more."""

from __future__ import annotations

import errno
import os

import pytest

from iterum_sidecar.step.attempts import FIRST_LIMIT, RETURN_LIMIT, Attempts, GivenUp


def refusal(number: int) -> OSError:
    return OSError(number, os.strerror(number))


ABSENT = refusal(errno.ENOENT)


def wait_out(attempts: Attempts, now: float) -> tuple[float, list[float]]:
    """Let every attempt be refused until it is given up; return when that was, and the delays."""
    delays = []

    def try_on() -> None:
        nonlocal now
        while True:
            delays.append(attempts.refused("/v/in.sock", ABSENT, now))
            now += delays[-1]

    with pytest.raises(GivenUp, match=r"no sidecar answered at /v/in\.sock .*: No such file"):
        try_on()
    return now, delays


def test_the_first_sidecar_is_waited_for_a_quarter_of_an_hour(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given_up_at, delays = wait_out(Attempts(100.0), 100.0)
    assert FIRST_LIMIT == 900
    assert 1000 <= given_up_at < 1000.5
    assert (delays[0], max(delays)) == (0.01, 0.25)
    told = capsys.readouterr().err
    assert told == "waiting for the sidecar at /v/in.sock: No such file or directory\n"


def test_a_sidecar_that_was_there_is_waited_for_a_minute() -> None:
    attempts = Attempts(0.0)
    attempts.connected(1.0)
    assert attempts.lost(500.0, heard=True) == 0.05
    given_up_at, delays = wait_out(attempts, 500.05)
    assert 500 + RETURN_LIMIT <= given_up_at < 500 + RETURN_LIMIT + 1
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert max(delays) == 1.0


def test_a_connection_that_was_heard_begins_the_minute_anew() -> None:
    attempts = Attempts(0.0)
    for now in (10.0, 80.0, 150.0):
        attempts.connected(now - 1)
        assert attempts.lost(now, heard=True) == 0.05


def test_connections_that_are_closed_without_a_word_are_given_up_after_a_minute() -> None:
    attempts = Attempts(0.0)
    now = 0.0
    while now < 60:
        attempts.connected(now)
        now += attempts.lost(now, heard=False)
    attempts.connected(now)
    with pytest.raises(GivenUp, match="has closed every connection for 60 s"):
        attempts.lost(now, heard=False)


def test_a_long_silent_connection_was_a_good_one() -> None:
    attempts = Attempts(0.0)
    attempts.connected(0.0)
    attempts.lost(1.0, heard=False)
    attempts.connected(2.0)
    assert attempts.lost(5000.0, heard=False) == 0.05


@pytest.mark.parametrize("error", [OSError("AF_UNIX path too long"), refusal(errno.ENOTDIR)])
def test_what_will_never_be_is_given_up_at_once(error: OSError) -> None:
    with pytest.raises(GivenUp, match=r"cannot connect to the sidecar's socket /v/in\.sock: "):
        Attempts(0.0).refused("/v/in.sock", error, 0.0)
