from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from iterum_sidecar.stores import pool as pool_module
from iterum_sidecar.stores.http1 import Request
from iterum_sidecar.stores.pool import Pool
from iterum_sidecar.stores.transport import ConnectFailed, ConnectionLost, Deadlines, StepTimeout
from tests.unit.stores.scripted import LOCAL, Act, answer, scripted

GET = Request(b"GET /bucket/key HTTP/1.1\r\nhost: here\r\n\r\n")


async def test_a_connection_is_used_again() -> None:
    async with scripted(answer(200, b"body")) as server:
        pool = Pool(LOCAL, server.port)
        for _ in range(5):
            assert (await pool.exchange(GET)).body == b"body"
            assert (pool.busy, pool.idle) == (0, 1)
        assert server.connections == 1
        assert "1 idle" in repr(pool)
        pool.close()
        assert pool.idle == 0


async def test_no_more_connections_than_allowed() -> None:
    async with scripted([Act.GATE, answer(200)]) as server:
        pool = Pool(LOCAL, server.port, size=3)
        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(pool.exchange, GET)
            await wait_all_tasks_blocked(0.05)
            assert server.connections == pool.busy == 3
            server.gate.set()
        assert server.connections == 3
        assert len(server.requests) == 12
        pool.close()


async def test_who_waits_longest_is_next() -> None:
    async with scripted([Act.GATE, answer(200)]) as server:
        pool = Pool(LOCAL, server.port, size=1)
        async with trio.open_nursery() as nursery:
            for number in range(8):
                request = Request(f"GET /{number} HTTP/1.1\r\n\r\n".encode())
                nursery.start_soon(pool.exchange, request)
                await wait_all_tasks_blocked()
            server.gate.set()
        assert server.request_lines() == [f"GET /{number} HTTP/1.1" for number in range(8)]
        pool.close()


async def test_a_connection_that_was_closed_meanwhile_is_replaced() -> None:
    async with scripted([answer(200), Act.CLOSE], answer(200)) as server:
        pool = Pool(LOCAL, server.port)
        await pool.exchange(GET)
        assert pool.idle == 1
        await server.closed.wait()
        await pool.exchange(GET)
        assert server.connections == 2
        assert len(server.requests) == 2
        pool.close()


async def test_a_connection_that_is_closed_as_the_request_arrives_is_replaced() -> None:
    async with scripted(answer(200), [Act.CLOSE], answer(200, b"second")) as server:
        pool = Pool(LOCAL, server.port)
        await pool.exchange(GET)
        assert (await pool.exchange(GET)).body == b"second"
        assert server.connections == 2
        assert len(server.requests) == 3
        pool.close()


async def test_no_request_is_sent_again_once_an_answer_has_begun() -> None:
    async with scripted(answer(200), [b"HTTP/1.1 20", Act.CLOSE], answer(200)) as server:
        pool = Pool(LOCAL, server.port)
        await pool.exchange(GET)
        with pytest.raises(ConnectionLost):
            await pool.exchange(GET)
        assert len(server.requests) == 2
        assert (pool.busy, pool.idle) == (0, 0)
        pool.close()


async def test_no_request_is_sent_again_on_a_new_connection() -> None:
    async with scripted([Act.CLOSE]) as server:
        pool = Pool(LOCAL, server.port)
        with pytest.raises(ConnectionLost):
            await pool.exchange(GET)
        assert len(server.requests) == 1


async def test_silence_is_not_taken_for_a_closed_connection() -> None:
    async with scripted(answer(200), [Act.SILENCE], answer(200)) as server:
        pool = Pool(LOCAL, server.port, deadlines=Deadlines(answer=0.1))
        await pool.exchange(GET)
        with pytest.raises(StepTimeout):
            await pool.exchange(GET)
        assert len(server.requests) == 2


async def test_old_connections_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted(answer(200)) as server:
        pool = Pool(LOCAL, server.port)
        await pool.exchange(GET)
        monkeypatch.setattr(pool_module, "IDLE_SECONDS", -1.0)
        await pool.exchange(GET)
        assert server.connections == 2
        pool.close()


async def test_a_cancelled_request_does_not_return_its_connection() -> None:
    async with scripted([Act.SILENCE], answer(200)) as server:
        pool = Pool(LOCAL, server.port, size=1)
        with trio.move_on_after(0.1) as scope:
            await pool.exchange(GET)
        assert scope.cancelled_caught
        assert (pool.busy, pool.idle) == (0, 0)
        await pool.exchange(GET)
        assert server.connections == 2
        pool.close()


async def test_a_cancelled_waiter_leaves_its_place_to_the_next() -> None:
    async with scripted([Act.GATE, answer(200)], answer(200)) as server:
        pool = Pool(LOCAL, server.port, size=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.exchange, GET)
            await wait_all_tasks_blocked(0.01)
            with trio.move_on_after(0.05) as scope:
                await pool.exchange(GET)
            assert scope.cancelled_caught
            nursery.start_soon(pool.exchange, GET)
            server.gate.set()
        assert len(server.requests) == 2
        pool.close()


async def test_a_failed_connect_gives_its_place_back() -> None:
    with trio.socket.socket() as sock:
        await sock.bind((LOCAL, 0))
        pool = Pool(LOCAL, sock.getsockname()[1], size=1)
        for _ in range(3):
            with pytest.raises(ConnectFailed):
                await pool.exchange(GET)


async def test_closing_ends_what_is_under_way() -> None:
    async with scripted([Act.SILENCE]) as server:
        pool = Pool(LOCAL, server.port)

        async def ask() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await pool.exchange(GET)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await wait_all_tasks_blocked(0.02)
            pool.close()
        with pytest.raises(trio.ClosedResourceError):
            await pool.exchange(GET)


def test_an_empty_pool_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Pool(LOCAL, 1, size=0)
