"""Every target of the fuzzers, on its seeds and on what Hypothesis makes of them; `python -m tests.fuzz` goes on from there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.examples import examples
from tests.fuzz.mutation import changed_json, damaged
from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from random import Random

    from tests.fuzz.targets.target import Target

SEEDS = [
    pytest.param(target, seed, id=f"{target.name}-{number}")
    for target in TARGETS.values()
    for number, seed in enumerate(target.seeds)
]
SAY_JSON = [name for name, target in TARGETS.items() if target.says_json]
RANDOM = st.randoms(use_true_random=False)


@pytest.mark.parametrize(("target", "seed"), SEEDS)
def test_seeds_whole_cut_off_and_with_a_byte_missing(target: Target, seed: bytes) -> None:
    target.run(seed)
    for cut in range(0, len(seed), len(seed) // 20 + 1):
        target.run(seed[:cut])
        target.run(seed[:cut] + seed[cut + 1 :])


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=examples(100))
@given(data=st.data())
def test_any_bytes(name: str, data: st.DataObject) -> None:
    target = TARGETS[name]
    words = st.sampled_from(target.words) | st.binary(max_size=20)
    made = data.draw(st.binary(max_size=200) | st.lists(words, max_size=20).map(b"".join))
    target.run(made)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=examples(100))
@given(data=st.data(), random=RANDOM, times=st.integers(1, 3))
def test_damaged_bytes(name: str, data: st.DataObject, random: Random, times: int) -> None:
    target = TARGETS[name]
    made = data.draw(st.sampled_from(target.seeds))
    for _ in range(times):
        made = damaged(made, random)
    target.run(made)


@pytest.mark.parametrize("name", SAY_JSON)
@settings(max_examples=examples(300))
@given(data=st.data(), random=RANDOM)
def test_messages_that_say_something_else(name: str, data: st.DataObject, random: Random) -> None:
    target = TARGETS[name]
    good = data.draw(st.sampled_from([seed for seed in target.seeds if seed.startswith(b"{")]))
    try:
        message = changed_json(good, random)
    except (ValueError, RecursionError):
        return  # a seed that is not quite JSON, or deeper than Python's own reader goes
    target.run(message)
