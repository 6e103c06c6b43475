"""The stages that are measured alone, and who contends in each."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.stages.task import Meter, Task

__all__ = ["OURS", "STAGES", "Contender", "Stage", "stage_named"]

OURS = "ours"

Kind: TypeAlias = Literal["publish", "consume", "get", "put", "memory"]


@dataclasses.dataclass(frozen=True)
class Contender:
    """Who can do a stage: `function` of `module`, which is in this package.

    `requires` is the package that must be installed for it, by the name that it is imported by; empty where we need it ourselves.
    """

    name: str
    module: str
    function: str
    requires: str = ""

    @property
    def missing(self) -> str:
        """Why it cannot run here, or nothing."""
        if self.requires and importlib.util.find_spec(self.requires) is None:
            return f"{self.requires} is not installed (pip install -e '.[bench]')"
        return ""

    def load(self) -> Callable[[Task, Meter], None]:
        """Import it, and what it needs, and return what does a task."""
        module = importlib.import_module(f"benchmarks.stages.{self.module}")
        work: Callable[[Task, Meter], None] = getattr(module, self.function)
        return work


@dataclasses.dataclass(frozen=True)
class Stage:
    """Something that is done `count` times; `size` is that of an object in bytes, where there are objects.

    Ours comes first and the floor next, so that no time is between the two that are held against each other most.

    `kind` says what it is done on: a queue, a bucket and files, or in memory alone.
    """

    name: str
    kind: Kind
    contenders: tuple[Contender, ...]
    count: int
    size: int = 0

    def contender(self, name: str) -> Contender:
        """Return the contender of that name; KeyError when there is none."""
        return {each.name: each for each in self.contenders}[name]


def _queue_contenders(function: str) -> tuple[Contender, ...]:
    return (
        Contender(OURS, "amqp_ours", function),
        Contender("floor", "amqp_floor", function),
        Contender("pika", "amqp_pika", function, "pika"),
        Contender("aio-pika", "amqp_aio_pika", function, "aio_pika"),
    )


def _store_contenders(function: str) -> tuple[Contender, ...]:
    return (
        Contender(OURS, "s3_ours", function),
        Contender("floor", "s3_floor", function),
        Contender("obstore", "s3_obstore", function, "obstore"),
        Contender("minio", "s3_minio", function, "minio"),
        Contender("httpx2", "s3_httpx2", function),
        Contender("boto3", "s3_boto3", function, "boto3"),
    )


STAGES = (
    Stage("amqp-publish", "publish", _queue_contenders("publish"), 4000),
    Stage("amqp-consume", "consume", _queue_contenders("consume"), 4000),
    Stage("s3-get", "get", _store_contenders("get"), 800, 4 << 10),
    Stage("s3-put", "put", _store_contenders("put"), 800, 4 << 10),
    Stage("s3-get-large", "get", _store_contenders("get"), 32, 8 << 20),
    Stage("s3-put-large", "put", _store_contenders("put"), 32, 8 << 20),
    Stage(
        "framing",
        "memory",
        (Contender(OURS, "framing", "ours"), Contender("floor", "framing", "floor")),
        400_000,
    ),
    Stage(
        "messages",
        "memory",
        (
            Contender(OURS, "messages", "ours"),
            Contender("floor", "messages", "dicts"),
            Contender("pydantic", "messages_pydantic", "models", "pydantic"),
            Contender("orjson", "messages", "fast_dicts", "orjson"),
        ),
        60_000,
    ),
    Stage(
        "ledger",
        "memory",
        (Contender(OURS, "ledger", "ours"), Contender("floor", "ledger", "floor")),
        60_000,
    ),
)


def stage_named(name: str) -> Stage:
    """Return the stage of that name; KeyError when there is none."""
    return {stage.name: stage for stage in STAGES}[name]
