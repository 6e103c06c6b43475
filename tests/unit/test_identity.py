from __future__ import annotations

import struct
from hashlib import sha256
from itertools import permutations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from iterum_sidecar.identity import OutputIdentity
from iterum_sidecar.ledger import Ledger
from iterum_sidecar.messages import is_fragment_id

Description = tuple[str, str, list[str], str | None, list[str], int]

# Few letters, so that lists that read alike without their lengths are drawn often.
TEXT = st.text(alphabet="ab\0é", max_size=3)
DESCRIPTIONS = st.tuples(
    TEXT,
    TEXT,
    st.lists(TEXT, max_size=3),
    st.none() | TEXT,
    st.lists(TEXT, max_size=3),
    st.integers(0, 3),
)


def derive(description: Description) -> str:
    pipeline, step, predecessors, channel, names, ordinal = description
    return OutputIdentity(pipeline, step).derive(predecessors, channel, names, ordinal)


def by_the_documented_layout(description: Description) -> str:
    pipeline, step, predecessors, channel, names, ordinal = description

    def text(value: str) -> bytes:
        return struct.pack(">Q", len(value.encode())) + value.encode()

    def texts(values: list[str]) -> bytes:
        return struct.pack(">Q", len(values)) + b"".join(text(value) for value in values)

    channels = [] if channel is None else [channel]
    content = text(pipeline) + text(step) + texts(predecessors) + texts(channels) + texts(names)
    return sha256(content + struct.pack(">Q", ordinal)).hexdigest()


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        (
            ("pipeline", "step", ["a" * 64, "b" * 64], "errors", ["é.jpg", "x/y"], 2),
            "855bbbe4a7ff925f5fe8291e4f6d24b69ad05169e27646a32dae79bcec16f183",
        ),
        (
            ("p", "s", ["a" * 64], None, ["x"], 0),
            "a6abbaf444f0a2fd5f4d451e7a2fe7d23d332ea64ac509e4777903f979ab9e46",
        ),
    ],
)
def test_ids_never_change_from_one_release_to_the_next(
    description: Description, expected: str
) -> None:
    assert derive(description) == expected


@given(description=DESCRIPTIONS)
def test_an_id_follows_the_documented_layout_and_is_an_id(description: Description) -> None:
    assert derive(description) == by_the_documented_layout(description)
    assert is_fragment_id(derive(description))


@given(one=DESCRIPTIONS, other=DESCRIPTIONS)
def test_no_two_descriptions_read_alike(one: Description, other: Description) -> None:
    assume(one != other)
    assert derive(one) != derive(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c", [], None, [], 0), ("a", "bc", [], None, [], 0)),
        (("p", "s", ["ab"], None, [], 0), ("p", "s", ["a", "b"], None, [], 0)),
        (("p", "s", ["a"], None, ["b"], 0), ("p", "s", ["a", "b"], None, [], 0)),
        (("p", "s", [], None, ["x"], 0), ("p", "s", [], "x", [], 0)),
        (("p", "s", [], "", [], 0), ("p", "s", [], None, [], 0)),
        (("p", "s", [], None, [], 0), ("p", "s", [], None, [], 1)),
    ],
)
def test_descriptions_that_are_nearly_alike_differ(one: Description, other: Description) -> None:
    assert derive(one) != derive(other)


def test_one_identity_serves_for_many_outputs() -> None:
    identity = OutputIdentity("p", "s")
    first = identity.derive(["a"], None, ["x"], 0)
    assert identity.derive(["b"], None, ["x"], 0) != first
    assert identity.derive(["a"], None, ["x"], 0) == first


def test_the_order_of_predecessors_and_names_and_repeated_predecessors_do_not_matter() -> None:
    predecessors, names = ["a" * 64, "b" * 64, "c" * 64], ["x", "y", "z"]
    ids = set()
    for some_predecessors, some_names in zip(
        permutations(predecessors), permutations(names), strict=True
    ):
        ledger: Ledger[int, None] = Ledger(OutputIdentity("p", "s"), attempts_allowed=3)
        repeated = [*some_predecessors, some_predecessors[0]]
        ids.add(ledger.take_result(repeated, "errors", some_names).output_id)
    assert ids == {by_the_documented_layout(("p", "s", predecessors, "errors", names, 0))}
