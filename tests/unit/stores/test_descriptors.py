"""A process that has no descriptor free for a socket: the store is not to blame, and is not called so."""

from __future__ import annotations

import errno
import os
import resource
import socket
from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar.local.store import INPUT_BUCKET, LocalStore
from iterum_sidecar.shortages import is_shortage, shortage_in
from iterum_sidecar.stores.pool import Pool
from iterum_sidecar.stores.port import StoreUnavailable
from iterum_sidecar.stores.retries import RetryPolicy
from iterum_sidecar.stores.s3 import S3Store
from tests.unit.stores.contract import fetch, put
from tests.unit.stores.scripted import LOCAL, answer, scripted

if TYPE_CHECKING:
    from pathlib import Path

BODY = b"the object's bytes"


def refuse_sockets(monkeypatch: pytest.MonkeyPatch, number: int, times: int) -> None:
    sound = trio.socket.socket
    left = [times]

    def refuse(*arguments: int) -> trio.socket.SocketType:
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return sound(*arguments)

    monkeypatch.setattr("trio._highlevel_open_tcp_stream.socket", refuse)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
async def test_what_was_short_is_told_by_its_name(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = RetryPolicy(attempts=2, first=0.0, cap=0.0)
    async with scripted(answer(200, BODY)) as server:
        refuse_sockets(monkeypatch, number, times=2)
        async with S3Store(LOCAL, server.port, "access", "secret", retries=policy) as store:
            with pytest.raises(StoreUnavailable, match=os.strerror(number)) as caught:
                await fetch(store, "bucket", "key")
            short = shortage_in(caught.value)
            assert short is not None
            assert short.errno == number
            assert is_shortage(short)
            assert await fetch(store, "bucket", "key") == BODY


async def test_a_store_that_is_away_is_no_shortage_of_ours() -> None:
    with socket.socket() as taken:
        taken.bind((LOCAL, 0))
        port = taken.getsockname()[1]
        policy = RetryPolicy(attempts=1)
        async with S3Store(LOCAL, port, "access", "secret", retries=policy) as store:
            with pytest.raises(StoreUnavailable) as caught:
                await fetch(store, "bucket", "key")
    assert shortage_in(caught.value) is None


@pytest.mark.parametrize("bucket", ["results", INPUT_BUCKET])
async def test_a_directory_says_it_in_the_same_way(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_bytes(BODY)
    store = LocalStore(
        objects=tmp_path,
        inputs=tmp_path,
        input_stamp=lambda _: None,
        config_bucket="config",
        config_folder=tmp_path,
    )
    await store.ensure_bucket("results")
    await put(store, "results", "key", BODY)
    sound = os.open

    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        if str(path).startswith(str(tmp_path)):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return sound(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreUnavailable) as caught:
        await fetch(store, bucket, "key")
    assert shortage_in(caught.value) is not None


@pytest.mark.parametrize(
    ("allowed", "size"), [(64, 16), (2, 1), (4096, 32), (resource.RLIM_INFINITY, 32)]
)
async def test_a_pool_leaves_descriptors_for_the_others(
    allowed: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (allowed, allowed))
    assert Pool(LOCAL, 1)._places.max_value == size
