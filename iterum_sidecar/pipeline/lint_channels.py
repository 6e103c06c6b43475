"""How the parts of a pipeline hang together: what is written and never read, read and never written, or goes in a circle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iterum_sidecar.pipeline.model import COMBINER, FRAGMENTER, texts_of
from iterum_sidecar.pipeline.problems import did_you_mean, quoted, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from iterum_sidecar.pipeline.model import Pipeline
    from iterum_sidecar.pipeline.problems import Findings, KeyPath

__all__ = ["check_channels"]

#: Bytes. A queue's name may have 255 (a short string of AMQP 0-9-1); a run's hash and `-` come before the channel, `-dead-letter` after it.
LONGEST_CHANNEL = 200
#: The queue `<hash>-lineage` is taken (contract, section 3).
LINEAGE = "lineage"
#: What cannot be processed goes to the queue of this name behind that of the channel.
DEAD_LETTER = "-dead-letter"


def check_channels(pipeline: Pipeline, findings: Findings) -> None:
    """Add to `findings` everything that is wrong with the channels of a pipeline."""
    _check_names(pipeline, findings)
    _check_inputs(pipeline, findings)
    _check_outputs(pipeline, findings)
    _check_mapping(pipeline, findings)
    _check_circles(pipeline, findings)


def _inputs(pipeline: Pipeline) -> Iterator[tuple[KeyPath, str, str]]:
    """Yield the place, the owner and the name of every channel that is read."""
    for number, step in enumerate(pipeline.steps):
        yield ("steps", number, "input_channel"), _step(step.name), step.input_channel
    yield (COMBINER, "input_channel"), "the combiner", pipeline.combiner.input_channel


def _outputs(pipeline: Pipeline) -> Iterator[tuple[KeyPath, str, str]]:
    """Yield the place, the owner and the name of every channel that is written but by way of a `queue_mapping`."""
    yield (FRAGMENTER, "output_channel"), "the fragmenter", pipeline.fragmenter.output_channel
    for number, step in enumerate(pipeline.steps):
        yield ("steps", number, "output_channel"), _step(step.name), step.output_channel


def _step(name: str) -> str:
    return f"step {quoted(name)}"


def _check_names(pipeline: Pipeline, findings: Findings) -> None:
    places: dict[str, KeyPath] = {}
    for path, _, channel in (*_outputs(pipeline), *_inputs(pipeline)):
        places.setdefault(channel, path)
    for channel, path in places.items():
        size = len(channel.encode())
        if not channel:
            findings.error(path, "is empty, and a channel has a name", "give the channel a name")
        elif "/" in channel or "\0" in channel:
            message = f"{shown(channel)} has a / or a NUL in it, which no channel's name may"
            findings.error(path, message, "give the channel another name")
        elif size > LONGEST_CHANNEL:
            message = f"the channel's name has {size} bytes, and may have {LONGEST_CHANNEL}"
            findings.error(path, message, "give the channel a shorter name")
        elif channel == LINEAGE:
            message = f"{quoted(channel)} is the name of the queue that lineage goes to"
            findings.error(path, message, "give the channel another name")
        elif (of := channel.removesuffix(DEAD_LETTER)) != channel and of in places:
            message = f"{quoted(channel)} is where the dead letters of the channel {quoted(of)} go"
            findings.error(path, message, "give the channel another name")


def _check_inputs(pipeline: Pipeline, findings: Findings) -> None:
    readers: dict[str, str] = {}
    written = {channel for _, _, channel in _outputs(pipeline)}
    written.update(channel for step in pipeline.steps for channel in pipeline.written_by(step))
    for path, owner, channel in _inputs(pipeline):
        if channel not in written:
            findings.error(
                path,
                f"no one writes the channel {shown(channel)}, so {owner} would never get a fragment",
                f"{did_you_mean(channel, written)}make it an output_channel; written are {_listed(written)}",
            )
        if channel in readers:
            findings.error(
                path,
                f"{readers[channel]} reads the channel {shown(channel)} too, and each fragment would reach one of the two only",
                "give each a channel of its own; a step can write to several by queue_mapping",
            )
        readers.setdefault(channel, owner)


def _check_outputs(pipeline: Pipeline, findings: Findings) -> None:
    read = {channel for _, _, channel in _inputs(pipeline)}
    for path, owner, channel in _outputs(pipeline):
        if channel not in read:
            findings.error(
                path,
                f"no one reads the channel {shown(channel)}, so what {owner} makes would go nowhere",
                f"{did_you_mean(channel, read)}make it the input_channel of a step or of the combiner",
            )


def _check_mapping(pipeline: Pipeline, findings: Findings) -> None:
    """Hold every entry of a `queue_mapping` against the channels that are read; longer ones than a queue's name may be are none of them."""
    read = {channel for _, _, channel in _inputs(pipeline)}
    configs: list[tuple[KeyPath, dict[str, str]]] = [
        (("steps", number, "config"), texts_of(step.config, "queue_mapping"))
        for number, step in enumerate(pipeline.steps)
    ]
    configs.append((("config",), texts_of(pipeline.config, "queue_mapping")))
    for path, mapping in configs:
        for output, channel in mapping.items():
            if channel not in read:
                findings.error(
                    (*path, "queue_mapping", output),
                    f"{shown(channel)} is no channel that is read, so what goes to {quoted(output)} would be lost",
                    f"{did_you_mean(channel, read)}name the input_channel of a step or of the combiner: {_listed(read)}",
                )


def _check_circles(pipeline: Pipeline, findings: Findings) -> None:
    in_circles: set[int] = set()
    for circle in pipeline.circles():
        in_circles.update(circle)
        names = [quoted(pipeline.steps[number].name) for number in circle]
        shared = any(
            "queue_mapping" not in pipeline.steps[number].config for number in circle
        ) and bool(texts_of(pipeline.config, "queue_mapping"))
        hint = "; the pipeline's queue_mapping is every step's: move it to the steps that use it"
        findings.error(
            ("steps", circle[0], "input_channel"),
            f"steps go in a circle, and none of them could ever be finished: {' → '.join([*names, names[0]])}",
            "lead one of their outputs to a step outside the circle" + (hint if shared else ""),
        )
    reached = pipeline.reached()
    for number, step in enumerate(pipeline.steps):
        feeders = pipeline.upstream_steps(step)
        if number not in reached and number not in in_circles and feeders:
            findings.error(
                ("steps", number, "input_channel"),
                f"nothing that the fragmenter makes reaches {_step(step.name)}: {_listed(feeders)} before it gets nothing either",
                "mend the steps before it, or read a channel that the fragmenter's fragments come through",
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(shown(name) for name in sorted(names))
