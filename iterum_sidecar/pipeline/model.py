"""A pipeline and what follows from it: its channels, who writes and who reads them, the order of its steps, their configuration.

Everything here is pure: no file is looked at and nothing is refused, so that the checks of a pipeline that is wrong can stand on it too
(`lint.py`). `reading.py` makes a `Pipeline` of a file.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct, field

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "COMBINER",
    "FRAGMENTER",
    "Circular",
    "Combiner",
    "Fragmenter",
    "Pipeline",
    "Step",
    "output_bucket",
    "queue_name",
    "step_name",
    "texts_of",
]

#: The names of the two ends of every pipeline among its steps; no step may bear one of them.
FRAGMENTER = "fragmenter"
COMBINER = "combiner"


class Circular(ValueError):
    """Steps wait for one another in a circle, so that they have no order; `steps` names them, each one before the one that it feeds."""

    def __init__(self, steps: list[str]) -> None:
        super().__init__("steps in a circle: " + " -> ".join([*steps, steps[0]]))
        self.steps = steps


def queue_name(pipeline_hash: str, channel: str) -> str:
    """Return the queue that a channel is (contract, section 9)."""
    return f"{pipeline_hash}-{channel}"


def step_name(pipeline_hash: str, step: str) -> str:
    """Return the full name of a step, of the fragmenter or of the combiner (contract, section 9): its `ITERUM_NAME`."""
    return f"{pipeline_hash}-{step}"


def output_bucket(pipeline_hash: str, step: str) -> str:
    """Return the bucket of a step's results (contract, section 9)."""
    return f"{step_name(pipeline_hash, step)}-output"


def texts_of(config: Mapping[str, Any], key: str) -> dict[str, str]:
    """Return the object of texts at `key` of a configuration, without what is no text; empty when there is none."""
    value = config.get(key)
    if not isinstance(value, dict):
        return {}
    return {name: text for name, text in value.items() if isinstance(text, str)}


class Fragmenter(Struct, frozen=True, kw_only=True):
    """What makes fragments of the input: an image for a deployment, a command for a local run, or neither."""

    output_channel: str
    image: str | None = None
    command: list[str] | None = None
    config: dict[str, Any] = field(default_factory=dict)


class Step(Struct, frozen=True, kw_only=True):
    """One transformation, and how many run side by side.

    `prefetch_count` is how many fragments an instance takes at once, 0 to 65,535; None leaves it to the sidecar. A change of `version`
    says that a step is another one although its command reads the same.
    """

    name: str
    input_channel: str
    output_channel: str
    image: str | None = None
    command: list[str] | None = None
    instance_count: int = 1
    prefetch_count: int | None = None
    version: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


class Combiner(Struct, frozen=True, kw_only=True):
    """The end of a pipeline: what comes through its channel is the result."""

    input_channel: str


class Pipeline(Struct, frozen=True, kw_only=True):
    """A pipeline file (contract, section 9).

    `source` is the file's name as problems tell it, and `unknown_keys` are the places of keys that it has and no one reads.
    """

    name: str
    fragmenter: Fragmenter
    steps: tuple[Step, ...]
    combiner: Combiner
    config: dict[str, Any] = field(default_factory=dict)
    input_dataset: str | None = None
    input_dataset_commit_hash: str | None = None
    source: str = "pipeline"
    unknown_keys: tuple[tuple[str | int, ...], ...] = ()

    # -- channels

    @property
    def channels(self) -> tuple[str, ...]:
        """Every channel that the fragmenter, a step or the combiner names as its own, once, in the order of the file."""
        named = [self.fragmenter.output_channel]
        for step in self.steps:
            named += [step.input_channel, step.output_channel]
        return tuple(dict.fromkeys([*named, self.combiner.input_channel]))

    def routes_of(self, step: Step) -> dict[str, str]:
        """Return the channel to which each output channel of a step leads: `queue_mapping`, as far as it names channels of this pipeline."""
        mapping = texts_of(self.merged_config(step), "queue_mapping")
        known = set(self.channels) if mapping else set()
        return {output: channel for output, channel in mapping.items() if channel in known}

    def written_by(self, step: Step) -> tuple[str, ...]:
        """Return the channels that a step may write, its plain output first, each once."""
        return tuple(dict.fromkeys([step.output_channel, *self.routes_of(step).values()]))

    def writers_of(self, channel: str) -> tuple[str, ...]:
        """Return the names of those that may write a channel: steps in the order of the file, `FRAGMENTER` before them."""
        first = [FRAGMENTER] if self.fragmenter.output_channel == channel else []
        steps = [step.name for step in self.steps if channel in self.written_by(step)]
        return tuple(first + steps)

    def readers_of(self, channel: str) -> tuple[str, ...]:
        """Return the names of those that read a channel: steps in the order of the file, `COMBINER` after them."""
        steps = [step.name for step in self.steps if step.input_channel == channel]
        last = [COMBINER] if self.combiner.input_channel == channel else []
        return tuple(steps + last)

    def consumer_of(self, channel: str) -> Step | Combiner | None:
        """Return who reads a channel: the first step that does, or the combiner; None when no one does."""
        for step in self.steps:
            if step.input_channel == channel:
                return step
        return self.combiner if self.combiner.input_channel == channel else None

    # -- order

    def step(self, name: str) -> Step:
        """Return the step of that name.

        Raises:
            KeyError: there is none.
        """
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)

    def upstream_steps(self, reader: Step | Combiner) -> tuple[str, ...]:
        """Return the names of the steps that may write what `reader` reads, in the order of the file."""
        channel = reader.input_channel
        return tuple(step.name for step in self.steps if channel in self.written_by(step))

    def follows_fragmenter(self, reader: Step | Combiner) -> bool:
        """Tell whether the fragmenter writes what `reader` reads."""
        return reader.input_channel == self.fragmenter.output_channel

    @property
    def in_order(self) -> tuple[Step, ...]:
        """The steps, each one after all that feed it; nothing else is promised of the order but that it is always the same.

        Raises:
            Circular: there is no such order.
        """
        try:
            numbers = tuple(TopologicalSorter(self._feeders()).static_order())
        except CycleError as error:
            raise Circular([self.steps[number].name for number in error.args[1][:-1]]) from None
        return tuple(self.steps[number] for number in numbers)

    def circles(self) -> Iterator[list[int]]:
        """Yield circles of steps as their places in `steps`, each one before the one that it feeds; no step is in two of them."""
        feeders = self._feeders()
        while True:
            try:
                TopologicalSorter(feeders).prepare()
            except CycleError as error:
                circle: list[int] = error.args[1][:-1]
                start = circle.index(min(circle))
                yield circle[start:] + circle[:start]
                feeders = _without(feeders, circle)
            else:
                return

    def reached(self) -> frozenset[int]:
        """Return the places in `steps` of those to which fragments of the fragmenter can come."""
        writes = [self.written_by(step) for step in self.steps]
        channels = {self.fragmenter.output_channel}
        found: set[int] = set()
        while more := {
            number
            for number, step in enumerate(self.steps)
            if number not in found and step.input_channel in channels
        }:
            found |= more
            channels |= {channel for number in more for channel in writes[number]}
        return frozenset(found)

    def _feeders(self) -> dict[int, list[int]]:
        """Who feeds whom, by places in `steps`: names may be wrong, places cannot."""
        writers: dict[str, list[int]] = {}
        for number, step in enumerate(self.steps):
            for channel in self.written_by(step):
                writers.setdefault(channel, []).append(number)
        return {
            number: writers.get(step.input_channel, []) for number, step in enumerate(self.steps)
        }

    # -- configuration

    def merged_config(self, part: Step | Fragmenter) -> dict[str, Any]:
        """Return the pipeline's configuration with that of a step, or of the fragmenter, laid over it.

        A key of the step replaces the pipeline's, whole; only `config_files` are joined, name by name, as Iterum's manager does it.
        """
        merged = {**self.config, **part.config}
        files = {
            **texts_of(self.config, "config_files"),
            **texts_of(part.config, "config_files"),
        }
        if files:
            merged["config_files"] = files
        return merged

    def iterum_config(self, part: Step | Fragmenter, pipeline_hash: str) -> str:
        """Return what the containers of a step, or of the fragmenter, get as `ITERUM_CONFIG` (contract, section 6): JSON.

        It is the merged configuration; a value of `queue_mapping` that is a channel of this pipeline has become that channel's queue.
        """
        config = self.merged_config(part)
        mapping = config.get("queue_mapping")
        if isinstance(mapping, dict):
            known = set(self.channels)
            config["queue_mapping"] = {
                output: queue_name(pipeline_hash, channel)
                if isinstance(channel, str) and channel in known
                else channel
                for output, channel in mapping.items()
            }
        return msgspec.json.encode(config).decode()


def _without(feeders: dict[int, list[int]], left_out: Iterable[int]) -> dict[int, list[int]]:
    gone = set(left_out)
    return {
        number: [feeder for feeder in of_it if feeder not in gone]
        for number, of_it in feeders.items()
        if number not in gone
    }
