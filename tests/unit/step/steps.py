"""The steps that the tests run: `python steps.py NAME [BACKEND]`, as a user's own program would be."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Literal, cast

import anyio
import anyio.lowlevel

from iterum_sidecar.step import Batch, Fragment, Result, config, config_file, transform

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@transform
def upper(fragment: Fragment) -> None:
    for file in fragment.files:
        with fragment.create(f"out-{file.name}") as path:
            path.write_bytes(file.path.read_bytes().upper())


@transform
def lines(fragment: Fragment) -> Iterator[Result]:
    (file,) = fragment.files
    for number, word in enumerate(file.path.read_text().split()):
        path = fragment.new_path(f"{number}-{file.name}")
        path.write_text(word)
        yield fragment.result(path)


@transform
async def awaited(fragment: Fragment) -> Result:
    (file,) = fragment.files
    path = fragment.new_path(f"out-{file.name}")
    path.write_bytes(await anyio.Path(file.path).read_bytes())
    return fragment.result(path)


@transform
async def streamed(fragment: Fragment) -> AsyncIterator[Path]:
    for file in fragment.files:
        for kind in ("a", "b"):
            await anyio.lowlevel.checkpoint()
            path = fragment.new_path(f"{kind}-{file.name}")
            path.write_bytes(file.path.read_bytes())
            yield path


_three = threading.Barrier(3)


@transform(concurrency=3)
def three_threads(fragment: Fragment) -> None:
    """Goes on only when three fragments are in work at once."""
    _three.wait(timeout=30)
    with fragment.create(f"out-{fragment.files[0].name}") as path:
        path.write_text(fragment.id)


_waiting: list[str] = []


@transform(concurrency=3)
async def three_tasks(fragment: Fragment) -> None:
    _waiting.append(fragment.id)
    with anyio.fail_after(30):
        while len(_waiting) < 3:  # noqa: ASYNC110 - an event of AnyIO is made within its event loop
            await anyio.sleep(0.005)
    with fragment.create(f"out-{fragment.files[0].name}") as path:
        path.write_text(fragment.id)


@transform(gather=3)
def sheet(batch: Batch) -> None:
    with batch.create(f"sheet-{min(file.name for file in batch.files)}") as path:
        path.write_text(" ".join(sorted(file.path.read_text() for file in batch.files)))


@transform(gather="all")
async def everything(batch: Batch) -> None:
    with batch.create("everything.txt") as path:
        path.write_text(str(len(batch)))


@transform
def routed(fragment: Fragment) -> Result:
    (file,) = fragment.files
    odd = int(file.path.read_text().split()[-1]) % 2
    return fragment.result(file, channel="odd" if odd else None)


@transform
def annotated(fragment: Fragment) -> Iterator[Result]:
    (file,) = fragment.files
    yield fragment.result(file, name="inherited")
    yield fragment.result(file, name="own", custom={**fragment.custom, "step": "annotated"})
    yield fragment.result(file, name="none", custom={})


@transform
def fails_on_1(fragment: Fragment) -> None:
    (file,) = fragment.files
    with fragment.create(f"out-{file.name}") as path:
        path.write_bytes(file.path.read_bytes())
    if file.name == "1.txt":
        raise RuntimeError("no edges here")


@transform
async def fails_on_1_async(fragment: Fragment) -> None:
    fails_on_1(fragment)


@transform(gather=2)
def fails_on_batch(batch: Batch) -> None:
    raise RuntimeError(f"{len(batch)} fragments")


def _begin(fragment: Fragment) -> Path:
    """Tell the test, and return the file that it makes when the function may go on."""
    print(f"begun {fragment.files[0].name}", file=sys.stderr, flush=True)
    return fragment.files[0].path.with_name("go")


@transform
def gated(fragment: Fragment) -> None:
    with fragment.create("gated") as path:
        path.touch()
        gate = _begin(fragment)
        while not gate.exists():
            time.sleep(0.005)


@transform
async def gated_async(fragment: Fragment) -> None:
    with fragment.create("gated") as path:
        path.touch()
        gate = _begin(fragment)
        while not gate.exists():  # noqa: ASYNC110 - a file has no event
            await anyio.sleep(0.005)


@transform
def leaves(fragment: Fragment) -> None:
    raise SystemExit(7)


@transform
async def leaves_async(fragment: Fragment) -> None:
    raise SystemExit(7)


@transform(concurrency=2)
def leaves_a_thread(fragment: Fragment) -> None:
    raise SystemExit(7)


@transform
def configured(fragment: Fragment) -> None:
    with fragment.create("configured.txt") as path:
        path.write_text(f"{config()['threshold']} {config_file('words').read_text()}")


if __name__ == "__main__":
    step = globals()[sys.argv[1]]
    backend = cast('Literal["asyncio", "trio"]', (sys.argv[2:] or ["asyncio"])[0])
    step.run(backend=backend)
