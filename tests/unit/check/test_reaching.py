from __future__ import annotations

import ssl
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trustme

from iterum_sidecar.check.findings import Findings, Outcome
from iterum_sidecar.check.reaching import Address, reach
from testbed.ports import LOCAL, free_ports

from .environment import by_subject, failed

if TYPE_CHECKING:
    from trio.testing import MockClock


def address(port: int, context: ssl.SSLContext | None = None, host: str = LOCAL) -> Address:
    return Address(host, port, "MQ_BROKER_URL", context, "", "SIDECAR_BROKER_SERVER_NAME")


async def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: object, **__: object) -> None:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", unknown)
    findings = Findings("broker")
    assert await reach(address(1, host="nowhere"), seconds=5, findings=findings) is None
    assert failed(findings).keys() == {"name"}
    assert "host in MQ_BROKER_URL" in failed(findings)["name"].remedy


async def test_a_port_where_nobody_listens() -> None:
    findings = Findings("broker")
    (port,) = free_ports(1)
    assert await reach(address(port), seconds=5, findings=findings) is None
    assert failed(findings)["connection"].detail == (
        f"{LOCAL}:{port} ({LOCAL}): Connection refused"
    )


async def test_a_black_hole_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def swallow(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(trio, "open_tcp_stream", swallow)
    findings = Findings("broker")
    assert await reach(address(1), seconds=5, findings=findings) is None
    assert trio.current_time() == pytest.approx(5)
    assert "does not answer within 5 s" in failed(findings)["connection"].detail


async def certificate_found(days: float, host: str = LOCAL) -> Findings:
    """What is found of a server whose certificate is good for so many days more."""
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    until = datetime.now(UTC) + timedelta(days=days)
    authority.issue_cert(LOCAL, not_after=until).configure_cert(server_context)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    findings = Findings("broker")

    async def serve(stream: trio.SocketStream) -> None:
        encrypted = trio.SSLStream(stream, server_context, server_side=True, https_compatible=True)
        try:
            await encrypted.do_handshake()
            await encrypted.receive_some()
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host=LOCAL))
        port = listener.socket.getsockname()[1]
        stream = await reach(address(port, context), seconds=5, findings=findings)
        if stream is not None:
            await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel("the look is over")
    return findings


async def test_a_certificate_that_is_good_for_long_is_fine() -> None:
    findings = await certificate_found(100)
    assert by_subject(findings)["TLS"].outcome is Outcome.OK
    assert "TLSv1.3, a certificate for 127.0.0.1" in by_subject(findings)["TLS"].detail


async def test_one_that_ends_soon_is_a_warning() -> None:
    found = by_subject(await certificate_found(3.2), Outcome.WARNING)["TLS"]
    assert found.detail.endswith(": 3 days more")
    assert found.remedy == "renew it"


async def test_one_that_has_ended_fails_with_its_remedy() -> None:
    found = failed(await certificate_found(-1))["TLS"]
    assert "certificate has expired" in found.detail
    assert "renew the certificate" in found.remedy


async def test_what_speaks_no_tls_fails_with_its_remedy() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(b"AMQP\0\0\x09\1" * 10)

    findings = Findings("broker")
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host=LOCAL))
        port = listener.socket.getsockname()[1]
        context = ssl.create_default_context()
        assert await reach(address(port, context), seconds=5, findings=findings) is None
        nursery.cancel_scope.cancel("the look is over")
    assert failed(findings)["TLS"].remedy.startswith("no TLS is spoken there")


async def test_a_server_that_is_silent_in_the_handshake_is_not_waited_for() -> None:
    async def serve(_stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    findings = Findings("broker")
    began = time.monotonic()
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host=LOCAL))
        port = listener.socket.getsockname()[1]
        context = ssl.create_default_context()
        assert await reach(address(port, context), seconds=0.2, findings=findings) is None
        nursery.cancel_scope.cancel("the look is over")
    assert time.monotonic() - began < 3
    assert failed(findings).keys() == {"connection"}
