from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.local.broker import JournalBroker
from iterum_sidecar.local.combiner import Combiner
from iterum_sidecar.local.journal import Journal
from iterum_sidecar.local.store import LocalStore
from iterum_sidecar.messages import RemoteFile, RemoteFragment, RemoteMetadata, encode_message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUEUE = "queue"


class Over:
    """An upstream that has finished already."""

    is_finished = True

    async def wait_until_finished(self) -> None:
        await trio.lowlevel.checkpoint()


class Bench:
    """A combiner over a journal and a store in a folder, and fragments to deliver."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        self.journal = journal
        self.output = folder / "output"
        self.output.mkdir(exist_ok=True)
        self.inputs = folder / "inputs"
        self.inputs.mkdir(exist_ok=True)
        self.failed: list[str] = []

    def seed(self, letter: str, contents: dict[str, bytes]) -> str:
        """Queue a fragment, whose ID is the letter 64 times, with these files."""
        fragment_id = letter * 64
        files = []
        for number, (name, content) in enumerate(contents.items()):
            key = f"{letter}{number}"
            (self.inputs / key).write_bytes(content)
            files.append(RemoteFile(name, key, "input"))
        body = encode_message(RemoteFragment(files, RemoteMetadata(fragment_id, [])))
        self.journal.add_first(fragment_id, "channel", body)
        return fragment_id

    async def deliver(self) -> Combiner:
        """Deliver all that waits."""

        def stamp(key: str) -> tuple[int, int]:
            found = (self.inputs / key).stat()
            return found.st_size, found.st_mtime_ns

        combiner = Combiner(
            broker=JournalBroker(self.journal, {QUEUE: "channel"}),
            journal=self.journal,
            store=LocalStore(
                objects=self.output / ".iterum" / "store",
                inputs=self.inputs,
                input_stamp=stamp,
                config_bucket="",
                config_folder=self.output,
            ),
            queue=QUEUE,
            output=self.output,
            incoming=self.output / ".iterum" / "incoming",
            failed=lambda _description, reason: self.failed.append(reason),
        )
        await combiner.run(Over())
        return combiner

    def results(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.output)): path.read_bytes()
            for path in sorted(self.output.rglob("*"))
            if path.is_file() and ".iterum" not in path.parts
        }


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Journal(tmp_path / "journal.sqlite") as journal:
        yield Bench(tmp_path, journal)


LARGE = b"x" * 8_000_000


@pytest.mark.parametrize("first", ["a", "a/b"])
@pytest.mark.parametrize("large", ["a", "a/b"])
async def test_a_file_and_a_folder_of_one_name_come_at_once_and_both_are_kept(
    bench: Bench, first: str, large: str
) -> None:
    second = "a/b" if first == "a" else "a"
    for letter, name in [("1", first), ("2", second)]:
        bench.seed(letter, {name: LARGE if name == large else b"small"})
    await bench.deliver()
    results = bench.results()
    assert {"a", "a/b"}.intersection(results)
    assert sorted(map(len, results.values())) == [len(b"small"), len(LARGE)]
