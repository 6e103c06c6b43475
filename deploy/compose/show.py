"""Wait until every step is finished, take what came to the last queue, and show what came of what, as the combiner does."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import trio
from peers import COMBINER, LINEAGE, PIPELINE, RESULTS, look_at, open_broker, open_store, steps

from iterum_sidecar.amqp import ChannelClosed
from iterum_sidecar.messages import RemoteFragment, decode_remote_fragment
from iterum_sidecar.telemetry.logs import configure
from iterum_sidecar.upstream import ManagerWatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from iterum_sidecar.brokers.amqp import AmqpBroker
    from iterum_sidecar.stores.s3 import S3Store

FOLDER = Path("/results")
#: Messages that may be with us and unacknowledged.
PREFETCH = 32
#: Seconds between two looks at how many results there are.
LOOK_EVERY = 2.0
#: Rows of the table that are printed.
MOST_ROWS = 24


class Told(msgspec.Struct):
    """A lineage message: which step made a fragment."""

    transformation_step: str
    description: RemoteFragment


class Row(NamedTuple):
    """A file that came, the fragment that it came of, and the steps on its way, in their order."""

    name: str
    size: int
    fragment: str
    steps: str


async def main() -> None:
    """Show everything; end with 1 when fragments have become dead letters."""
    lineage: dict[str, Told] = {}
    rows: list[Row] = []

    async def learn(body: bytes) -> None:
        told = msgspec.json.decode(body, type=Told)
        lineage[told.description.metadata.fragment_id] = told

    async with open_broker("show", [RESULTS, LINEAGE]) as broker, open_store() as store:

        async def keep(body: bytes) -> None:
            fragment = decode_remote_fragment(body)
            rows.extend(await download(store, fragment, trace(fragment, lineage)))

        await wait_until_all_is_done(broker)
        await take_all(broker, LINEAGE, learn)
        await take_all(broker, RESULTS, keep)
        dead = {step.name: await dead_letters(broker, step.input_queue) for step in steps()}
    print(table(sorted(rows)))
    sources = {row.fragment for row in rows}
    print(f"\n{len(sources)} fragments became {len(rows)} files, in {os.environ['RESULTS_FOLDER']}")
    if not rows and not sum(dead.values()):
        print("Files are put in once, and shown once: to see them again, begin with `down -v`")
    if sum(dead.values()):
        named = ", ".join(f"{count} of {step}" for step, count in dead.items() if count)
        raise SystemExit(f"Dead letters: {named}. docs/compose.md tells how to look at them")


async def wait_until_all_is_done(broker: AmqpBroker) -> None:
    """Return when the manager says that nothing more comes, and tell meanwhile how much has come."""

    async def tell() -> None:
        last = -1
        while True:
            count = (await look_at(broker, RESULTS)).messages
            if count != last:
                print(f"{count} results so far", flush=True)
            last = count
            await trio.sleep(LOOK_EVERY)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell)
        manager = ManagerWatch(os.environ["MANAGER_URL"], PIPELINE, COMBINER, lambda: False)
        await manager.wait_until_finished()
        nursery.cancel_scope.cancel("all is done")


async def take_all(broker: AmqpBroker, queue: str, use: Callable[[bytes], Awaitable[None]]) -> None:
    """Acknowledge each message that a queue holds now, when `use` has returned for it."""
    count = (await look_at(broker, queue)).messages
    async with (
        broker.connection.open_channel() as channel,
        channel.consume(queue, prefetch=PREFETCH) as consumer,
    ):
        for _ in range(count):
            delivery = await anext(consumer)
            await use(delivery.body)
            channel.acknowledge(delivery)


async def dead_letters(broker: AmqpBroker, input_queue: str) -> int:
    """Return how many dead letters a step has; their queue is made when the first one comes."""
    try:
        return (await look_at(broker, f"{input_queue}-dead-letter")).messages
    except ChannelClosed:
        return 0


async def download(store: S3Store, fragment: RemoteFragment, origin: tuple[str, str]) -> list[Row]:
    """Write the files of a result into the folder, and return their rows."""
    rows = []
    for file in fragment.files:
        path = FOLDER / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as target:
            size = await store.fetch(file.bucket, file.path, target.fileno())
        rows.append(Row(file.name, size, *origin))
    return rows


def trace(fragment: RemoteFragment, lineage: dict[str, Told]) -> tuple[str, str]:
    """Return the first fragment that a result came of, and the steps between; of a gathered one its first way."""
    metadata = fragment.metadata
    passed: list[str] = []
    while told := lineage.get(metadata.fragment_id):
        passed.append(told.transformation_step.removeprefix(f"{PIPELINE}-"))
        first = (told.description.metadata.predecessors or [""])[0]
        if first not in lineage:
            return first, ", ".join(reversed(passed))
        metadata = lineage[first].description.metadata
    return "?", "?"


def table(rows: Sequence[Row]) -> str:
    """Return the rows under a heading, those beyond the first few only counted."""
    lines = [
        (row.name, f"{row.size:,}", f"{row.fragment[:20]}…", row.steps) for row in rows[:MOST_ROWS]
    ]
    lines.insert(0, ("result", "bytes", "of fragment", "by"))
    name, size, fragment, _ = (max(map(len, column)) for column in zip(*lines, strict=True))
    printed = [
        f"{line[0]:{name}}  {line[1]:>{size}}  {line[2]:{fragment}}  {line[3]}" for line in lines
    ]
    if len(rows) > MOST_ROWS:
        printed.append(f"… and {len(rows) - MOST_ROWS} more")
    return "\n".join(printed)


if __name__ == "__main__":
    configure("warning", "text")
    with suppress(KeyboardInterrupt):
        trio.run(main)
