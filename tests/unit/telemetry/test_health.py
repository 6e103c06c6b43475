"""Health: what is missing, when a sidecar is ready, and the word for it."""

from __future__ import annotations

import pytest

from iterum_sidecar.telemetry.health import Health, State


def health(**other: bool) -> Health:
    there = dict.fromkeys(("listening", "broker", "store", "transformation"), True)
    return Health(**{**there, "draining": False, **other})


def test_a_sidecar_is_ready_when_everything_is_there() -> None:
    assert health().ready
    assert health().missing == ()
    assert health().state == State("ready")


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("listening", "the sockets"),
        ("broker", "the broker"),
        ("store", "the store"),
        ("transformation", "the transformation"),
    ],
)
def test_it_is_not_ready_without_one_of_them_and_names_it(part: str, name: str) -> None:
    without = health(**{part: False})
    assert not without.ready
    assert without.missing == (name,)


def test_the_state_names_what_is_waited_for() -> None:
    assert health(broker=False, transformation=False).state == State(
        "waiting", "the broker, the transformation"
    )


def test_before_the_sockets_listen_it_is_starting() -> None:
    assert health(listening=False, broker=False).state == State("starting")


def test_a_drain_is_not_ready_whatever_is_there() -> None:
    assert not health(draining=True).ready
    assert health(draining=True, transformation=False).state == State("draining")
