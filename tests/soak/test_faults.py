"""The plan of a soak."""

from __future__ import annotations

import itertools

from .faults import PODS, SPARED, Kind, finishing_at, plan_of

SECONDS = 180.0


def test_the_same_seed_gives_the_same_plan() -> None:
    assert plan_of(7, SECONDS) == plan_of(7, SECONDS)
    assert plan_of(7, SECONDS) != plan_of(8, SECONDS)


def test_three_minutes_have_every_kind_of_fault() -> None:
    for seed in range(50):
        assert {fault.kind for fault in plan_of(seed, SECONDS)} == set(Kind)


def test_faults_come_in_their_order_and_some_in_bursts() -> None:
    moments = [fault.at for fault in plan_of(7, SECONDS)]
    assert moments == sorted(moments)
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert max(gaps) <= 5 * 2  # one may be left out
    assert sum(gap < 0.4 for gap in gaps) >= 3


def test_one_sidecar_is_not_ended_for_most_of_the_time() -> None:
    for seed in range(20):
        for fault in plan_of(seed, SECONDS):
            if fault.kind.ends_a_sidecar and SPARED[0] <= fault.at / SECONDS <= SPARED[1]:
                assert fault.pod == PODS[1]


def test_the_broker_is_left_alone_when_upstream_is_finished() -> None:
    for seed in range(20):
        for fault in plan_of(seed, SECONDS):
            assert fault.kind.target != "node" or fault.at < finishing_at(SECONDS)
