"""The proxy itself: what each command does to connections, seen from both of their ends."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from typing import TYPE_CHECKING

import pytest

from testbed.faulty_proxy import FaultyProxy, running_faulty_proxy
from testbed.ports import LOCAL
from testbed.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds in which nothing is to come, and in which what is to come has always come.
SILENCE, SOON = 0.3, 10.0
LARGE = 3 * 1024 * 1024


class Echo(socketserver.BaseRequestHandler):
    """Answers with what it gets."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := self.request.recv(65536):
                self.request.sendall(data)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@pytest.fixture
def proxy() -> Iterator[FaultyProxy]:
    with Server((LOCAL, 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            with running_faulty_proxy(f"{LOCAL}:{server.server_address[1]}") as running:
                yield running
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def connected(proxy: FaultyProxy) -> Iterator[socket.socket]:
    with socket.create_connection((LOCAL, proxy.port), timeout=SOON) as client:
        yield client


def read(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := client.recv(65536)):
        data += more
    return data


def echo(client: socket.socket, data: bytes) -> bytes:
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    got = read(client, len(data))
    sender.join()
    return got


def assert_silent(client: socket.socket) -> None:
    client.settimeout(SILENCE)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(SOON)


def assert_reset(client: socket.socket) -> None:
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_it_passes_everything_on_both_ways(proxy: FaultyProxy) -> None:
    data = bytes(range(256)) * (LARGE // 256)
    with connected(proxy) as one, connected(proxy) as other:
        assert echo(one, data) == data
        assert echo(other, b"beside it") == b"beside it"
        one.shutdown(socket.SHUT_WR)
        assert one.recv(1) == b""
    assert proxy.accepted == 2
    wait_until(lambda: proxy.open_connections == 0, seconds=SOON, what="both to be forgotten")


def test_cut_resets_those_that_there_are_and_takes_new_ones(proxy: FaultyProxy) -> None:
    with connected(proxy) as one, connected(proxy) as other:
        echo(one, b"1")
        echo(other, b"2")
        proxy.cut()
        assert_reset(one)
        assert_reset(other)
    with connected(proxy) as later:
        assert echo(later, b"3") == b"3"


def test_a_closed_port_refuses_until_it_is_opened_again(proxy: FaultyProxy) -> None:
    port = proxy.port
    with connected(proxy) as one:
        echo(one, b"1")
        proxy.refuse()
        assert_reset(one)
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOCAL, port), timeout=SOON)
    proxy.refuse()
    proxy.pass_on()
    assert proxy.port == port
    with connected(proxy) as later:
        assert echo(later, b"2") == b"2"


def test_what_is_frozen_flows_on_when_it_thaws_and_nothing_is_lost(proxy: FaultyProxy) -> None:
    with connected(proxy) as one:
        echo(one, b"1")
        proxy.freeze()
        one.sendall(b"held")
        with connected(proxy) as other:
            other.sendall(b"new")
            assert_silent(one)
            assert_silent(other)
            proxy.pass_on()
            assert read(one, 4) == b"held"
            assert read(other, 3) == b"new"


def test_a_black_hole_keeps_connections_and_no_bytes(proxy: FaultyProxy) -> None:
    with connected(proxy) as one, connected(proxy) as untouched:
        echo(one, b"1")
        echo(untouched, b"1")
        proxy.blackhole()
        one.sendall(b"lost")
        with connected(proxy) as other:
            other.sendall(b"lost too")
            assert_silent(one)
            proxy.pass_on()
            one.sendall(b"after")
            assert_silent(one)
            assert_silent(other)
        assert echo(untouched, b"nothing was lost here") == b"nothing was lost here"


def test_every_piece_waits_for_as_long_as_it_is_told(proxy: FaultyProxy) -> None:
    with connected(proxy) as one:
        echo(one, b"1")
        proxy.delay(0.2)
        before = time.monotonic()
        assert echo(one, b"slow") == b"slow"
        assert time.monotonic() - before >= 0.4


@pytest.mark.parametrize("new", [False, True])
def test_a_limit_cuts_in_the_middle_and_holds_for_every_connection(
    proxy: FaultyProxy, new: bool
) -> None:
    with connected(proxy) as one:
        echo(one, b"1")
        proxy.limit(100_000)
        with connected(proxy) as other:
            client = other if new else one
            assert echo_until_cut(client, bytes(LARGE)) <= 100_000
    proxy.pass_on()
    with connected(proxy) as later:
        assert len(echo(later, bytes(LARGE))) == LARGE


def echo_until_cut(client: socket.socket, data: bytes) -> int:
    """Return how much came back before the connection was reset, which one of the two directions was told of."""
    resets = []

    def send() -> None:
        try:
            client.sendall(data)
        except ConnectionError as error:
            resets.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    count = 0
    try:
        while more := client.recv(65536):
            count += len(more)
    except ConnectionError as error:
        resets.append(error)
    sender.join()
    assert resets
    return count


def test_a_limit_towards_the_server_lets_answers_pass(proxy: FaultyProxy) -> None:
    proxy.limit(10, "server")
    with connected(proxy) as one:
        assert echo(one, b"123456789") == b"123456789"
        one.sendall(b"0")
        got = b""
        with pytest.raises(ConnectionResetError):
            got = read(one, 2)
        assert got in {b"", b"0"}


def test_a_server_that_is_away_is_a_connection_that_is_reset() -> None:
    with socket.socket() as nobody:
        nobody.bind((LOCAL, 0))
        endpoint = f"{LOCAL}:{nobody.getsockname()[1]}"
        with running_faulty_proxy(endpoint) as proxy, connected(proxy) as one:
            assert_reset(one)
