"""What became of every input of a soak, found in the queues and the store alone."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import re
from typing import TYPE_CHECKING, Final

import pika

from testbed.contents import get_object
from testbed.fragments import Message, RemoteFragment
from tests.wire.checks import reason_of

from .inputs import Nature, input_of
from .producer import channel_to

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from testbed.object_stores import ObjectStore
    from testbed.step import Step

    from .inputs import Input

__all__ = ["Account", "Found", "account_of", "messages_of"]

OUTPUT_ID: Final = re.compile("[0-9a-f]{64}")


@dataclasses.dataclass
class Found:
    """What the queues held for one input."""

    outputs: set[str] = dataclasses.field(default_factory=set)
    """The IDs of its outputs that are right."""
    dead: list[str] = dataclasses.field(default_factory=list)
    """The reasons of its dead letters."""


@dataclasses.dataclass
class Account:
    """The whole of it."""

    inputs: collections.Counter[Nature] = dataclasses.field(default_factory=collections.Counter)
    outputs: int = 0
    """Different ones."""
    repeats: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Messages that came again word by word, by where; at least once is what is promised."""
    lost: list[str] = dataclasses.field(default_factory=list)
    """Inputs of which neither a right output, its lineage told, nor a dead letter was found."""
    second: list[str] = dataclasses.field(default_factory=list)
    """Inputs that came out under more than one ID."""
    innocent: list[str] = dataclasses.field(default_factory=list)
    """Good inputs among the dead letters."""
    wrong: list[str] = dataclasses.field(default_factory=list)
    """What is in the queues or the store and should not be."""

    @property
    def is_right(self) -> bool:
        """Whether all is as promised."""
        return not (self.lost or self.second or self.innocent or self.wrong)


def account_of(
    seed: int,
    made: int,
    step: Step,
    store: ObjectStore,
    *,
    outputs: Iterable[Message],
    lineage: Iterable[Message],
    dead_letters: Iterable[Message],
) -> Account:
    """Look at everything that came of the first `made` inputs of a seed; each message is looked at once, as it comes."""
    account = Account()
    told = _lineage_of(account, step, lineage)
    found: dict[int, Found] = collections.defaultdict(Found)
    numbers = {_id_of(seed, number, step): number for number in range(made)}
    described = _look_at_outputs(account, seed, step, store, outputs, numbers, found)
    account.wrong += [
        f"lineage of an output that is not there: {each}" for each in told - described
    ]
    _look_at_dead_letters(account, seed, step, dead_letters, numbers, found)
    untold = {each.split()[0] for each in described - told}
    for number in range(made):
        _judge(account, input_of(seed, number, step.input_bucket), found[number], untold)
    return account


def _id_of(seed: int, number: int, step: Step) -> str:
    return input_of(seed, number, step.input_bucket).fragment.fragment_id


def _lineage_of(account: Account, step: Step, lineage: Iterable[Message]) -> set[str]:
    """Return the IDs that lineage was told of, each with a digest of its description."""
    told: set[str] = set()
    for message in lineage:
        said = json.loads(message.body)
        if said.get("transformation_step") != step.name:
            account.wrong.append(f"lineage of another step: {message.body[:200]!r}")
            continue
        _note(account, "lineage", told, _digest(said["description"]))
    return told


def _digest(description: dict[str, object]) -> str:
    metadata = description["metadata"]
    assert isinstance(metadata, dict)
    text = json.dumps(description, sort_keys=True)
    return f"{metadata['fragment_id']} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _note(account: Account, where: str, known: set[str], key: str) -> bool:
    """Note a message; tell whether it is new."""
    if key in known:
        account.repeats[where] += 1
        return False
    known.add(key)
    return True


def _look_at_outputs(
    account: Account,
    seed: int,
    step: Step,
    store: ObjectStore,
    outputs: Iterable[Message],
    numbers: dict[str, int],
    found: dict[int, Found],
) -> set[str]:
    described: set[str] = set()
    for message in outputs:
        output = RemoteFragment.of_body(message.body)
        if not _note(account, "outputs", described, _digest(json.loads(message.body))):
            continue
        account.outputs += 1
        number = numbers.get(output.predecessors[0]) if len(output.predecessors) == 1 else None
        if number is None:
            account.wrong.append(f"an output of nothing that was put in: {message.body[:300]!r}")
            continue
        origin = input_of(seed, number, step.input_bucket)
        if why := _why_wrong(origin, output, step, store):
            account.wrong.append(f"output {output.fragment_id} of input {number}: {why}")
        else:
            found[number].outputs.add(output.fragment_id)
    return described


def _why_wrong(origin: Input, output: RemoteFragment, step: Step, store: ObjectStore) -> str:
    """Say what is wrong with an output; nothing where all is right."""
    if origin.nature is not Nature.GOOD:
        return f"it should be a dead letter ({origin.nature.value})"
    if not OUTPUT_ID.fullmatch(output.fragment_id):
        return "it has no ID of ours"
    names = [file.name for file in origin.fragment.files]
    if [file.name for file in output.files] != names:
        return f"its files are {[file.name for file in output.files]}, and should be {names}"
    for position, file in enumerate(output.files):
        if (file.bucket, file.path) != (
            step.output_bucket,
            f"iterum_data/{output.fragment_id}/{file.name}",
        ):
            return f"it is at {file.bucket}/{file.path}"
        try:
            stored = get_object(store, file.bucket, file.path)
        except OSError as error:
            return f"its object is not there: {error}"
        if stored != origin.content(position)[::-1]:
            return f"{file.path} has other content, {len(stored)} bytes of {origin.sizes[position]}"
    return ""


def _look_at_dead_letters(
    account: Account,
    seed: int,
    step: Step,
    dead_letters: Iterable[Message],
    numbers: dict[str, int],
    found: dict[int, Found],
) -> None:
    """Note whose dead letters there are: the message as it came, byte for byte."""
    for message in dead_letters:
        # Those that are no fragments have the ID that they should have somewhere.
        named = re.findall("[0-9a-f]{64}", message.body.decode(errors="replace"))
        number = next((numbers[each] for each in named if each in numbers), None)
        if number is None or message.body != input_of(seed, number, step.input_bucket).body:
            account.wrong.append(f"a dead letter that was never put in: {message.body[:300]!r}")
            continue
        reason = reason_of(message)
        if not reason:
            account.wrong.append(f"a dead letter without a reason: {message.body[:300]!r}")
        account.repeats["dead letters"] += bool(found[number].dead)
        found[number].dead.append(reason)


def _judge(account: Account, origin: Input, found: Found, untold: set[str]) -> None:
    """Enter what became of one input."""
    account.inputs[origin.nature] += 1
    name = f"input {origin.number} ({origin.nature.value}), {origin.fragment.fragment_id}"
    if origin.nature is not Nature.GOOD:
        if not found.dead:
            account.lost.append(f"{name}: no dead letter")
        return
    if found.dead:
        account.innocent.append(f"{name}: {found.dead[0]}")
    if len(found.outputs) > 1:
        account.second.append(f"{name}: {sorted(found.outputs)}")
    if not found.outputs and not found.dead:
        account.lost.append(f"{name}: no output that is right")
    account.lost += [f"{name}: no lineage of {each}" for each in found.outputs & untold]


@contextlib.contextmanager
def messages_of(url: str, queue: str) -> Iterator[Iterator[Message]]:
    """Give the messages of a queue one by one, taking each."""
    with channel_to(url) as channel:

        def take() -> Iterator[Message]:
            with contextlib.suppress(
                pika.exceptions.ChannelClosedByBroker
            ):  # there is no such queue
                while True:
                    method, properties, body = channel.basic_get(queue, auto_ack=True)
                    if method is None:
                        return
                    yield Message(
                        body,
                        properties.headers or {},
                        properties.content_type,
                        properties.delivery_mode,
                    )

        yield take()
