"""What is fuzzed: each target reads what a stranger may have sent, and says what may come of it.

A target is a function of bytes that returns when all is well and raises AssertionError, or whatever the code under test
should not have raised, when it is not. Hypothesis calls them in the suite (`test_targets.py`), Atheris from the command
line (`python -m tests.fuzz`); both begin with the seeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz.targets import broker, queues, sockets, stores

if TYPE_CHECKING:
    from tests.fuzz.targets.target import Target

__all__ = ["TARGETS"]

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (*sockets.TARGETS, *queues.TARGETS, *broker.TARGETS, *stores.TARGETS)
}
