"""Ports that nobody listens on."""

from __future__ import annotations

import contextlib
import socket

__all__ = ["accepts_connections", "free_ports"]

LOCAL = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Return as many different ports of 127.0.0.1 as asked for, all free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOCAL, 0))
        return [int(each.getsockname()[1]) for each in sockets]


def accepts_connections(port: int) -> bool:
    """Tell whether something listens on the port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOCAL, port)) == 0
