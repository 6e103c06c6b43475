from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from iterum_sidecar.local.failures import forget_failure, place_of, set_aside
from iterum_sidecar.local.store import INPUT_BUCKET, LocalStore
from iterum_sidecar.messages import RemoteFile, RemoteFragment, RemoteMetadata, encode_message

if TYPE_CHECKING:
    from pathlib import Path

    from iterum_sidecar.local.summary import Failure

ID = "ab" * 32


class Bench:
    """An input folder, and fragments of its files that fail."""

    def __init__(self, folder: Path) -> None:
        self.inputs = folder / "inputs"
        self.inputs.mkdir()
        self.failed = folder / "output" / "failed"
        self.log = folder / "step-1.log"

    async def fail(self, *names: str, reason: str = "no picture", fragment: str = ID) -> Failure:
        files = [RemoteFile(name, name, INPUT_BUCKET) for name in names]
        body = encode_message(RemoteFragment(files, RemoteMetadata(fragment, [])))

        def stamp(name: str) -> tuple[int, int] | None:
            path = self.inputs / name
            return (path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else None

        store = LocalStore(
            objects=self.inputs.parent / "store",
            inputs=self.inputs,
            input_stamp=stamp,
            config_bucket="",
            config_folder=self.inputs,
        )
        return await set_aside(self.failed, "step", body, reason, self.log, store)

    def place(self, fragment: str = ID) -> Path:
        return place_of(self.failed, "step", fragment)

    def reason(self) -> str:
        return (self.place() / "reason.txt").read_text(encoding="utf-8")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_files_reason_and_the_end_of_the_log_are_left_together(bench: Bench) -> None:
    (bench.inputs / "folder").mkdir()
    (bench.inputs / "folder" / "a").write_text("A")
    (bench.inputs / "b").write_text("B")
    bench.log.write_text("".join(f"line {number}.\n" for number in range(100)))
    failure = await bench.fail("folder/a", "b")
    place = bench.place()
    assert (place / "input" / "folder" / "a").read_text() == "A"
    assert (place / "input" / "b").read_text() == "B"
    described = json.loads((place / "fragment.json").read_text())
    assert described["metadata"]["fragment_id"] == ID
    assert bench.reason().startswith("step could not finish this fragment: no picture\n")
    assert bench.reason().endswith("line 98.\nline 99.\n")
    assert "line 1.\n" not in bench.reason()
    assert (failure.step, list(failure.files)) == ("step", ["folder/a", "b"])
    assert (failure.reason, failure.place) == ("no picture", str(place))


async def test_a_file_that_cannot_be_had_is_named_and_the_others_are_there(bench: Bench) -> None:
    (bench.inputs / "b").write_text("B")
    await bench.fail("gone", "b")
    assert [path.name for path in (bench.place() / "input").iterdir()] == ["b"]
    assert "gone is not here: " in bench.reason()


async def test_without_a_log_there_is_the_reason_alone(bench: Bench) -> None:
    (bench.inputs / "b").write_text("B")
    await bench.fail("b")
    assert bench.reason() == "step could not finish this fragment: no picture\n"


async def test_a_second_failure_takes_the_place_of_the_first(bench: Bench) -> None:
    for name in "ab":
        (bench.inputs / name).write_text(name)
    await bench.fail("a", reason="first")
    await bench.fail("b", reason="second \udcff")
    assert [path.name for path in (bench.place() / "input").iterdir()] == ["b"]
    assert "first" not in bench.reason()
    assert "second \\udcff" in bench.reason()


async def test_to_forget_the_last_failure_is_to_remove_the_folder_and_no_other_one(
    bench: Bench,
) -> None:
    (bench.inputs / "a").write_text("a")
    other = "cd" * 32
    await bench.fail("a")
    await bench.fail("a", fragment=other)
    forget_failure(bench.failed, ID)
    assert not bench.place().exists()
    assert bench.place(other).exists()
    forget_failure(bench.failed, "ef" * 32)
    assert bench.place(other).exists()
    forget_failure(bench.failed, other)
    assert not bench.failed.exists()
    forget_failure(bench.failed, other)


async def test_what_someone_has_put_beside_failures_stays(bench: Bench) -> None:
    (bench.inputs / "a").write_text("a")
    await bench.fail("a")
    (bench.failed / "notes.txt").write_text("mine")
    forget_failure(bench.failed, ID)
    assert [path.name for path in bench.failed.iterdir()] == ["notes.txt"]
