"""The upstream watch, against a small HTTP server that says what a test tells it to."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from iterum_sidecar import upstream
from iterum_sidecar.exit_codes import ManagerForgot
from iterum_sidecar.upstream import (
    ASK_EVERY,
    FORGOTTEN_AFTER,
    ManagerWatch,
    NoManager,
    PretendedManager,
    watch_for,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from trio.testing import MockClock

FINISHED = (200, b'{"finished": true}')
NOT_YET = (200, b'{"finished": false}')
UNKNOWN = (404, b"")
FAULT = (409, b'{"message":"inner fault"}')


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Import the HTTP client in this thread: the clock jumps while another one works."""

    async def run_here(function: Callable[[], object]) -> object:
        await trio.lowlevel.checkpoint()
        return function()

    monkeypatch.setattr(trio.to_thread, "run_sync", run_here)


@dataclass
class Manager:
    """Answers each question with the next of its script; the last one serves for all that follow. None: hang up."""

    script: list[tuple[int, bytes] | None]
    port: int = 0
    questions: list[str] = field(default_factory=list)

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            received = b""
            while b"\r\n\r\n" not in received:
                data = await stream.receive_some()
                if not data:
                    return
                received += data
            self.questions.append(received.split(b"\r\n")[0].decode())
            answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            if answer is not None:
                status, body = answer
                head = f"HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
                await stream.send_all(head.encode() + body)

    def watch(self, *, idle: bool = True) -> ManagerWatch:
        return ManagerWatch(f"http://127.0.0.1:{self.port}", "hash", "edges", lambda: idle)


@asynccontextmanager
async def manager(*script: tuple[int, bytes] | None) -> AsyncIterator[Manager]:
    serving = Manager(list(script))
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(
            partial(trio.serve_tcp, serving.serve, 0, host="127.0.0.1")
        )
        serving.port = listener.socket.getsockname()[1]
        yield serving
        nursery.cancel_scope.cancel()


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The reasons that were told for a manager that does not tell."""
    return [
        record.__dict__["fields"]["reason"]
        for record in caplog.records
        if record.getMessage().startswith("the manager does not tell")
    ]


async def test_it_asks_once_a_second_at_the_managers_address_until_it_is_finished(
    autojump_clock: MockClock,
) -> None:
    async with manager(NOT_YET, NOT_YET, NOT_YET, FINISHED) as serving:
        before = trio.current_time()
        await serving.watch().wait_until_finished()
        assert trio.current_time() - before == pytest.approx(3 * ASK_EVERY)
    question = "GET /pipeline/hash/edges/upstream_finished HTTP/1.1"
    assert serving.questions == [question] * 4


@pytest.mark.parametrize(
    "want",
    [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        ImportError("ssl.so: cannot open shared object file: Too many open files"),
    ],
)
async def test_without_a_descriptor_to_ask_with_it_asks_when_there_is_one(
    want: Exception,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sound = upstream._import_httpx2

    def want_it() -> object:
        if trio.current_time() < 200:
            raise want
        return sound()

    monkeypatch.setattr(upstream, "_import_httpx2", want_it)
    async with manager(FINISHED) as serving:
        await serving.watch().wait_until_finished()
    assert len(serving.questions) == 1
    reasons = told(caplog)
    assert len(reasons) == 4, "once a minute"
    assert all("Too many open files" in reason for reason in reasons)


async def test_any_other_fault_of_the_import_is_one(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> object:
        raise ImportError("no such module")

    monkeypatch.setattr(upstream, "_import_httpx2", fail)
    with pytest.raises(ImportError, match="no such module"):
        await Manager([FINISHED]).watch().wait_until_finished()


async def test_names_cannot_change_the_question(autojump_clock: MockClock) -> None:
    async with manager(FINISHED) as serving:
        watch = ManagerWatch(f"http://127.0.0.1:{serving.port}/base", "a/b", "../c?d", lambda: True)
        await watch.wait_until_finished()
    assert serving.questions == ["GET /base/pipeline/a%2Fb/..%2Fc%3Fd/upstream_finished HTTP/1.1"]


GARBAGE = [
    b"",
    b"true",
    b"{}",
    b'{"finished": "true"}',
    b'{"finished": 1}',
    b'{"finished": null}',
    b"<html>",
    b'{"finished": true',
    b'{"\xff": 1}',
    b'{"finished": "\xff"}',
    b'{"finished": "\\ud800"}',
    b'{"deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
]


@pytest.mark.parametrize("body", GARBAGE)
async def test_garbage_is_no_answer_and_no_fault(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    async with manager((200, body), FINISHED) as serving:
        await serving.watch().wait_until_finished()
    assert len(serving.questions) == 2
    assert len(told(caplog)) == 1


@pytest.mark.parametrize("status", [500, 503, 400, 301, 204])
async def test_any_other_status_is_no_answer(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    async with manager((status, b""), FINISHED) as serving:
        await serving.watch().wait_until_finished()
    assert told(caplog) == [f"HTTP {status}"]


async def test_an_unknown_key_beside_the_answer_is_ignored(autojump_clock: MockClock) -> None:
    async with manager((200, b'{"more": [1], "finished": true}')) as serving:
        await serving.watch().wait_until_finished()
    assert len(serving.questions) == 1


async def test_a_manager_that_hangs_up_is_asked_again(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "iterum_sidecar")
    async with manager(None, None, FINISHED) as serving:
        await serving.watch().wait_until_finished()
    (reason,) = told(caplog)
    assert reason.startswith(f"127.0.0.1:{serving.port}: RemoteProtocolError: ")
    assert caplog.records[-1].getMessage() == "the manager answers again"


async def test_a_manager_that_cannot_be_reached_is_asked_for_ever_and_told_once_a_minute(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        watch = ManagerWatch(
            f"http://127.0.0.1:{unused.getsockname()[1]}", "hash", "edges", lambda: True
        )
        with trio.move_on_after(3.5 * 60) as scope:
            await watch.wait_until_finished()
    assert scope.cancelled_caught
    assert len(told(caplog)) == 4
    assert ": ConnectError: " in told(caplog)[0]


# -- a manager that has forgotten


@pytest.mark.parametrize("answer", [UNKNOWN, FAULT])
async def test_a_manager_that_knew_the_pipeline_has_forgotten_it_after_ten_minutes(
    autojump_clock: MockClock, answer: tuple[int, bytes]
) -> None:
    async with manager(NOT_YET, answer) as serving:
        before = trio.current_time()
        with pytest.raises(ManagerForgot, match=f"answered {answer[0]} for 600 s"):
            await serving.watch().wait_until_finished()
        elapsed = trio.current_time() - before
        assert FORGOTTEN_AFTER <= elapsed <= FORGOTTEN_AFTER + 3 * ASK_EVERY


async def asked_for(watch: ManagerWatch, seconds: float) -> bool:
    """Whether it was still asking after so many seconds."""
    with trio.move_on_after(seconds) as scope:
        await watch.wait_until_finished()
    return scope.cancelled_caught


async def test_a_manager_that_never_knew_the_pipeline_is_asked_for_ever(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with manager(UNKNOWN) as serving:
        assert await asked_for(serving.watch(), 1.5 * FORGOTTEN_AFTER)
    assert set(told(caplog)) == {"HTTP 404: it does not know this pipeline"}
    assert len(told(caplog)) == 15


async def test_nothing_is_given_up_while_something_is_in_flight(autojump_clock: MockClock) -> None:
    async with manager(NOT_YET, UNKNOWN) as serving:
        assert await asked_for(serving.watch(idle=False), 1.5 * FORGOTTEN_AFTER)


@pytest.mark.parametrize(("status", "body"), [NOT_YET, (500, b""), (200, b"garbage")])
async def test_the_ten_minutes_begin_again_after_any_other_answer(
    autojump_clock: MockClock, status: int, body: bytes
) -> None:
    watch = ManagerWatch("http://unused", "hash", "edges", lambda: True)
    assert not watch._is_finished(*NOT_YET)
    for answer in (UNKNOWN, FAULT):
        assert not watch._is_finished(*answer)
        await trio.sleep(FORGOTTEN_AFTER - 1)
        assert not watch._is_finished(*answer)
        assert not watch._is_finished(status, body)
        await trio.sleep(10)
    assert not watch._is_finished(*UNKNOWN)
    await trio.sleep(FORGOTTEN_AFTER)
    with pytest.raises(ManagerForgot):
        watch._is_finished(*UNKNOWN)


# -- the others


async def test_without_a_manager_nothing_is_ever_finished(autojump_clock: MockClock) -> None:
    watch = watch_for("", "hash", "edges", lambda: True)
    assert isinstance(watch, NoManager)
    with trio.move_on_after(1_000_000) as scope:
        await watch.wait_until_finished()
    assert scope.cancelled_caught


async def test_a_dummy_manager_is_finished_at_the_fifth_question(autojump_clock: MockClock) -> None:
    watch = watch_for("http://dummy-url", "hash", "edges", lambda: True)
    assert isinstance(watch, PretendedManager)
    before = trio.current_time()
    await watch.wait_until_finished()
    assert trio.current_time() - before == pytest.approx(5 * ASK_EVERY)


def test_any_other_url_is_asked() -> None:
    assert isinstance(watch_for("http://manager", "hash", "edges", lambda: True), ManagerWatch)
