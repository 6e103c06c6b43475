"""Every contender of every stage still does its work, and a stage notices when that is not done."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import pytest

from benchmarks.bench import Bench
from benchmarks.stages.catalogue import STAGES, Contender, Stage
from benchmarks.stages.measuring import prepare, run_once

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed.rabbitmq import RabbitMQ

OUTSIDE = [stage for stage in STAGES if stage.kind != "memory"]
COUNT = 4


@pytest.fixture(scope="module")
def bench(session_directory: Path, rabbitmq: RabbitMQ) -> Iterator[Bench]:
    directory = session_directory / "bench"
    directory.mkdir()
    with contextlib.ExitStack() as stack:
        bench = Bench(directory, stack)
        bench.broker = rabbitmq
        yield bench


@pytest.mark.parametrize(
    ("stage", "contender"),
    [(stage, contender) for stage in OUTSIDE for contender in stage.contenders],
    ids=lambda each: each.name,
)
def test_a_contender_does_its_work(bench: Bench, stage: Stage, contender: Contender) -> None:
    figures, faults = run_once(bench, dataclasses.replace(stage, count=COUNT), contender)
    assert faults == ()
    assert figures.operations == COUNT


@pytest.mark.parametrize("stage", OUTSIDE, ids=lambda stage: stage.name)
def test_work_that_is_not_done_is_noticed(bench: Bench, stage: Stage) -> None:
    stage = dataclasses.replace(stage, count=COUNT)
    with prepare(bench, stage, stage.contenders[0]) as (_task, faults):
        assert faults()
