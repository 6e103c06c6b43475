from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iterum_sidecar.stores import copying
from iterum_sidecar.stores.directory import DirectoryStore, decode_name, encode_name
from iterum_sidecar.stores.port import StoredObject, StoreRefused, StoreUnavailable
from tests.unit.stores.contract import (
    MEMORY,
    MIB,
    StoreContract,
    content_of,
    fetch,
    memory_file,
    put,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as path:
        yield Path(path)


@pytest.fixture
def bucket() -> str:
    return "bucket"


@pytest.fixture
async def store(root: Path, bucket: str) -> AsyncIterator[DirectoryStore]:
    async with DirectoryStore(root / "store") as store:
        await store.ensure_bucket(bucket)
        yield store


class TestDirectory(StoreContract):
    pass


@given(text)
def test_names_are_encoded_and_decoded(name: str) -> None:
    path = encode_name(name)
    assert decode_name(path) == name
    parts = path.split("/")
    assert all(part and part[0] != "." and len(part) <= 255 for part in parts)
    assert path.isascii()


@given(text, text)
def test_no_object_is_the_directory_of_another(one: str, other: str) -> None:
    for a, b in ((one, other), (one, one + other), (one * 100, one * 101)):
        if a != b:
            assert encode_name(a) != encode_name(b)
            assert not encode_name(b).startswith(f"{encode_name(a)}/")


@pytest.mark.parametrize(
    "key",
    [
        "..",
        ".",
        "/",
        "//",
        "../../x",
        "/leading",
        "a//b",
        "a/../b",
        "trailing/",
        "\0",
        "k" * 1024,
        "é" * 500,
    ],
)
async def test_names_that_would_lead_elsewhere(store: DirectoryStore, root: Path, key: str) -> None:
    await put(store, "bucket", key, b"content")
    assert await fetch(store, "bucket", key) == b"content"
    assert await store.list_objects("bucket") == [StoredObject(key, 7)]
    assert os.listdir(root) == ["store"]
    assert os.listdir(root / "store") == ["bucket"]


@pytest.mark.parametrize("name", ["..", "../up", "a/b", "x" * 201])
async def test_bucket_names(store: DirectoryStore, root: Path, name: str) -> None:
    if len(name) > 200:
        with pytest.raises(StoreRefused):
            await store.ensure_bucket(name)
    else:
        await store.ensure_bucket(name)
        await store.check_bucket(name)
    assert os.listdir(root) == ["store"]


async def test_what_the_step_does_to_its_file_later_does_not_reach_the_object(
    store: DirectoryStore,
) -> None:
    for content in (b"small", os.urandom(2 * MIB)):
        with memory_file(content) as file:
            await store.put("bucket", "object", file, len(content))
            os.pwrite(file, b"overwritten", 0)
        assert await fetch(store, "bucket", "object") == content


@pytest.mark.parametrize(
    "blocked",
    [(), ("_clone",), ("_clone", "_copy_file_range"), ("_clone", "_copy_file_range", "_sendfile")],
)
async def test_every_way_to_copy(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, blocked: tuple[str, ...]
) -> None:
    def cannot(*_arguments: object) -> int:
        raise OSError(errno.EXDEV, "not across file systems")

    for name in blocked:
        monkeypatch.setattr(copying, name, (lambda *_: False) if name == "_clone" else cannot)
    content = os.urandom(17 * MIB + 5)
    with memory_file(content + b"more") as file:
        await store.put("bucket", "object", file, len(content))
    assert await fetch(store, "bucket", "object") == content


async def test_a_symbolic_link_is_no_object(store: DirectoryStore, root: Path) -> None:
    (root / "secret").write_text("secret")
    (root / "store/bucket/link").symlink_to(root / "secret")
    with pytest.raises(StoreUnavailable), memory_file() as file:
        await store.fetch("bucket", "link", file)
    assert await store.list_objects("bucket") == []


async def test_a_failed_put_leaves_the_old_object_and_nothing_else(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(store, "bucket", "object", b"old")

    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(copying, "copy_contents", full)
    with pytest.raises(StoreUnavailable) as caught:
        await put(store, "bucket", "object", b"new")
    assert caught.value.code == "ENOSPC"
    monkeypatch.undo()
    assert await fetch(store, "bucket", "object") == b"old"
    assert os.listdir(root / "store/bucket") == ["object"]


async def test_an_unfinished_file_is_not_listed(store: DirectoryStore, root: Path) -> None:
    (root / "store/bucket/.incoming-1-0").write_text("half")
    assert await store.list_objects("bucket") == []


async def test_fetch_leaves_the_whole_object(store: DirectoryStore) -> None:
    await put(store, "bucket", "object", b"content")
    with memory_file() as file:
        assert await store.fetch("bucket", "object", file) == 7
        assert content_of(file) == b"content"


def test_repr(root: Path) -> None:
    assert repr(DirectoryStore(root)) == f"DirectoryStore({str(root)!r})"
